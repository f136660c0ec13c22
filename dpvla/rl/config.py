"""Options of the cycles of roll-outs and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dpvla.config import Count, NotNegative, Positive, Range, Share, Whole, Workers


@dataclass(frozen=True)
class RolloutConfig:
    """The cycles of roll-outs and training on them, whatever the algorithm."""

    group_size: Annotated[Count, Range(least=2)] = 10  # g: plans of a scene (paper: 10 navtrain, 25 navtest)
    cycles: Count = 1  # times the buffer is cleared and filled again
    epochs_per_cycle: Count = 9  # training epochs on one buffer (paper: 9 after 1 roll-out epoch)
    scenes_per_cycle: Whole = 0  # at most so many scenes are rolled out in a cycle; 0: all of the split
    batch_size: Count = 56  # scenes in an update over all processes, each with its whole group (paper: 56 on each of 8)
    scenes_per_call: Count = 64  # scenes encoded, sampled and scored together
    keep: bool = False  # keep every cycle's plans and sub-scores in OUT/roll_outs, for tools/train_selector.py
    context_cache_gb: NotNegative = 8.0  # encoded scenes of a cycle stay in memory up to this size, else made anew


@dataclass(frozen=True)
class TokensConfig:
    """Where the frozen encoder's tokens lie, so that no image is encoded twice, and how they are read."""

    directory: str | None = None  # folder on disk for the whole split as bf16, for this run and later (default: none)
    limit_gb: NotNegative = 100.0  # more disk than this (10^9 bytes) is written with --yes alone
    verify: bool = False  # check every scene of the folder before the run, not when it is first read
    ahead: Count = 2  # batches that are read, or decoded, before the update asks for them
    workers: Workers = 0  # processes that decode images where tokens are not kept; 0: a thread


@dataclass(frozen=True)
class WatchConfig:
    """What is looked at beside the reward. Nothing of it changes what is learned; docs/watching.md says what it means.

    Where the literature is silent, as it is on the bounds, they are ours.
    """

    # further metrics that score the roll-outs; none: --watch.metrics (default: those built in whose scenes are cached)
    metrics: tuple[str, ...] | None = None
    metric_caches: tuple[str, ...] = ()  # where their scenes, and those of heldout.split, are cached, if elsewhere
    scenes: Whole = 64  # of a cycle, in which plans are held against the pretrained policy's; 0: none, and no alarms
    reverse_mps: Positive = 0.5  # [m/s] a plan that ends driving backwards faster than this reverses
    still_m: Positive = 1.0  # [m] a plan whose way is shorter than this stands still
    rise: Share = 0.1  # alarm: share of plans that reverse or stand still, above the pretrained policy's
    fall: Share = 0.1  # alarm: loss of comfort, below the pretrained policy's
    picture: bool = True  # draw run.png when the run ends or stops
    alike: Share = 0.25  # alarm: distance between plans of a scene, as a share of the pretrained policy's


@dataclass(frozen=True)
class HeldoutConfig:
    """Scenes that are not learned from and scored again and again; by their score the best checkpoint is kept."""

    split: str | None = None  # whose scenes they are (default: those of the logs that validation_logs holds back)
    scenes: Whole = 256  # at most so many, evenly through the split; 0: all
    every: Count = 1  # cycles from one time to the next; before the first and after the last cycle in any case
    stop_below: NotNegative | None = None  # stop when the score is so much below the best so far (default: never)
