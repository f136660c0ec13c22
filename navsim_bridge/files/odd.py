"""What in a log is odd, though it can be read: it is used as the devkit uses it, counted, and said.

Recorded logs are not perfect. Whoever made OpenScene's logs left out frames without lidar or camera files, so that
neighbors in a log can be a second apart or more, and the devkit takes every window of frames as if they were 0.5 s
apart. Thresholds here are guesses: nothing is refused by them. What cannot be right `logs.read_log` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.int64]
"""(found,) indices of frames, ascending."""

ODD = {
    "uneven_times": "frames that are not 0.5 s apart",
    "unlikely_motion": "positions that do not fit the velocities",
    "unlikely_boxes": "boxes of no size, or too large, too far or too fast to be right",
    "unknown_velocities": "static objects of unknown velocity",
    "repeated_tracks": "a track twice in one frame",
    "shared_images": "one image for two cameras",
    "crossing_polygons": "map polygons that cross themselves",
    "stray_lanes": "lanes of roadblocks that the map does not have",
}
"""Cause, as it is written to files, and what to say of it: 'scenes with ...'. The last two are
of maps."""

STEP = 0.5
"""Seconds from frame to frame."""
STEP_TOLERANCE = 0.1
"""Sweeps of the lidar are 0.05 s apart: one of them may be missing."""
MOTION_TOLERANCE = (1.0, 0.35)
"""Meters, and share of the way that the velocities make."""
BOX_SIZE, BOX_DISTANCE, BOX_SPEED, BOX_YAW = 100.0, 300.0, 75.0, 7.0
"""[m], [m], [m/s], [rad] that real boxes stay below; yaws are differences of two angles."""


def odd_steps(times_us: NDArray[np.int64]) -> Frames:
    """Frames that follow the one before them by something else than 0.5 s."""
    return _frames(np.abs(np.diff(times_us) / 1e6 - STEP) > STEP_TOLERANCE) + 1


def unlikely_motion(times_us: NDArray[np.int64], poses: NDArray[np.float64], velocities: NDArray[np.float64]) -> Frames:
    """Frames whose position does not follow from the one before by the velocities at both.

    Such as frames that are missing between equal times, or a heading that points elsewhere than the car drives. Says
    nothing of steps that `odd_steps` finds.

    Args:
        times_us: (frame,).
        poses: (frame, 3) x, y [m], heading [rad].
        velocities: (frame, 2) [m/s] in ego axes.
    """
    seconds = np.diff(times_us) / 1e6
    cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    forward, left = velocities.T
    there = np.stack([cos * forward - sin * left, sin * forward + cos * left], axis=1)
    way = (there[1:] + there[:-1]) / 2 * seconds[:, None]
    error = np.linalg.norm(np.diff(poses[:, :2], axis=0) - way, axis=1)
    least, share = MOTION_TOLERANCE
    even = np.abs(seconds - STEP) <= STEP_TOLERANCE
    return _frames(even & (error > least + share * np.linalg.norm(way, axis=1))) + 1


def unlikely_boxes(boxes: NDArray[np.float64], velocities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(box,) whether it is hardly real; boxes (box, 7) as in `logs.Annotations`, velocities (box, 2) [m/s]."""
    sizes = boxes[:, 3:6]
    found = (sizes == 0).any(axis=1) | (sizes > BOX_SIZE).any(axis=1)
    found |= (np.abs(boxes[:, :3]) > BOX_DISTANCE).any(axis=1) | (np.abs(boxes[:, 6]) > BOX_YAW)
    return np.asarray(found | (np.hypot(velocities[:, 0], velocities[:, 1]) > BOX_SPEED))


def in_window(odd: Mapping[str, Frames], first: int, stop: int) -> tuple[str, ...]:
    """Causes that concern the frames from ``first`` to before ``stop``; a step has both its frames there."""
    steps = ("uneven_times", "unlikely_motion")
    return tuple(
        cause
        for cause, frames in odd.items()
        if np.searchsorted(frames, first + (cause in steps)) < np.searchsorted(frames, stop)
    )


def odd_lines(counts: Mapping[str, int], scenes: int) -> list[str]:
    """'3 of 12 scenes have frames that are not 0.5 s apart', by cause."""
    return [f"{counts[cause]} of {scenes} scenes have {words}" for cause, words in ODD.items() if counts.get(cause)]


def _frames(found: NDArray[np.bool_]) -> Frames:
    return np.flatnonzero(found).astype(np.int64)
