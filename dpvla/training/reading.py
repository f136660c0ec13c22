"""Batches of scenes, decoded before they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from dpvla import ahead
from dpvla.batch import DrivingBatch, SceneSource
from dpvla.config import one_line
from dpvla.parallel import sendable


def batches_ahead(
    source: SceneSource, rows: Iterable[Sequence[int]], workers: int, device: torch.device, depth: int = 2
) -> Iterator[DrivingBatch]:
    """The batches of ``rows``, in order, on the CPU; for a GPU in pinned memory, from which it copies by itself.

    Args:
        workers: processes that decode; 0: a thread of this one.
        depth: batches decoded ahead, by each worker.

    Raises what ``source`` raises, in a process as in a thread; ChildProcessError where a process was killed.
    """
    pin = device.type == "cuda"
    if workers == 0:
        made = (source.batch(some) for some in rows)
        return ahead.ahead((batch.pin_memory() for batch in made) if pin else made, depth)
    loader = DataLoader(
        WholeBatches(source),
        batch_size=None,
        sampler=Once(rows),
        num_workers=workers,
        prefetch_factor=depth,
        pin_memory=pin,
    )
    return _received(iter(loader))


@dataclass(frozen=True)
class Failure:
    """What a process raised; torch would repeat it with the process's traceback in its text."""

    error: Exception


def _received(items: Iterator[DrivingBatch | Failure]) -> Iterator[DrivingBatch]:
    try:
        for item in items:
            if isinstance(item, Failure):
                raise item.error
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that decodes images has died ({one_line(error):.300}), often for lack of memory, or of shared "
            "memory (/dev/shm): start the same command again with fewer of them (0: a thread decodes); what has been "
            "saved is kept"
        ) from None


class WholeBatches(Dataset[DrivingBatch | Failure]):
    """A scene source whose items are batches."""

    def __init__(self, source: SceneSource) -> None:
        self._source = source

    def __getitem__(self, rows: Sequence[int]) -> DrivingBatch | Failure:  # type: ignore[override]
        try:
            return self._source.batch(rows)
        except Exception as error:
            return Failure(sendable(error))


class Once:
    """A stream of index lists as a DataLoader sampler."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._rows)
