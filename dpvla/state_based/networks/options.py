"""What networks can be made of, by name."""

from __future__ import annotations

from typing import Literal

Activation = Literal["tanh", "gelu", "mish", "swish", "relu"]
LayerNorm = Literal["none", "after", "before", "before_but_last"]
