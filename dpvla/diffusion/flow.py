"""Linear-path flows: ``x_t = (1 - t) noise + t x``, t = 1 is data, and the network predicts ``x - noise``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def noised(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at time ``t`` on the straight line from ``noise`` (t = 0) to ``x`` (t = 1)."""
    return torch.lerp(noise, x, t)


def solve(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler's method from noise to data: ``velocity(x, t)`` at t = 0, 1/steps, ..., (steps - 1)/steps; not clipped.

    ``t`` has the shape of ``noise`` with a last axis of 1.
    """
    x = noise
    for step in range(steps):
        t = torch.full_like(noise[..., :1], step / steps)
        x = x + velocity(x, t) / steps
    return x
