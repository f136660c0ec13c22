"""Which scenes stand in which batch, and which seed a step has: functions of seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def step_seed(seed: int, *path: int) -> int:
    """A 63-bit seed that depends on every number given."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def permutation(count: int, *seed: int) -> np.ndarray:
    """A shuffle of ``range(count)`` that depends on every number of ``seed``."""
    return np.random.default_rng(np.random.SeedSequence(seed)).permutation(count)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches that cover ``count`` scenes once, the last one possibly smaller."""
    return -(-count // batch_size)


def epoch_batches(
    count: int, batch_size: int, first_step: int, *seed: int, multiple_of: int = 1
) -> Iterator[Sequence[int]]:
    """Endless batches of indices from step ``first_step`` (from 0) on; every epoch is a fresh shuffle.

    An epoch's last batch is filled up with scenes of its first ones to a ``multiple_of`` the processes that share it.
    """
    per_epoch = steps_per_epoch(count, batch_size)
    step = first_step
    while True:
        epoch, place = divmod(step, per_epoch)
        order = permutation(count, *seed, epoch)
        order = np.resize(order, -(-count // multiple_of) * multiple_of)
        while place < per_epoch:
            yield order[place * batch_size : (place + 1) * batch_size].tolist()
            place, step = place + 1, step + 1
