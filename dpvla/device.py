"""Which device a tool computes on."""

from __future__ import annotations

import torch


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
