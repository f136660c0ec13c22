"""Configs of heads: what makes plans of an encoder's tokens. Read without loading any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from dpvla.config import Count, Layers, Range, Size, check, refuse_size
from dpvla.files import short
from dpvla.layers.block_text import MOST as MOST_BLOCKS
from dpvla.layers.block_text import parse_blocks

PRESETS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    # (width, attention heads, blocks)
    "tiny": (96, 4, ("3 modulated self cross mlp",)),
    # The layout that reproduces the paper's sizes (475M, 6.68M per rank-16 adapter); one cross-attention block.
    "paper": (1024, 16, ("24 modulated self mlp", "1 plain self cross mlp")),
    # Cross-attention in every block instead: 475.7M and 6.78M.
    "cross18": (1024, 16, ("18 modulated self fused-cross mlp",)),
}


@dataclass(frozen=True)
class AnyHeadConfig:
    """What all heads have; each adds its own keys in a subclass."""

    OF_MODEL: ClassVar[tuple[str, ...]] = ()
    """Groups of the model's config that the head's policy reads beside ``encoder`` and ``head``."""

    name: str  # which head


@dataclass(frozen=True)
class HeadConfig(AnyHeadConfig):
    """The action head of DP-VLA.

    A block reads ``COUNT modulated|plain SUBLAYER...``; sublayers are self, cross, fused-cross (one projection for
    keys and values) and mlp.
    """

    OF_MODEL: ClassVar[tuple[str, ...]] = ("diffusion", "plan")

    name: str = "diffusion"  # which head
    preset: str = "paper"  # paper | cross18 | tiny: gives width, heads and blocks where they are not set below
    width: Size | None = None  # model width d
    heads: Size | None = None  # attention heads
    blocks: tuple[str, ...] | None = None  # e.g. ("24 modulated self mlp", "1 plain self cross mlp")
    mlp_ratio: Annotated[Count, Range(most=64)] = 4  # hidden width of the MLPs over d
    use_command: bool = True  # driving command in the adaLN condition (the encoder sees it as text in any case)
    use_ego_status: bool = True  # velocity and acceleration in the adaLN condition; the paper does not say
    use_history: bool = True  # past poses in the adaLN condition; the paper does not say
    status_token: bool = True  # the same condition once more as a context token
    project_context: bool = True  # linear projection of the encoder tokens to d before keys and values

    def __post_init__(self) -> None:
        check(self, "head")
        if self.preset not in PRESETS:
            raise ValueError(f"preset {short(self.preset)} is unknown; expected one of {', '.join(PRESETS)}")
        width, heads, blocks = self.resolved()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads, {heads}")
        if self.status_token and not self.project_context:
            raise ValueError("status_token needs project_context: the token joins the projected ones")
        if self.blocks is not None and not 1 <= len(self.blocks) <= MOST_BLOCKS:
            raise ValueError(f"blocks holds {len(self.blocks)} texts, from 1 to {MOST_BLOCKS} are taken")
        weights = 0
        for text in blocks:
            try:
                layers = parse_blocks(text)
            except ValueError as error:
                raise ValueError(f"blocks: {error}") from None
            of_one = sum(2 * self.mlp_ratio if kind == "mlp" else 4 for kind in layers[0][1])
            weights += len(layers) * (of_one + 3 * len(layers[0][1])) * width**2
        refuse_size(weights, "blocks")

    def resolved(self) -> tuple[int, int, tuple[str, ...]]:
        """Width, heads and blocks with the preset filled in."""
        width, heads, blocks = PRESETS[self.preset]
        return self.width or width, self.heads or heads, tuple(self.blocks or blocks)


@dataclass(frozen=True)
class RegressionConfig(AnyHeadConfig):
    """One plan a scene, learned with L1; the defaults are NAVSIM's TransFuser's."""

    name: str = "regression"  # which head
    layers: Layers = 3  # of the decoder, by which a learned query reads the tokens; 0: the plan is read off their mean
    heads: Size = 8  # its attention heads
    feed_forward: Size = 1024  # hidden width of its layers
    hidden: Annotated[int, Range(least=0, most=2**14)] = 1024  # of the layer before the poses; 0: there is none
    bounded_heading: bool = True  # headings are pi tanh(output) rad, and so within a turn; else the output itself

    def __post_init__(self) -> None:
        check(self, "head")
