"""What a plan is, in numbers: ``(..., NUM_POSES, 3)`` x, y [m], heading [rad] in the ego frame at t = 0. Nothing else
is imported here, so that processes that read or write files alone need not load torch."""

from dataclasses import dataclass
from typing import Any

NUM_POSES = 8
"""Poses of a plan, the first at `POSE_INTERVAL`."""
POSE_INTERVAL = 0.5
"""Seconds between the poses of a plan."""
PLAN_SECONDS = NUM_POSES * POSE_INTERVAL
"""How far a plan reaches."""
HISTORY_POSES = 3
"""Past poses that a policy is given, as far apart as those of a plan, the last at -`POSE_INTERVAL`."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan that may have any number of poses, and be sampled at any rate."""

    poses: Any  # (pose, 3) array of x, y [m], heading [rad] in the ego frame at t = 0
    interval: float = POSE_INTERVAL  # [s] between poses, the first at it
