"""The paths that proposals follow: the centerline and lines beside it, looked up by distance along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from shapely.ops import substring

from navsim_bridge.ego import EGO_WIDTH

Float = NDArray[np.float64]

LATERAL_OFFSETS = (0.0, -1.0, 1.0)
"""[m] to the left of the centerline, in the devkit's order."""
_SHORTEST = 1e-5  # [m] lookups start here, past a first point that is there twice
_ROUND_SEGMENTS = 16  # per quarter circle of a corridor's bends, as shapely's method has it


@dataclass(frozen=True)
class Paths:
    """Polylines of many scenes, padded; path axis first, three paths a scene."""

    points: Float  # (path, point, 3) x, y, unwrapped heading; the last point repeated as padding
    progress: Float  # (path, point) [m] from the first point; +inf as padding
    count: NDArray[np.int64]  # (path,) valid points
    lines: NDArray[np.object_]  # (path,) shapely LineString
    length: Float  # (path,) [m]

    @classmethod
    def beside(cls, centerlines: Sequence[Float]) -> Paths:
        """`LATERAL_OFFSETS` paths for each centerline (point, 3), scene after scene."""
        paths = []
        for line in centerlines:
            normal = line[:, 2] + np.pi / 2
            aside = np.stack([np.cos(normal), np.sin(normal)], axis=1)
            paths += [line] + [np.column_stack([line[:, :2] + aside * o, line[:, 2]]) for o in LATERAL_OFFSETS[1:]]
        count = np.array([len(path) for path in paths], dtype=np.int64)
        points = np.stack([np.pad(path, ((0, count.max() - len(path)), (0, 0)), mode="edge") for path in paths])
        points[..., 2] = np.unwrap(points[..., 2], axis=1)
        steps = np.diff(points[..., :2], axis=1)
        progress = np.zeros(points.shape[:2])
        np.cumsum(np.sqrt(steps[..., 0] ** 2 + steps[..., 1] ** 2), axis=1, out=progress[:, 1:])
        length = progress[:, -1].copy()
        progress[np.arange(points.shape[1]) >= count[:, None]] = np.inf
        lines = np.array([shapely.linestrings(path[:, :2]) for path in paths], dtype=object)
        return cls(points, progress, count, lines, length)

    def at(self, rows: NDArray[np.int64], distance: Float) -> Float:
        """Poses (row, k, 3) at ``distance`` (row, k) along the paths ``rows`` (row,), clipped to their ends."""
        distance = np.minimum(np.maximum(distance, _SHORTEST), self.length[rows, None])
        progress = self.progress[rows]
        upper = torch.searchsorted(torch.from_numpy(progress), torch.from_numpy(distance)).numpy()
        upper = np.clip(upper, 1, self.count[rows, None] - 1)
        row = np.arange(len(rows))[:, None]
        path = rows[:, None]
        start, end = self.points[path, upper - 1], self.points[path, upper]
        from_start, span = progress[row, upper - 1], progress[row, upper] - progress[row, upper - 1]
        poses = (end - start) / span[..., None] * (distance - from_start)[..., None] + start
        poses[..., 2] = np.arctan2(np.sin(poses[..., 2]), np.cos(poses[..., 2]))
        return np.nan_to_num(poses, nan=0.0, posinf=np.inf, neginf=-np.inf)  # no number becomes zero, as in the devkit

    def project(self, rows: NDArray[np.int64], points: Float) -> Float:
        """Distance [m] (n,) along the paths ``rows`` (n,) of their points nearest to ``points`` (n, 2)."""
        return np.asarray(shapely.line_locate_point(self.lines[rows], shapely.points(points)), dtype=np.float64)

    def corridor(self, row: int, start: float, end: float) -> shapely.Polygon:
        """What the ego's width sweeps between two distances, with square ends.

        It runs through whole points of the path: it begins at the first one after ``start``.
        """
        start, end = np.clip(start, 0.0, self.length[row]), np.clip(end, 0.0, self.length[row])
        progress = self.progress[row]
        inside = (start <= progress) & (progress <= end)
        if inside.sum() > 1:
            line = shapely.linestrings(self.points[row, inside, :2])
        else:
            line = substring(self.lines[row], start, end)
        return shapely.buffer(line, EGO_WIDTH / 2, quad_segs=_ROUND_SEGMENTS, cap_style="square")
