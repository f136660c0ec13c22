"""Options of the selector, and of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dpvla.config import BelowOne, Count, NotNegative, Range, Size, check, refuse_size


@dataclass(frozen=True)
class SelectorConfig:
    """The network."""

    width: Size = 256  # of its transformer
    heads: Size = 8  # attention heads
    layers: Annotated[Count, Range(most=64)] = 3  # blocks of cross-attention to the scene's tokens and MLP
    mlp_ratio: Annotated[Count, Range(most=64)] = 4  # hidden width of the MLPs over the width
    dropout: BelowOne = 0.1  # of tokens and of what the last layers see, in training

    def __post_init__(self) -> None:
        check(self, "selector")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads, {self.heads}")
        refuse_size(self.layers * (4 + 2 * self.mlp_ratio + 6) * self.width**2, "layers")


@dataclass(frozen=True)
class SelectorTrainingConfig:
    """How it learns from kept roll-outs."""

    epochs: Count = 10  # passes over the scenes
    batch_size: Count = 32  # scenes in an update, over all processes
    plans_per_scene: Annotated[Count, Range(least=2)] = 10  # for each scene of an update, of one of its groups (RL's g)
    scenes_per_call: Count = 64  # scenes encoded together
    context_cache_gb: NotNegative = 8.0  # encoded scenes stay in memory up to this size, else are made anew

    def __post_init__(self) -> None:
        check(self, "training")
