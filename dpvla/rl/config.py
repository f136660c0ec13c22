"""Options of the cycles of roll-outs and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dpvla.config import Count, NotNegative, Range, Whole, Workers


@dataclass(frozen=True)
class RolloutConfig:
    """The cycles of roll-outs and training on them, whatever the algorithm."""

    group_size: Annotated[Count, Range(least=2)] = 10  # g: plans of a scene (paper: 10 navtrain, 25 navtest)
    cycles: Count = 1  # times the buffer is cleared and filled again
    epochs_per_cycle: Count = 9  # training epochs on one buffer (paper: 9 after 1 roll-out epoch)
    scenes_per_cycle: Whole = 0  # at most so many scenes are rolled out in a cycle; 0: all of the split
    batch_size: Count = 56  # scenes in an update over all processes, each with its whole group (paper: 56 on each of 8)
    scenes_per_call: Count = 64  # scenes encoded, sampled and scored together
    context_cache_gb: NotNegative = 8.0  # encoded scenes of a cycle stay in memory up to this size, else made anew


@dataclass(frozen=True)
class TokensConfig:
    """Where the frozen encoder's tokens lie, so that no image is encoded twice, and how they are read."""

    directory: str | None = None  # folder on disk for the whole split as bf16, for this run and later (default: none)
    limit_gb: NotNegative = 100.0  # more disk than this (10^9 bytes) is written with --yes alone
    verify: bool = False  # check every scene of the folder before the run, not when it is first read
    ahead: Count = 2  # batches that are read, or decoded, before the update asks for them
    workers: Workers = 0  # processes that decode images where tokens are not kept; 0: a thread
