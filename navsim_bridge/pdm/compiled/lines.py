"""``geometry.project_on_polyline`` and ``geometry.near_polyline`` compiled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.pdm.compiled.jit import helper, kernel


@helper
def _segments(line: Any, count: int) -> Any:
    """Start, step, squared length, length, where it begins along the line, middle: (segment, 9)."""
    segments = np.empty((count - 1, 9))
    begins_at = 0.0
    for i in range(count - 1):
        step_x, step_y = line[i + 1, 0] - line[i, 0], line[i + 1, 1] - line[i, 1]
        squared = step_x * step_x + step_y * step_y
        segment = segments[i]
        segment[0], segment[1], segment[2], segment[3] = line[i, 0], line[i, 1], step_x, step_y
        segment[4], segment[5] = squared, math.sqrt(squared)
        begins_at += segment[5]
        segment[6] = begins_at - segment[5]
        segment[7], segment[8] = (line[i + 1, 0] + line[i, 0]) / 2, (line[i + 1, 1] + line[i, 1]) / 2
    return segments


@helper
def _may_be_nearer(px: float, py: float, segments: Any, i: int, limit: float) -> bool:
    """Whether a segment can come within ``limit`` of a point, going by its middle."""
    dx, dy, reach = px - segments[i, 7], py - segments[i, 8], limit + (segments[i, 5] * 0.5 + 1e-6)
    return dx * dx + dy * dy <= reach * reach


@helper
def _to_segment(px: float, py: float, line: Any, segments: Any, i: int) -> Any:
    """``geometry._to_segment``: fraction along the segment, unclamped, and distance."""
    x, y, squared = px - segments[i, 0], py - segments[i, 1], segments[i, 4]
    if squared == 0:
        return 0.0, math.sqrt(x * x + y * y)
    fraction = (x * segments[i, 2] + y * segments[i, 3]) / squared
    if fraction <= 0:
        return fraction, math.sqrt(x * x + y * y)
    if fraction >= 1:
        x, y = px - line[i + 1, 0], py - line[i + 1, 1]
        return fraction, math.sqrt(x * x + y * y)
    return fraction, abs((x * segments[i, 3] - y * segments[i, 2]) / squared) * math.sqrt(squared)


@kernel("void(f8[:,:,:], f8[:,:,:], i8[:], f8[:,::1])")
def _project(points: Any, lines: Any, counts: Any, along: Any) -> None:
    for s in range(len(points)):
        line, segments = lines[s], _segments(lines[s], counts[s])
        for p in range(points.shape[1]):
            px, py = points[s, p, 0], points[s, p, 1]
            best, foot, nearest = np.inf, 0.0, 0
            for i in range(len(segments)):
                if _may_be_nearer(px, py, segments, i, best):
                    fraction, distance = _to_segment(px, py, line, segments, i)
                    if distance < best:
                        best, foot, nearest = distance, fraction, i
            along[s, p] = segments[nearest, 6] + min(max(foot, 0.0), 1.0) * segments[nearest, 5]


@kernel("void(f8[:,:,:], f8[:,:,:], i8[:], f8, b1[:,::1])")
def _near(points: Any, lines: Any, counts: Any, limit: float, near: Any) -> None:
    for s in range(len(points)):
        line, segments = lines[s], _segments(lines[s], counts[s])
        for p in range(points.shape[1]):
            near[s, p] = False
            px, py = points[s, p, 0], points[s, p, 1]
            for i in range(len(segments)):
                if not _may_be_nearer(px, py, segments, i, limit):
                    continue
                if _to_segment(px, py, line, segments, i)[1] <= limit:
                    near[s, p] = True
                    break


def project_on_polyline(points: Tensor, line: Tensor, mask: Tensor) -> Tensor:
    """As ``geometry.project_on_polyline``."""
    along = np.empty(points.shape[:2])
    _project(points.numpy(), line.numpy(), mask.sum(-1).numpy(), along)
    return torch.from_numpy(along)


def near_polyline(points: Tensor, line: Tensor, mask: Tensor, limit: float) -> Tensor:
    """As ``geometry.near_polyline``."""
    near = np.empty(points.shape[:2], np.bool_)
    _near(points.numpy(), line.numpy(), mask.sum(-1).numpy(), limit, near)
    return torch.from_numpy(near)
