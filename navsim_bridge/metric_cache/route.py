"""On-route lanes and the centreline along which progress is measured.

The devkit measures progress along the centreline of its reference planner: the base lines of a chain of on-route
lanes, from the start of the lane the ego is in. Here the chain is the one nearest to the recorded path, followed
past the end of the route where that is close, so that a plan does not run off the line's end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.maps import Lane, MapError, VectorMap, with_headings

AHEAD = 100.0
"""Metres of centreline in front of the ego, where lanes go on that far."""
FARTHEST = 8.0
"""A chain of lanes that the recorded path leaves by more metres than this is not its centreline."""
_MAX_CHAINS = 64
_MAX_LANES = 30

FROM_LANES = "on-route lanes nearest to the recorded path"
FROM_RECORDING = "recorded path, continued straight"

_Chain = tuple[NDArray[np.float64], shapely.LineString]


def route_lanes(vector_map: VectorMap, route: Sequence[str]) -> tuple[str, ...]:
    """Lanes and connectors of the route's roadblocks, in route order."""
    lanes: dict[str, None] = {}
    for block in dict.fromkeys(route):
        if block not in vector_map.blocks:
            raise MapError(f"{vector_map.path}: route names roadblock {block}, which the map does not have")
        lanes.update(dict.fromkeys(vector_map.blocks[block].lanes))
    return tuple(lanes)


class Centerlines:
    """Builds centrelines on one map; chains of lanes are kept, because neighbouring scenes share them."""

    def __init__(self, vector_map: VectorMap) -> None:
        self._map = vector_map
        self._chains: dict[tuple[str, tuple[str, ...]], list[_Chain]] = {}

    def find(
        self, on_route: tuple[str, ...], pose: NDArray[np.float64], recorded: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], str]:
        """The centreline of a scene and how it was made (`FROM_LANES` or `FROM_RECORDING`).

        Args:
            on_route: from `route_lanes`.
            pose: (3,) global rear-axle pose at t = 0.
            recorded: (frame, 3) recorded global poses from t = 0 on.

        Returns:
            (point, 3) x, y, heading in the global frame.
        """
        points = shapely.points(recorded[:, :2])
        best: NDArray[np.float64] | None = None
        lowest = (np.inf, 0.0)
        for lane in self._start_lanes(on_route, pose):
            for line, shape in self._chains_from(lane.id, on_route):
                away = shapely.distance(shape, points)
                cost = (round(float(away.mean()), 3), -shape.length)  # equally near: the longer one
                if away.max() <= FARTHEST and cost < lowest:
                    best, lowest = line, cost
        if best is not None:
            return best, FROM_LANES
        return _recorded_line(recorded), FROM_RECORDING

    def _start_lanes(self, on_route: tuple[str, ...], pose: NDArray[np.float64]) -> list[Lane]:
        """On-route lanes at the ego that lead its way."""
        allowed = set(on_route)
        lanes = [lane for lane in self._map.lanes_at(pose[0], pose[1]) if lane.id in allowed]
        return [lane for lane in lanes if _heading_error(lane, pose) < np.pi / 2]

    def _chains_from(self, start: str, on_route: tuple[str, ...]) -> list[_Chain]:
        key = (start, on_route)
        if key not in self._chains:
            allowed = set(on_route)
            # Far enough from anywhere on the first lane.
            first = self._map.lanes[start].baseline
            enough = AHEAD + _length(first)
            done: list[list[str]] = []
            open_chains: list[tuple[list[str], float]] = [([start], _length(first))]
            while open_chains and len(done) < _MAX_CHAINS:
                chain, length = open_chains.pop()
                lane = self._map.lanes[chain[-1]]
                following = [i for i in lane.outgoing if i in allowed and i not in chain]
                if not following:  # the route ends: go straight on
                    following = self._straightest([i for i in lane.outgoing if i not in chain])
                if not following or length >= enough or len(chain) >= _MAX_LANES:
                    done.append(chain)
                open_chains += [
                    ([*chain, i], length + _length(self._map.lanes[i].baseline))
                    for i in (following if length < enough and len(chain) < _MAX_LANES else [])
                ]
            self._chains[key] = [self._line(chain) for chain in done]
        return self._chains[key]

    def _straightest(self, lanes: Sequence[str]) -> list[str]:
        def bend(lane: str) -> float:
            headings = self._map.lanes[lane].baseline[:, 2]
            return abs(float(np.mod(headings[-1] - headings[0] + np.pi, 2 * np.pi) - np.pi))

        return [min(lanes, key=bend)] if lanes else []

    def _line(self, chain: Sequence[str]) -> _Chain:
        points = np.concatenate([self._map.lanes[i].baseline[:, :2] for i in chain])
        line = with_headings(_thinned(points, 0.01))
        return line, shapely.linestrings(line[:, :2])


def _recorded_line(recorded: NDArray[np.float64]) -> NDArray[np.float64]:
    """The recorded path, continued straight for `AHEAD` metres."""
    points = _thinned(recorded[:, :2], 0.1)
    heading = recorded[-1, 2]
    end = points[-1] + AHEAD * np.array([np.cos(heading), np.sin(heading)])
    return with_headings(np.vstack([points, end]))


def _thinned(points: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """``points`` without those nearer than ``spacing`` to the last one kept."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if (steps >= spacing).all():
        return points
    kept = [points[0]]
    for point in points[1:]:
        if np.linalg.norm(point - kept[-1]) >= spacing:
            kept.append(point)
    return np.array(kept)


def _length(line: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1).sum())


def _heading_error(lane: Lane, pose: NDArray[np.float64]) -> float:
    nearest = np.argmin(np.linalg.norm(lane.baseline[:, :2] - pose[:2], axis=1))
    return abs(float(np.mod(lane.baseline[nearest, 2] - pose[2] + np.pi, 2 * np.pi) - np.pi))
