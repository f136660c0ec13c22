"""The paths that vehicles follow: base lines with the progress along them, of many vehicles at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.files.ragged import ranges
from navsim_bridge.traffic.shapes import Shapes

Float = NDArray[np.float64]
Int = NDArray[np.int64]

_SAME = 1e-8
"""[m] Points of a line that are no further apart are one."""


@dataclass(frozen=True)
class Paths:
    """Paths of many vehicles; a ``path`` below is an index (any shape) into them.

    As in the devkit, a path has the points of a base line without its last, and of points that are the same the last.
    """

    progress: Float  # (path, point) [m] from the start of the base line, increasing; infinite behind the last point
    points: Float  # (path, point, 3) x, y, heading towards the next point of the base line, unwrapped
    count: Int  # (path,) points of the path; a path of one point has no length

    @classmethod
    def of(cls, lines: Sequence[Float]) -> Paths:
        """Paths of base lines (point >= 2, 2)."""
        found = [_path(line) for line in lines]
        count = np.array([len(progress) for progress, _ in found], dtype=np.int64)
        most = int(count.max(initial=1))
        progress = np.full((len(found), most), np.inf)
        points = np.zeros((len(found), most, 3))
        for i, (along, poses) in enumerate(found):
            progress[i, : len(along)], points[i, : len(along)] = along, poses
        return cls(progress, points, count)

    @cached_property
    def end(self) -> Float:
        """(path,) [m] progress of the last point."""
        return np.take_along_axis(self.progress, self.count[:, None] - 1, axis=1)[:, 0]

    def clamp(self, path: Int, progress: Float) -> Float:
        """Progress between start and end."""
        return np.maximum(self.progress[path, 0], np.minimum(progress, self.end[path]))

    def poses(self, path: Int, progress: Float) -> Float:
        """(..., 3) x, y, heading in [-pi, pi) at a clamped progress."""
        last = self.count[path] - 1
        high = np.clip((self.progress[path] < progress[..., None]).sum(axis=-1), np.minimum(1, last), last)
        low = np.maximum(high - 1, 0)
        start, end = self.points[path, low], self.points[path, high]
        from_, to = self.progress[path, low], self.progress[path, high]
        span = np.where(high > low, to - from_, 1.0)
        poses = (end - start) / span[..., None] * (progress - from_)[..., None] + start
        poses[..., 2] = (poses[..., 2] + np.pi) % (2 * np.pi) - np.pi
        return poses

    def rest(self, path: Int, progress: Float) -> Shapes:
        """Lines (path,) from a clamped progress to the end; at the end the last piece."""
        first = (self.progress[path] <= progress[:, None]).sum(axis=1)
        at_end = first == self.count[path]
        start = self.poses(path, progress)[:, :2]
        last = np.maximum(self.count[path] - 2, 0)
        start[at_end] = self.points[path, last, :2][at_end]
        first = np.where(at_end, self.count[path] - 1, first)
        return self._lines(path, start, first, self.count[path], None)

    def part(self, path: Int, start: Float, end: Float) -> Shapes:
        """Lines (path,) between clamped progresses; the last piece where the start is the end of the path, and the
        first piece where the end is its start."""
        count = self.count[path]
        first = (self.progress[path] <= start[:, None]).sum(axis=1)
        behind = (self.progress[path] < end[:, None]).sum(axis=1)
        stop = np.maximum(behind, first)
        starts, ends = self.poses(path, start)[:, :2], self.poses(path, end)[:, :2]
        short = np.stack([np.maximum(count - 2, 0), np.minimum(1, count - 1)])  # last piece, first piece
        for where, (one, two) in (
            (behind == 0, (np.zeros_like(count), short[1])),
            (first == count, (short[0], count - 1)),
        ):
            starts[where], ends[where] = self.points[path, one, :2][where], self.points[path, two, :2][where]
            stop[where] = first[where]
        return self._lines(path, starts, first, stop, ends)

    def _lines(self, path: Int, starts: Float, first: Int, stop: Int, ends: Float | None) -> Shapes:
        """Lines of a start, the points from ``first`` up to ``stop`` of the path, and an end, if there is one."""
        middle = stop - first
        total = middle + (1 if ends is None else 2)
        begin = np.cumsum(total) - total
        coordinates = np.empty((int(total.sum()), 2))
        coordinates[begin] = starts
        coordinates[ranges(begin + 1, middle)] = self.points[np.repeat(path, middle), ranges(first, middle), :2]
        if ends is not None:
            coordinates[begin + total - 1] = ends
        lines = shapely.linestrings(coordinates, indices=np.repeat(np.arange(len(path)), total))
        return np.asarray(lines, dtype=object)


def _path(line: Float) -> tuple[Float, Float]:
    steps = np.diff(line, axis=0)
    lengths = np.cumsum(np.append(0.0, np.linalg.norm(steps, axis=1)))
    keep = ~np.isclose(np.diff(lengths), 0.0, rtol=0.0, atol=_SAME)
    if not keep.any():
        keep[0] = True
    headings = np.unwrap(np.arctan2(steps[keep, 1], steps[keep, 0]))
    return lengths[:-1][keep], np.column_stack([line[:-1][keep], headings])
