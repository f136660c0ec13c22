"""Corners of boxes and distances between them, many pairs at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.ego import HALF_EGO, REAR_AXLE_TO_CENTER

Float = NDArray[np.float64]

EGO_HALF = np.array(HALF_EGO)
_SIGNS = np.array(
    [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
)  # front left, rear left, rear right, front right


def corners(centers: Float, headings: Float, half: Float) -> Float:
    """(..., 4, 2) corners of boxes, front left first; ``half`` (..., 2) is half length and half width."""
    cos, sin = np.cos(headings)[..., None], np.sin(headings)[..., None]
    along, aside = np.moveaxis(half[..., None, :] * _SIGNS, -1, 0)
    return centers[..., None, :] + np.stack([along * cos - aside * sin, along * sin + aside * cos], axis=-1)


def ego_centers(poses: Float) -> Float:
    """(..., 2) center of the ego box for rear-axle poses (..., 3)."""
    heading = poses[..., 2]
    return poses[..., :2] + REAR_AXLE_TO_CENTER * np.stack([np.cos(heading), np.sin(heading)], axis=-1)


def box_distance(
    center_a: Float, heading_a: Float, half_a: Float, center_b: Float, heading_b: Float, half_b: Float
) -> Float:
    """Distance [m] between oriented boxes, zero where they share a point.

    Boxes that do not overlap are nearest at a corner of one of them.

    Args:
        center_a, center_b: (..., 2).
        heading_a, heading_b: (...) [rad].
        half_a, half_b: (..., 2) half length and half width.
    """
    offset = center_b - center_a
    turn = heading_b - heading_a
    b_in_a = _rotated(offset, -heading_a)
    a_in_b = _rotated(-offset, -heading_b)
    corners_b = corners(b_in_a, turn, half_b)
    corners_a = corners(a_in_b, -turn, half_a)
    apart = np.minimum(_outside(corners_b, half_a).min(-1), _outside(corners_a, half_b).min(-1))
    # two boxes can cross without a corner inside the other: no axis separates them then
    across, along = np.abs(np.sin(turn))[..., None], np.abs(np.cos(turn))[..., None]
    reach_b = half_b * along + half_b[..., ::-1] * across
    reach_a = half_a * along + half_a[..., ::-1] * across
    overlap = ((np.abs(b_in_a) <= half_a + reach_b) & (np.abs(a_in_b) <= half_b + reach_a)).all(-1)
    return np.where(overlap, 0.0, apart)


def _rotated(points: Float, angle: Float) -> Float:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([points[..., 0] * cos - points[..., 1] * sin, points[..., 0] * sin + points[..., 1] * cos], axis=-1)


def _outside(points: Float, half: Float) -> Float:
    """Distance of points (..., 4, 2) to the box around the origin."""
    beyond = np.maximum(np.abs(points) - half[..., None, :], 0.0)
    return np.hypot(beyond[..., 0], beyond[..., 1])
