"""Batches of scenes, decoded before they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from dpvla import ahead
from dpvla.batch import DrivingBatch, SceneSource


def batches_ahead(
    source: SceneSource, rows: Iterable[Sequence[int]], workers: int, device: torch.device, depth: int = 2
) -> Iterator[DrivingBatch]:
    """The batches of ``rows``, in order, on the CPU; for a GPU in pinned memory, from which it copies by itself.

    Args:
        workers: processes that decode; 0: a thread of this one.
        depth: batches decoded ahead, by each worker.
    """
    pin = device.type == "cuda"
    if workers == 0:
        made = (source.batch(some) for some in rows)
        return ahead.ahead((batch.pin_memory() for batch in made) if pin else made, depth)
    return iter(
        DataLoader(
            WholeBatches(source),
            batch_size=None,
            sampler=Once(rows),
            num_workers=workers,
            prefetch_factor=depth,
            pin_memory=pin,
        )
    )


class WholeBatches(Dataset[DrivingBatch]):
    """A scene source whose items are batches."""

    def __init__(self, source: SceneSource) -> None:
        self._source = source

    def __getitem__(self, rows: Sequence[int]) -> DrivingBatch:  # type: ignore[override]
        return self._source.batch(rows)


class Once:
    """A stream of index lists as a DataLoader sampler."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._rows)
