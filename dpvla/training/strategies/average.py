"""The exponential average of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Averages tensors over updates, with a decay that rises to the one asked for: ``(1 + n) / (10 + n)`` at first.

    The numbers are those of diffusers' ``EMAModel``. Where a process holds a part of the weights, it averages its part.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.averages = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor]) -> None:
        """Take in the weights after an update."""
        self.updates += 1
        before = self.updates - 1
        decay = min((1 + before) / (10 + before), self.decay) if before else 0.0
        off = torch._foreach_sub(self.averages, [tensor.detach() for tensor in tensors])
        torch._foreach_mul_(off, 1 - decay)
        torch._foreach_sub_(self.averages, off)

    @contextmanager
    def standing_in(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Inside, ``tensors`` hold the averages."""
        own = [tensor.detach() for tensor in tensors]
        before = [tensor.clone() for tensor in own]
        for tensor, average in zip(own, self.averages):
            tensor.copy_(average)
        try:
            yield
        finally:
            for tensor, value in zip(own, before):
                tensor.copy_(value)
