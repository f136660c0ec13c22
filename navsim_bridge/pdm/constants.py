"""Constant tensors, made once for each device: a GPU is waited for whenever numbers are sent to it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_KEPT: dict[Hashable, Tensor] = {}


def constant(device: torch.device, make: Callable[..., NDArray[Any]], *arguments: Hashable) -> Tensor:
    """``make(*arguments)`` on ``device``; the same tensor at every call, so not to be written to."""
    key = (device, make, arguments)
    if key not in _KEPT:
        _KEPT[key] = torch.from_numpy(make(*arguments)).to(device)
    return _KEPT[key]


def forget() -> None:
    """Let go of all constants."""
    _KEPT.clear()
