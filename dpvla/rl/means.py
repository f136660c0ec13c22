"""Means of named numbers over the scenes of all processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class Means:
    """Sums that portions of scenes add to. Every process adds the same names in the same order, each its own scenes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Take in all numbers of a tensor; one that is not on the CPU is waited for."""
        self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())
        self._counts[name] = self._counts.get(name, 0) + values.numel()

    def over_processes(self, accelerator: Accelerator) -> dict[str, float]:
        """Every name's mean over what all processes took in."""
        if accelerator.num_processes == 1:
            return {name: total / self._counts[name] for name, total in self._sums.items()}
        both = torch.tensor([[*self._sums.values()], [*self._counts.values()]], dtype=torch.float64)
        sums, counts = accelerator.reduce(both.to(accelerator.device), reduction="sum").tolist()
        return {name: total / count for name, total, count in zip(self._sums, sums, counts)}
