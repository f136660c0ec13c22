"""Plane geometry of the PDM score as batched tensor functions: poses, boxes, polygons, polylines.

Everything here is float64 and free of Python loops over the batch. Conventions are those of the
devkit: left is +90 degrees, ``contains`` is strict (a point on an edge is outside), ``intersects``
counts touching.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VEHICLE_WIDTH = 2.297  # [m] ego vehicle of nuPlan and NAVSIM (Pacifica)
VEHICLE_LENGTH = 5.176  # [m]
WHEEL_BASE = 3.089  # [m]
REAR_AXLE_TO_CENTER = 2.588 - 1.127  # [m] half the length minus the rear overhang

CENTER, REAR_AXLE = 4, 5  # positions in the last-but-one axis of ego_points; 0..3 are the corners

_BOUNDARY = 1024.0  # added to a crossing count when the point lies on the ring; beyond any real count


def wrap_angle(angle: Tensor) -> Tensor:
    """Angle [rad] folded into [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def read_back_rear_axle(poses: Tensor) -> Tensor:
    """Rear-axle poses (..., 3) after the devkit's round trip over the vehicle centre.

    The devkit's ego state stores the centre and recomputes the rear axle from it, which moves a
    map-sized coordinate by about one rounding unit. Poses must be in the global frame to reproduce it.
    """
    x, y, heading = poses.unbind(-1)
    step_x = REAR_AXLE_TO_CENTER * torch.cos(heading)
    step_y = REAR_AXLE_TO_CENTER * torch.sin(heading)
    return torch.stack(((x + step_x) - step_x, (y + step_y) - step_y, heading), dim=-1)


def ego_points(states: Tensor) -> Tensor:
    """Points of the ego box for rear-axle states (..., >=3): returns (..., 6, 2).

    Order: front left, rear left, rear right, front right, centre, rear axle.
    """
    x, y, heading = states[..., 0], states[..., 1], states[..., 2]
    cos, sin = torch.cos(heading), torch.sin(heading)
    front = REAR_AXLE_TO_CENTER + VEHICLE_LENGTH / 2
    rear = REAR_AXLE_TO_CENTER - VEHICLE_LENGTH / 2
    left = VEHICLE_WIDTH / 2
    offsets = ((front, left), (rear, left), (rear, -left), (front, -left), (REAR_AXLE_TO_CENTER, 0.0), (0.0, 0.0))
    xs = torch.stack([x + lon * cos - lat * sin for lon, lat in offsets], dim=-1)
    ys = torch.stack([y + lon * sin + lat * cos for lon, lat in offsets], dim=-1)
    return torch.stack((xs, ys), dim=-1)


def ego_center(states: Tensor) -> Tensor:
    """Centre of the ego box (..., 2) for rear-axle states (..., >=3)."""
    heading = states[..., 2]
    return torch.stack(
        (
            states[..., 0] + REAR_AXLE_TO_CENTER * torch.cos(heading),
            states[..., 1] + REAR_AXLE_TO_CENTER * torch.sin(heading),
        ),
        dim=-1,
    )


def boxes_intersect(
    center_a: Tensor,
    heading_a: Tensor,
    half_a: tuple[float, float],
    center_b: Tensor,
    heading_b: Tensor,
    half_b: Tensor,
) -> Tensor:
    """Whether two oriented boxes share at least one point (touching counts); separating axes.

    Args:
        center_a, center_b: (..., 2) box centres [m].
        heading_a, heading_b: (...) [rad].
        half_a: half length and half width of the first box [m]; (0, w) is a segment across the heading.
        half_b: (..., 2) half length and half width of the second box [m].
    """
    offset_x = center_b[..., 0] - center_a[..., 0]
    offset_y = center_b[..., 1] - center_a[..., 1]
    cos_a, sin_a, cos_b, sin_b = heading_a.cos(), heading_a.sin(), heading_b.cos(), heading_b.sin()
    aligned = (cos_a * cos_b + sin_a * sin_b).abs()
    across = (cos_a * sin_b - sin_a * cos_b).abs()
    length_a, width_a = half_a
    length_b, width_b = half_b[..., 0], half_b[..., 1]
    return (
        ((offset_x * cos_a + offset_y * sin_a).abs() <= length_a + length_b * aligned + width_b * across)
        & ((offset_y * cos_a - offset_x * sin_a).abs() <= width_a + length_b * across + width_b * aligned)
        & ((offset_x * cos_b + offset_y * sin_b).abs() <= length_b + length_a * aligned + width_a * across)
        & ((offset_y * cos_b - offset_x * sin_b).abs() <= width_b + length_a * across + width_a * aligned)
    )


def points_in_polygons(points: Tensor, chains: Tensor, chain_polygon: Tensor, num_polygons: int) -> Tensor:
    """Strict point-in-polygon tests with holes, all points against all polygons of their scene.

    A polygon's rings are cut into chains of consecutive edges. The parity of crossings of a chain with
    the ray from the point towards -x is exact without looking at its edges whenever the point is outside
    the chain's bounding box: zero, or whether the chain's two ends lie on different sides of the ray. Only
    the few (point, chain) pairs with the point inside the box are tested edge by edge.

    Args:
        points: (scene, point, 2) [m].
        chains: (scene, chain, edge + 1, 2) vertices, +inf where a chain is padding.
        chain_polygon: (scene, chain) index of the polygon of each chain.
        num_polygons: size of the polygon axis.

    Returns:
        (scene, polygon, point) bool. Points on an edge, on a vertex or in a hole are outside.
    """
    num_scenes, num_chains = chain_polygon.shape
    num_points = points.shape[1]
    if num_chains == 0 or num_points == 0:
        return torch.zeros((num_scenes, num_polygons, num_points), dtype=torch.bool, device=points.device)
    x, y = points[..., 0].unsqueeze(1), points[..., 1].unsqueeze(1)  # (scene, 1, point)
    low, high = chains.amin(2).unsqueeze(-1), chains.amax(2).unsqueeze(-1)  # (scene, chain, 2, 1)
    right = x > high[:, :, 0]
    crossed = (chains[:, :, 0, 1].unsqueeze(-1) <= y) ^ (chains[:, :, -1, 1].unsqueeze(-1) <= y)
    crossed &= right
    in_box = x >= low[:, :, 0]
    in_box &= ~right
    in_box &= y >= low[:, :, 1]
    in_box &= y <= high[:, :, 1]

    pair = in_box.view(-1).nonzero().squeeze(-1)
    chain_index = torch.div(pair, num_points, rounding_mode="floor")
    scene_index = torch.div(chain_index, num_chains, rounding_mode="floor")
    point_index = pair - chain_index * num_points + scene_index * num_points
    flat_points = points.reshape(-1, 2).index_select(0, point_index)
    edges = chains.view(num_scenes * num_chains, -1, 2).index_select(0, chain_index)
    counts = crossed.to(torch.float32)
    counts.view(-1)[pair] = _count_crossings(flat_points, edges)

    members = torch.zeros((num_scenes, num_polygons, num_chains), dtype=torch.float32, device=points.device)
    members.scatter_(1, chain_polygon.unsqueeze(1), 1.0)
    total = torch.bmm(members, counts)
    return (total < _BOUNDARY) & (total.to(torch.int32) & 1).bool()


def _count_crossings(points: Tensor, chains: Tensor) -> Tensor:
    """Crossings of the -x ray of points (n, 2) with chains (n, edge + 1, 2), plus _BOUNDARY when on one."""
    dx = chains[..., 0] - points[:, None, 0]
    dy = chains[..., 1] - points[:, None, 1]
    below = dy <= 0
    straddles = below[:, :-1] ^ below[:, 1:]
    cross = dx[:, :-1] * dy[:, 1:] - dy[:, :-1] * dx[:, 1:]
    crossed = straddles & ((cross < 0) == below[:, :-1])
    on_edge = (cross == 0) & (dx[:, :-1] * dx[:, 1:] <= 0) & (dy[:, :-1] * dy[:, 1:] <= 0)
    return crossed.sum(-1).to(torch.float32) + _BOUNDARY * on_edge.any(-1)


def project_on_polyline(points: Tensor, line: Tensor, mask: Tensor) -> Tensor:
    """Distance [m] along a polyline of its point nearest to each query point.

    Same formulas and tie rule as GEOS ``project``: clamped to the ends, and the first of several equally
    near segments wins (lines may fold back on themselves or repeat a vertex).

    Args:
        points: (scene, point, 2).
        line: (scene, vertex, 2), at least two vertices per scene.
        mask: (scene, vertex) True for real vertices, which come first.
    """
    start, end = line[:, :-1], line[:, 1:]
    step = end - start
    squared = (step * step).sum(-1)  # (scene, segment)
    length = torch.where(mask[:, 1:], squared.sqrt(), 0.0)
    begins_at = torch.cumsum(length, -1) - length
    degenerate = squared == 0
    safe = torch.where(degenerate, 1.0, squared).unsqueeze(1)
    offset = points.unsqueeze(2) - start.unsqueeze(1)  # (scene, point, segment, 2)
    fraction = (offset[..., 0] * step[:, None, :, 0] + offset[..., 1] * step[:, None, :, 1]) / safe
    side = (offset[..., 0] * step[:, None, :, 1] - offset[..., 1] * step[:, None, :, 0]) / safe
    to_start = torch.linalg.vector_norm(offset, dim=-1)
    to_end = torch.linalg.vector_norm(points.unsqueeze(2) - end.unsqueeze(1), dim=-1)
    distance = torch.where(fraction <= 0, to_start, torch.where(fraction >= 1, to_end, side.abs() * safe.sqrt()))
    distance = torch.where(degenerate.unsqueeze(1), to_start, distance)
    distance = torch.where(mask[:, None, 1:], distance, torch.inf)
    nearest = _first_minimum(distance)
    along = torch.gather(fraction, -1, nearest).squeeze(-1).clamp(0.0, 1.0)
    nearest = nearest.squeeze(-1)
    return torch.gather(begins_at, 1, nearest) + along * torch.gather(length, 1, nearest)


def _first_minimum(values: Tensor) -> Tensor:
    """Index of the first smallest entry on the last axis, kept as an axis of size one."""
    is_smallest = values == values.amin(-1, keepdim=True)
    return is_smallest.to(torch.uint8).argmax(-1, keepdim=True)
