"""Boxes and strips along lanes as shapes, cornered and rounded as nuPlan does it, so that decisions on them agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

Float = NDArray[np.float64]
Shapes = NDArray[np.object_]

QUARTER_POINTS = 16
"""Points that a quarter of a circle is rounded to."""
TOLERANCE = 1e-5
"""[m] By which the devkit simplifies what vehicles occupy."""
SLACK = 1.05
"""A rounded strip lies within this part of its half width around its line: rounding takes a hundredth of it."""


def rectangles(boxes: Float) -> Shapes:
    """Polygons of boxes (..., 5), center x, center y, heading, length, width; corners go round from the front left."""
    x, y, heading, length, width = np.moveaxis(boxes, -1, 0)
    forward = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    left = np.stack([np.cos(heading + np.pi / 2), np.sin(heading + np.pi / 2)], axis=-1)
    along, across = (length / 2)[..., None] * forward, (width / 2)[..., None] * left
    center = np.stack([x, y], axis=-1)
    corners = np.stack([across + along, across - along, -across - along, -across + along], axis=-2)
    return np.asarray(shapely.polygons(center[..., None, :] + corners))


def strips(lines: Shapes, half_widths: Float) -> Shapes:
    """Lines made wide, with flat ends; a line without length has no strip: it is empty."""
    return _array(shapely.buffer(lines, half_widths, quad_segs=QUARTER_POINTS, cap_style="flat"))


def occupied(lines: Shapes, half_widths: Float, boxes: Shapes) -> Shapes:
    """Boxes together with the strips ahead of them, simplified."""
    joined = shapely.union_all(np.stack([strips(lines, half_widths), boxes]), axis=0)
    return _array(shapely.simplify(joined, TOLERANCE, preserve_topology=True))


def _array(found: Any) -> Shapes:
    return np.asarray(found, dtype=object)
