"""Batches of scenes, decoded before they are asked for."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import torch
from torch.utils.data import DataLoader, Dataset

from dpvla import ahead
from dpvla.batch import DrivingBatch, SceneSource
from dpvla.config import one_line
from dpvla.parallel import sendable, starting_workers


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
    with starting_workers("a thread that decodes images (0 processes)"):
        multiprocessing.Lock()  # torch's loader would say in lines of its own that it cannot be made
        items = iter(loader)
    return _received(items)


@dataclass(frozen=True)
class Failure:
    """What a process raised; torch would repeat it with the process's traceback in its text."""

    error: Exception


@dataclass(frozen=True)
class Packed:
    """A batch on its way from the process that made it; large tensors lie in shared memory.

    It is packed where an error can be told: torch's own thread that sends would print it, and whoever waits for the
    batch would wait for ever.
    """

    content: bytes

    def unpacked(self) -> DrivingBatch | Failure:
        """The batch; for once."""
        try:
            batch: DrivingBatch = pickle.loads(self.content)
        except (OSError, EOFError, RuntimeError) as error:  # its process has gone, or there are too many open files
            return Failure(_lost("cannot send them", error))
        return batch

    def pin_memory(self) -> DrivingBatch | Failure:
        """The batch in page-locked memory; torch's loader calls this."""
        batch = self.unpacked()
        return batch if isinstance(batch, Failure) else batch.pin_memory()


def _received(items: Iterator[DrivingBatch | Packed | Failure]) -> Iterator[DrivingBatch]:
    try:
        for item in items:
            found = item.unpacked() if isinstance(item, Packed) else item
            if isinstance(found, Failure):
                raise found.error
            yield found
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _lost("has died", error) from None


def _lost(what: str, error: Exception) -> ChildProcessError:
    return ChildProcessError(
        f"a process that decodes images {what} ({one_line(error):.300}), often for lack of memory, or of shared "
        "memory (/dev/shm): start the same command again with fewer of them (0: a thread decodes); what has been "
        "saved is kept"
    )


class WholeBatches(Dataset[Packed | Failure]):
    """A scene source whose items are batches."""

    def __init__(self, source: SceneSource) -> None:
        self._source = source

    def __getitem__(self, rows: Sequence[int]) -> Packed | Failure:  # type: ignore[override]
        try:
            batch = self._source.batch(rows)
        except Exception as error:
            return Failure(sendable(error))
        try:
            return Packed(bytes(ForkingPickler.dumps(batch)))
        except (OSError, RuntimeError) as error:
            return Failure(_lost("cannot send them", error))


class Once:
    """A stream of index lists as a DataLoader sampler."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._rows)
