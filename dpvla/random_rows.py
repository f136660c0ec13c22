"""Random numbers that belong to a scene, not to the batch or the process in which it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dpvla.device import to_device

_WORD = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit seed that depends on every number and on their order (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _WORD)) + 0x9E3779B97F4A7C15 & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return state >> 1


def scene_noise(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (*shape) of a scene in evaluations: of its name and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


class RandomRows(torch.Generator):
    """The random numbers of a batch, each row's from a seed of its own, on the CPU.

    A row gets the same numbers in whatever batch, part of one or process it stands, as long as the same calls are made
    for it. It takes the place of a ``torch.Generator`` in ``DPVLA.draw`` and ``DPVLA.sample``. What draws from it by
    torch's own functions gets numbers that depend on the batch: use ``normal`` and ``uniform`` instead.
    """

    seeds: tuple[int, ...]

    def __new__(cls, seeds: Sequence[int]) -> RandomRows:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self._row, self._calls = torch.Generator(), 0
        self.manual_seed(mix(*self.seeds))

    @classmethod
    def of(cls, scenes: Sequence[int], *path: int) -> RandomRows:
        """Of ``scenes``, numbered as in their source, at a place in training such as (seed, step)."""
        return cls([mix(*path, scene) for scene in scenes])

    def __len__(self) -> int:
        return len(self.seeds)

    def select(self, rows: Sequence[int]) -> RandomRows:
        """Of some rows, from their first numbers on."""
        return RandomRows([self.seeds[row] for row in rows])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (row, *shape), float32."""
        return self._drawn(torch.Tensor.normal_, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (row, *shape), float32."""
        return self._drawn(torch.Tensor.uniform_, shape)

    def _drawn(self, fill: object, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.empty(len(self), *shape)
        for row, seed in zip(drawn, self.seeds):
            fill(row, generator=self._row.manual_seed(mix(seed, self._calls)))  # type: ignore[operator]
        self._calls += 1
        return drawn


def normal(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Standard normal numbers on ``device``: by row from ``RandomRows``, else as ``torch.randn`` draws them.

    A generator draws where it is, so that those of the CPU give the same numbers on every device.
    """
    if isinstance(generator, RandomRows):
        return to_device(generator.normal(*_per_row(shape, generator)), device)
    return torch.randn(shape, generator=generator, device=_source(generator, device)).to(device)


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Uniform numbers in [0, 1) on ``device``, as ``normal`` draws them."""
    if isinstance(generator, RandomRows):
        return to_device(generator.uniform(*_per_row(shape, generator)), device)
    return torch.rand(shape, generator=generator, device=_source(generator, device)).to(device)


def _source(generator: torch.Generator | None, device: torch.device | str) -> torch.device | str:
    return device if generator is None else generator.device


def _per_row(shape: tuple[int, ...], generator: RandomRows) -> tuple[int, ...]:
    if shape[0] != len(generator):
        raise ValueError(f"random numbers of {len(generator)} rows were asked for {shape[0]}")
    return shape[1:]
