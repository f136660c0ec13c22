"""Options of the selector, and of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dpvla.config import BelowOne, Count, Range, Size, check, refuse_size


@dataclass(frozen=True)
class SelectorConfig:
    """The network."""

    width: Size = 256  # of its transformer
    heads: Size = 8  # attention heads
    layers: Annotated[Count, Range(most=64)] = 3  # blocks of self-attention, cross-attention to the tokens, and MLP
    mlp_ratio: Annotated[Count, Range(most=64)] = 4  # hidden width of the MLPs over the width
    dropout: BelowOne = 0.1  # of tokens and of what the last layers see, in training

    def __post_init__(self) -> None:
        check(self, "selector")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads, {self.heads}")
        refuse_size(self.layers * (8 + 2 * self.mlp_ratio + 9) * self.width**2, "layers")
