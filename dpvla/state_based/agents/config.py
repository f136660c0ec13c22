"""Hyperparameters that agents have in common; an agent adds its own in its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from dpvla.config import Count, Range, Share, Size
from dpvla.state_based.networks.options import Activation, LayerNorm

WITHOUT_LAG = "targets follow the weights after an update (released code: those from before it)"
"""What an agent says whose released code has ``target_lag``, where it is off."""


@dataclass(frozen=True)
class AgentConfig:
    """What every method has. The defaults are those of every agent in github.com/seohongpark/fql (commit 719d044).

    But for ``target_lag``, which its agents here set themselves: agents of other origin have their targets follow at
    once. ``FORMERLY`` says how an agent's checkpoint that lacks a key was trained.
    """

    FORMERLY: ClassVar[dict[str, Any]] = {"target_lag": False}

    batch_size: Count = 256  # rows of an update, per seed
    hidden: tuple[Size, ...] = (512, 512, 512, 512)  # layer sizes of all networks
    activation: Activation = "gelu"  # of the hidden layers
    value_norm: LayerNorm = "after"  # layer normalization in Q and V: after or before the activation
    policy_norm: LayerNorm = "none"  # layer normalization in the policies
    discount: Share = 0.99  # gamma
    target_rate: Share = 0.005  # share of the online Q that the target Q takes over in each update
    target_lag: bool = (
        False  # targets follow the weights from before the update (FQL's and CFGRL's code); off: after it
    )

    def __post_init__(self) -> None:
        if not 1 <= len(self.hidden) <= 64:
            raise ValueError("hidden must name the sizes of at least one layer, and at most 64: [512, 512, 512]")

    def with_width(self, width: int) -> AgentConfig:
        """All layers ``width`` wide, for machines without a GPU; an agent that has other sizes scales them as well."""
        return replace(self, hidden=(width,) * len(self.hidden))

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """Where the agent is known to do something else than the released code of its method (docs/state_based.md).

        Args:
            benchmark: OGBench or ExORL, whose released code can be another.
        """
        return ()


@dataclass(frozen=True)
class ImplicitQConfig(AgentConfig):
    """Adds IQL's value network."""

    expectile: Annotated[float, Range(above=0, below=1)] = 0.9  # tau of V's regression; 0.5 is the mean
    clip_q: bool = True  # min of the two Qs wherever one number is needed; off: their mean
