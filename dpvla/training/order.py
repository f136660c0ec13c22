"""Which scenes stand in which batch, and which seed a step has: functions of seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator

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


def epoch_batches(count: int, batch_size: int, first_step: int, *seed: int) -> Iterator[list[int]]:
    """Endless batches of indices from step ``first_step`` (from 0) on; every epoch is a fresh shuffle.

    An epoch's last batch may be smaller. How many processes share a batch changes nothing of this.
    """
    per_epoch = steps_per_epoch(count, batch_size)
    step = first_step
    while True:
        epoch, place = divmod(step, per_epoch)
        order = permutation(count, *seed, epoch)
        while place < per_epoch:
            yield order[place * batch_size : (place + 1) * batch_size].tolist()
            place, step = place + 1, step + 1


def lane_batches(count: int, lanes: int, first_step: int, *seed: int) -> Iterator[list[int]]:
    """As ``epoch_batches``, but place ``i`` of every batch holds an index of lane ``i``: one of ``i, i + lanes, ...``.

    So whoever has to do with some places of a batch needs the same few scenes in every epoch, whose encoded images
    fit into memory; and the batches are what they are for any number of processes.
    """
    per_epoch = steps_per_epoch(count, lanes)
    step = first_step
    while True:
        epoch, place = divmod(step, per_epoch)
        keys = np.full((per_epoch, lanes), np.inf)  # a lane's places beyond the last index stay its last
        keys.flat[:count] = np.random.default_rng(np.random.SeedSequence([*seed, epoch])).random(count)
        order = keys.argsort(axis=0) * lanes + np.arange(lanes)
        while place < per_epoch:
            yield order[place][order[place] < count].tolist()
            place, step = place + 1, step + 1
