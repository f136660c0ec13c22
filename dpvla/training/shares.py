"""How an update's scenes are shared by processes, and by the passes of one process.

A loss is a mean over the scenes it is given, gradients are means over processes and sums over passes. So that an update
learns the mean over all its scenes however they are divided, a part of ``n`` of them carries the weight
``n * processes / scenes of the update``: 1 where the shares are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dpvla.config import ConfigError


class Sharable(Protocol):
    """A batch that can be divided."""

    @property
    def weight(self) -> float:
        """Of its loss among the parts of an update."""

    def __len__(self) -> int: ...

    def select(self, index: Tensor) -> Any:
        """Some of its rows (int64)."""


AnyBatch = TypeVar("AnyBatch", bound=Sharable)


def refuse_uneven(option: str, batch_size: int, processes: int) -> None:
    """Raise ConfigError for a batch size, named as ``option``, that the processes cannot share equally."""
    if batch_size % processes:
        raise ConfigError(
            f"{option} {batch_size} cannot be shared by {processes} processes: it counts the scenes of an update over "
            "all of them, take a multiple"
        )


def lanes(scenes: int, batch_size: int, process: int, processes: int) -> Tensor:
    """(scene,) int64: of so many scenes those that a process has in all updates of ``order.lane_batches``."""
    places = torch.arange(scenes) % batch_size
    return (places % processes == process).nonzero().flatten()


def share(rows: Sequence[int], process: int, processes: int, idle: int) -> tuple[list[int], float]:
    """What a process does of an update over ``rows``, and its weight.

    Where it gets nothing it does row ``idle`` with weight 0, since every process takes part in every update.
    """
    mine = list(rows[process::processes])
    return mine or [idle], len(mine) * processes / len(rows)


def parts(batch: AnyBatch, count: int) -> list[AnyBatch]:
    """``batch`` in so many parts, one a pass; where it has fewer rows, parts of weight 0 fill up the number."""
    if count == 1:
        return [batch]
    divided = []
    for rows in torch.arange(len(batch)).tensor_split(count):
        weight = batch.weight * len(rows) / len(batch)
        part = batch.select(rows if len(rows) else torch.zeros(1, dtype=torch.int64))
        divided.append(replace(part, weight=weight))
    return divided


def weighted(batch: Sharable, loss: Tensor, info: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and what is logged with it, in the batch's weight."""
    if batch.weight == 1:
        return loss, dict(info)
    return loss * batch.weight, {name: value * batch.weight for name, value in info.items()}
