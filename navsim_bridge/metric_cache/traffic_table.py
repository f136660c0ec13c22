"""`TrafficInputs` of many scenes as flat arrays: the base lines that vehicles follow are stored once each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.files.ragged import ranges
from navsim_bridge.pdm.metric_scene import TrafficInputs

Arrays = Mapping[str, NDArray[Any]]


def pack_traffic(inputs: Sequence[TrafficInputs]) -> dict[str, NDArray[Any]]:
    """The arrays of at least one scene."""
    lines: dict[bytes, int] = {}
    of_follower = [
        lines.setdefault(line.astype(np.float64).tobytes(), len(lines))
        for one in inputs
        for line in np.split(one.line_points, one.line_offsets[1:])[:-1]
    ]

    def joined(values: Iterable[Any]) -> NDArray[np.float64]:
        return np.concatenate([np.asarray(value, dtype=np.float64) for value in values])

    return {
        "track_present": _flags(one.present for one in inputs),
        "vehicle_track": _small(v for one in inputs for v in one.vehicle_track),
        "vehicle_velocity": joined(one.vehicle_velocity for one in inputs),
        "vehicle_parked": _flags(one.parked for one in inputs),
        "vehicle_count": _small(len(one.vehicle_track) for one in inputs),
        "follower": _small(v for one in inputs for v in one.follower),
        "follower_pose": joined(one.follower_pose for one in inputs),
        "follower_progress": joined(one.follower_progress for one in inputs),
        "follower_limit": joined(one.follower_limit for one in inputs),
        "follower_line": _small(of_follower),
        "follower_count": _small(len(one.follower) for one in inputs),
        "line_points": np.frombuffer(b"".join(lines), dtype=np.float64).reshape(-1, 2),
        "line_count": _small(len(line) // 16 for line in lines),
    }


class TrafficTable:
    """What `pack_traffic` was given, scene by scene."""

    def __init__(self, arrays: Arrays) -> None:
        """``arrays``: of the file, checked."""
        self._arrays = arrays
        self._line_counts = arrays["line_count"].astype(np.int64)
        self._line_starts = np.cumsum(self._line_counts) - self._line_counts

    def inputs(self, tracks: slice, vehicles: slice, followers: slice) -> TrafficInputs:
        """Of one scene, whose parts of the arrays are given; copies, so that none keeps the file mapped."""
        a = self._arrays
        lines = a["follower_line"][followers].astype(np.int64)
        counts = self._line_counts[lines]
        return TrafficInputs(
            present=a["track_present"][tracks].astype(bool),
            vehicle_track=a["vehicle_track"][vehicles].astype(np.int64),
            vehicle_velocity=a["vehicle_velocity"][vehicles].copy(),
            parked=a["vehicle_parked"][vehicles].astype(bool),
            follower=a["follower"][followers].astype(np.int64),
            follower_pose=a["follower_pose"][followers].copy(),
            follower_progress=a["follower_progress"][followers].copy(),
            follower_limit=a["follower_limit"][followers].copy(),
            line_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            line_points=a["line_points"][ranges(self._line_starts[lines], counts)],
        )


def _flags(values: Iterable[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    return np.concatenate(list(values)).astype(np.uint8)


def _small(values: Iterable[Any]) -> NDArray[np.integer]:
    """Numbers from 0 in the smallest unsigned type that holds them."""
    array = np.array(list(values), dtype=np.int64)
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))
