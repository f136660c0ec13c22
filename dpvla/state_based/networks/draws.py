"""Random numbers, per seed: what one seed draws does not depend on which other seeds train beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpvla.training.order import step_seed


class Draws(Protocol):
    """Where an agent takes its random numbers from; every result has the seeds as its first axis."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (seed, *shape)."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (seed, *shape)."""


class FreshDraws:
    """Draws made on the spot, e.g. for acting: ``agent.act(observations, FreshDraws(agent.seeds, device, step))``."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str, *path: int) -> None:
        """One generator per seed, seeded by the seed and every number of ``path``."""
        self.generators = [torch.Generator(device).manual_seed(step_seed(seed, *path)) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (seed, *shape)."""
        return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (seed, *shape)."""
        return torch.stack([torch.rand(shape, generator=g, device=g.device) for g in self.generators])


class CountingDraws:
    """Zeros, and how many of them were asked for: measures what one update of an agent draws."""

    def __init__(self, seeds: int, device: torch.device | str) -> None:
        self.seeds, self.device = seeds, device
        self.normals = self.uniforms = 0

    def normal(self, *shape: int) -> Tensor:
        """Zeros, (seed, *shape)."""
        zeros = torch.zeros(self.seeds, *shape, device=self.device)
        self.normals += zeros[0].numel()
        return zeros

    def uniform(self, *shape: int) -> Tensor:
        """Zeros, (seed, *shape)."""
        zeros = torch.zeros(self.seeds, *shape, device=self.device)
        self.uniforms += zeros[0].numel()
        return zeros


class TapeDraws:
    """Reads numbers that were drawn before: fixed memory, so that a CUDA graph can be captured over it."""

    def __init__(self, normals: Tensor, uniforms: Tensor) -> None:
        """``normals``, ``uniforms``: (seed, number)."""
        self._normals, self._uniforms = normals, uniforms
        self._normal = self._uniform = 0

    def normal(self, *shape: int) -> Tensor:
        """The next standard normal numbers of the tape, (seed, *shape)."""
        start, self._normal = self._normal, self._normal + _size(shape)
        return self._normals[:, start : self._normal].unflatten(1, shape)

    def uniform(self, *shape: int) -> Tensor:
        """The next uniform numbers of the tape, (seed, *shape)."""
        start, self._uniform = self._uniform, self._uniform + _size(shape)
        return self._uniforms[:, start : self._uniform].unflatten(1, shape)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
