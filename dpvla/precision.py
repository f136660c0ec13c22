"""What networks compute in: float32, float32 with TF32 products, or bfloat16 by autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["no", "tf32", "bf16"]
"""``no``: float32; ``tf32``: float32 whose products a GPU rounds to 10 bits; ``bf16``: autocast."""


def autocast_of(precision: Precision) -> Literal["no", "bf16"]:
    """The mixed precision that accelerate is asked for."""
    return "bf16" if precision == "bf16" else "no"


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Networks of ``device`` compute in ``precision`` inside."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else _float32(precision)


def set_float32(precision: Precision) -> None:
    """From now on float32 products and convolutions of a GPU are what ``precision`` says; torch's own default is TF32
    for convolutions alone."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def _float32(precision: Precision) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_float32(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
