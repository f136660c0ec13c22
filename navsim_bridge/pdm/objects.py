"""Objects around the ego as the terms that look at them take them: those of scenes, or those that reacted to plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Objects(Protocol):
    """What collision and time to collision read of a batch: `SceneBatch` has it, and so has `ObjectBatch`."""

    @property
    def object_boxes(self) -> Tensor: ...  # (scene, frame, object, 5)

    @property
    def object_mask(self) -> Tensor: ...  # (scene, frame, object) bool

    @property
    def object_track(self) -> Tensor: ...  # (scene, object) int64

    @property
    def track_is_agent(self) -> Tensor: ...  # (scene, object) bool

    @property
    def track_stopped(self) -> Tensor: ...  # (scene, object) bool

    @property
    def track_skipped(self) -> Tensor: ...  # (scene, object) bool

    @property
    def object_counts(self) -> NDArray[np.int64]: ...  # (scene,) columns that may hold an object, on the CPU


@dataclass(frozen=True)
class ObjectBatch:
    """The objects of many scenes, fields as in `SceneBatch`; here frames may end at 4 s."""

    object_boxes: Tensor  # (scene, 41 or 51, object, 5) center x, center y, heading, half length, half width
    object_mask: Tensor  # (scene, 41 or 51, object) bool
    object_track: Tensor  # (scene, object) int64
    track_is_agent: Tensor  # (scene, object) bool
    track_stopped: Tensor  # (scene, object) bool
    track_skipped: Tensor  # (scene, object) bool
    dead_ends: Tensor  # (scene,) int64 how often a vehicle had no way left, on which the devkit stops with an error

    @property
    def object_counts(self) -> NDArray[np.int64]:
        """As in `Objects`: all."""
        return np.full(len(self.object_mask), self.object_mask.shape[2], dtype=np.int64)
