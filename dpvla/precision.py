"""What networks compute in: float32, float32 with TF32 products, or bfloat16 by autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" else nullcontext()


@contextmanager
def _tf32() -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
