"""Plane curves as polylines ``(n, 2)`` in meters: resampling, offsets, rounded corners, smoothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def arc_length(line: Float) -> Float:
    """Distance along the polyline at every point, ``(n,)``, first 0."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    return np.concatenate([[0.0], np.cumsum(steps)])


def resample(line: Float, step: float) -> Float:
    """Points at equal spacing of at most ``step`` along the polyline; both ends kept."""
    s = arc_length(line)
    count = max(2, int(np.ceil(s[-1] / step)) + 1)
    return sample_at(line, np.linspace(0.0, s[-1], count))


def sample_at(line: Float, stations: Float) -> Float:
    """Points at the given distances along the polyline, clamped to its ends."""
    s = arc_length(line)
    return np.stack([np.interp(stations, s, line[:, 0]), np.interp(stations, s, line[:, 1])], axis=-1)


def headings(line: Float) -> Float:
    """Unwrapped tangent angle at every point (central differences), ``(n,)`` rad."""
    d = np.gradient(line, axis=0)
    return np.unwrap(np.arctan2(d[:, 1], d[:, 0]))


def normals(line: Float) -> Float:
    """Left unit normals, ``(n, 2)``."""
    h = headings(line)
    return np.stack([-np.sin(h), np.cos(h)], axis=-1)


def offset(line: Float, distance: float | Float) -> Float:
    """The polyline shifted to its left by ``distance`` (negative: to its right)."""
    return line + normals(line) * np.broadcast_to(np.asarray(distance), (len(line),))[:, None]


def trim(line: Float, start: float, end: float, step: float) -> Float:
    """Cut ``start`` meters off the beginning and ``end`` meters off the end, then resample."""
    s = arc_length(line)
    if s[-1] <= start + end + 2 * step:
        raise ValueError(f"a line of {s[-1]:.1f} m cannot lose {start:.1f} m and {end:.1f} m at its ends")
    inner = s[(s > start) & (s < s[-1] - end)]
    return resample(sample_at(line, np.concatenate([[start], inner, [s[-1] - end]])), step)


def round_corners(points: Float, radius: float, step: float = 0.5) -> Float:
    """Polyline through ``points`` whose inner corners are replaced by arcs of (at most) ``radius``."""
    out = [points[0]]
    for before, corner, after in zip(points[:-2], points[1:-1], points[2:]):
        a, b = before - corner, after - corner
        la, lb = np.linalg.norm(a), np.linalg.norm(b)
        a, b = a / la, b / lb
        half = 0.5 * np.arccos(np.clip(a @ b, -1.0, 1.0))  # half of the inner angle
        if half > np.pi / 2 - 1e-3:
            out.append(corner)
            continue
        reach = min(radius / np.tan(half), 0.48 * la, 0.48 * lb)
        r = reach * np.tan(half)
        center = corner + (a + b) / np.linalg.norm(a + b) * (r / np.sin(half))
        start, end = corner + a * reach - center, corner + b * reach - center
        a0 = np.arctan2(start[1], start[0])
        turn = np.angle(np.exp(1j * (np.arctan2(end[1], end[0]) - a0)))
        angles = a0 + np.linspace(0.0, turn, max(3, int(abs(turn) * r / step)))
        out.extend(center + r * np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    out.append(points[-1])
    return resample(np.asarray(out), step)


def bezier(start: Float, heading: float, end: Float, end_heading: float, tension: float = 0.0) -> Float:
    """Cubic curve between two poses; the default handles make near-circular quarter turns."""
    distance = float(np.linalg.norm(end - start))
    turn = abs(float(np.angle(np.exp(1j * (end_heading - heading)))))
    circle = 4.0 / 3.0 * np.tan(turn / 4.0) / max(2.0 * np.sin(turn / 2.0), 1e-6) if turn > 1e-3 else 1 / 3
    handle = distance * (circle if tension == 0.0 else tension)
    p1 = start + handle * np.array([np.cos(heading), np.sin(heading)])
    p2 = end - handle * np.array([np.cos(end_heading), np.sin(end_heading)])
    t = np.linspace(0.0, 1.0, 80)[:, None]
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * end


def smooth(line: Float, sigma: float) -> Float:
    """Gaussian smoothing along an evenly spaced polyline; ``sigma`` in points. Makes curvature continuous."""
    reach = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    head = 2 * line[0] - line[reach:0:-1]  # point reflection keeps the end points and directions
    tail = 2 * line[-1] - line[-2 : -reach - 2 : -1]
    padded = np.concatenate([head, line, tail])
    return np.stack([np.convolve(padded[:, i], weights, mode="valid") for i in range(2)], axis=-1)


def curvature(line: Float) -> Float:
    """Signed curvature [1/m] at every point of a polyline (left positive)."""
    s = arc_length(line)
    return np.gradient(headings(line), np.maximum.accumulate(s + np.arange(len(s)) * 1e-12))


def smoothstep(x: Float) -> Float:
    """0 below 0, 1 above 1, with zero first and second derivative at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x**3 * (x * (6 * x - 15) + 10)


def band(line: Float, left: float, right: float) -> Float:
    """Open polygon between two offsets of a polyline (``left`` > ``right``), counter-clockwise."""
    return np.concatenate([offset(line, right), offset(line, left)[::-1]])
