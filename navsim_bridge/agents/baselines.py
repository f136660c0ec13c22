"""Agents that learn nothing: the devkit's two, and standing still."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpvla.plan import NUM_POSES, POSE_INTERVAL
from navsim_bridge.splits.scenes import SceneRecord


def constant_velocity(records: Sequence[SceneRecord]) -> NDArray[np.float32]:
    """(scene, 8, 3) straight on at the present speed, as the devkit's agent of that name."""
    velocity = np.array([r.velocity for r in records], dtype=np.float32).reshape(-1, 2)
    speed = np.sqrt((velocity**2).sum(axis=-1))
    plans = np.zeros((len(records), NUM_POSES, 3), dtype=np.float32)
    plans[:, :, 0] = np.arange(1, NUM_POSES + 1, dtype=np.float32) * np.float32(POSE_INTERVAL) * speed[:, None]
    return plans


def stand_still(records: Sequence[SceneRecord]) -> NDArray[np.float32]:
    """(scene, 8, 3) zeros: stay where and as you are."""
    return np.zeros((len(records), NUM_POSES, 3), dtype=np.float32)


def human(records: Sequence[SceneRecord]) -> NDArray[np.float64]:
    """(scene, 8, 3) what the recorded driver did, in float64 as the devkit's human agent.

    Raises ValueError for a scene with fewer than 8 future frames.
    """
    return np.array([r.plan() for r in records]).reshape(-1, NUM_POSES, 3)
