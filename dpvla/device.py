"""Which device a tool computes on, and how tensors get there."""

from __future__ import annotations

import torch
from torch import Tensor


def usable_device(name: str) -> torch.device:
    """The device that an option names: auto, cpu, cuda or cuda:N; auto is cuda where there is one.

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())) or name.endswith(":"):
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N such as cuda:1")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            there = f"torch finds {count} GPU{'s' * (count != 1)}" + (f", cuda:0 to cuda:{count - 1}" if count else "")
            raise ValueError(f"--device {name} is not there ({there}); choose another --device, or see tools/doctor.py")
    return torch.device(name)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor``, which is on the CPU, on ``device``.

    A GPU copies it from pinned memory while the CPU goes on; a copy of other memory waits for all that is queued
    before it.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
