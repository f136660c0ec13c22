"""Plane geometry of the PDM score as batched tensor functions: poses, boxes, polygons, polylines.

Everything here is float64 and free of Python loops over the batch. Conventions are those of the
devkit: left is +90 degrees, ``contains`` is strict (a point on an edge is outside), ``intersects``
counts touching.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from navsim_bridge.ego import EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.parameters import CELL, CELL_OFFSET, CELL_REACH, FARTHEST

CENTER, REAR_AXLE = 4, 5  # positions in the last-but-one axis of ego_points; 0..3 are the corners

_BOUNDARY = 1 << 16  # added to a crossing count when the point lies on the ring; beyond any real count


def wrap_angle(angle: Tensor) -> Tensor:
    """Angle [rad] folded into [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def read_back_rear_axle(poses: Tensor) -> Tensor:
    """Rear-axle poses (..., 3) after the devkit's round trip over the vehicle center.

    The devkit's ego state stores the center and recomputes the rear axle from it, which can move a
    map-sized coordinate by one rounding unit. Poses must be in the global frame to reproduce it.
    """
    x, y, heading = poses.unbind(-1)
    step_x = REAR_AXLE_TO_CENTER * torch.cos(heading)
    step_y = REAR_AXLE_TO_CENTER * torch.sin(heading)
    return torch.stack(((x + step_x) - step_x, (y + step_y) - step_y, heading), dim=-1)


def ego_points(states: Tensor) -> Tensor:
    """Points of the ego box for rear-axle states (..., >=3): returns (..., 6, 2).

    Order: front left, rear left, rear right, front right, center, rear axle.
    """
    x, y, heading = states[..., 0], states[..., 1], states[..., 2]
    cos, sin = torch.cos(heading), torch.sin(heading)
    front = REAR_AXLE_TO_CENTER + EGO_LENGTH / 2
    rear = REAR_AXLE_TO_CENTER - EGO_LENGTH / 2
    left = EGO_WIDTH / 2
    offsets = ((front, left), (rear, left), (rear, -left), (front, -left), (REAR_AXLE_TO_CENTER, 0.0), (0.0, 0.0))
    xs = torch.stack([x + lon * cos - lat * sin for lon, lat in offsets], dim=-1)
    ys = torch.stack([y + lon * sin + lat * cos for lon, lat in offsets], dim=-1)
    return torch.stack((xs, ys), dim=-1)


def ego_center(states: Tensor) -> Tensor:
    """Center of the ego box (..., 2) for rear-axle states (..., >=3)."""
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
        center_a, center_b: (..., 2) box centers [m].
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
    """Strict point-in-polygon tests with holes (even-odd), all points against all polygons of their scene.

    Thousands of points of a scene share a few hundred square cells. The center of each occupied cell is
    tested against everything; a point then differs from its center by the parity of edges between the two,
    and only edges that cross the cell can lie there.

    Args:
        points: (scene, point, 2) [m].
        chains: (scene, chain, edge + 1, 2) consecutive vertices of polygon rings, +inf as padding.
        chain_polygon: (scene, chain) index of the polygon of each chain.
        num_polygons: size of the polygon axis.

    Returns:
        (scene, point, polygon) bool. Points on an edge, on a vertex or in a hole are outside.
    """
    num_scenes, num_points = points.shape[:2]
    if chains.shape[1] == 0 or num_points == 0:
        return torch.zeros((num_scenes, num_points, num_polygons), dtype=torch.bool, device=points.device)
    if choice.use_numba(points):
        from navsim_bridge.pdm.compiled import areas

        return areas.points_in_polygons(points, chains, chain_polygon, num_polygons)
    centers, cell_of_point = _occupied_cells(points)
    num_cells = centers.shape[1]
    inside, edges, edge_cell, edge_polygon = _cell_centers_in_polygons(centers, chains, chain_polygon, num_polygons)
    # every point meets the edges of its cell
    first_edge = torch.searchsorted(edge_cell, torch.arange(num_scenes * num_cells + 1, device=points.device))
    meetings = torch.diff(first_edge).index_select(0, cell_of_point)
    point = torch.repeat_interleave(meetings)
    first_meeting = torch.cumsum(meetings, 0) - meetings
    shift = first_edge.index_select(0, cell_of_point) - first_meeting
    edge = torch.arange(len(point), device=points.device) + shift.index_select(0, point)
    columns = points.reshape(-1, 2), centers.view(-1, 2).index_select(0, cell_of_point)
    count = _count_crossings_from_center(
        *(column.contiguous()[point] for table in columns for column in table.unbind(-1)),
        *(column[edge] for column in edges),
    )
    total = torch.zeros(num_scenes * num_points * num_polygons, dtype=torch.int32, device=points.device)
    total.index_add_(0, point * num_polygons + edge_polygon.index_select(0, edge), count)
    total = total.view(-1, num_polygons)
    result = inside.view(-1, num_polygons).index_select(0, cell_of_point) ^ (total & 1).bool()
    return (result & (total < _BOUNDARY)).view(num_scenes, num_points, num_polygons)


def _occupied_cells(points: Tensor) -> tuple[Tensor, Tensor]:
    """Centers (scene, cell, 2) of the cells that hold points, -inf as padding, and each point's flat cell."""
    num_scenes, device = len(points), points.device
    clamped = points.clamp(-FARTHEST, FARTHEST)
    column, row = (
        torch.floor((clamped[..., axis] - CELL_OFFSET[axis]) / CELL).to(torch.int64) + (1 << 23) for axis in (0, 1)
    )
    scene = torch.arange(num_scenes, device=device).unsqueeze(-1)
    key = (scene << 48) | (column << 24) | row
    cells, flat_index = torch.unique(key.view(-1), return_inverse=True)
    cell_scene = cells >> 48
    first = torch.searchsorted(cells, torch.arange(num_scenes + 1, device=device) << 48)
    num_cells = int(torch.diff(first).max())
    slot = cell_scene * num_cells + torch.arange(len(cells), device=device) - first.index_select(0, cell_scene)
    corners = ((cells >> 24) & 0xFFFFFF) - (1 << 23), (cells & 0xFFFFFF) - (1 << 23)
    middles = [(corner.to(points.dtype) + 0.5) * CELL + offset for corner, offset in zip(corners, CELL_OFFSET)]
    centers = torch.full((num_scenes * num_cells, 2), -torch.inf, dtype=points.dtype, device=device)
    centers[slot] = torch.stack(middles, dim=-1)
    return centers.view(num_scenes, num_cells, 2), slot.index_select(0, flat_index)


def _cell_centers_in_polygons(
    centers: Tensor, chains: Tensor, chain_polygon: Tensor, num_polygons: int
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """Test cell centers, and list the edges that cross each cell.

    The parity of crossings of a chain with the ray from a center towards -x needs no look at its edges when
    the chain's bounding box is clear of the cell: it is zero, or tells whether the chain's two ends lie on
    different sides of the ray. The other (cell, chain) pairs are counted edge by edge.

    Returns:
        inside (scene, cell, polygon) bool; then per edge, ordered by cell: start x, start y, end x, end y, whether the
        center is on its left (five of (n,)), flat cell (n,) and polygon (n,).
    """
    num_scenes, num_cells = centers.shape[:2]
    num_chains = chains.shape[1]
    x, y = centers[..., 0].unsqueeze(-1), centers[..., 1].unsqueeze(-1)  # (scene, cell, 1)
    low, high = chains.amin(2).unsqueeze(1), chains.amax(2).unsqueeze(1)  # (scene, 1, chain, 2)
    crossed = (chains[:, None, :, 0, 1] <= y) ^ (chains[:, None, :, -1, 1] <= y)
    crossed &= x > high[..., 0]
    near = x >= low[..., 0] - CELL_REACH
    near &= x <= high[..., 0] + CELL_REACH
    near &= y >= low[..., 1] - CELL_REACH
    near &= y <= high[..., 1] + CELL_REACH

    pair = near.view(-1).nonzero().squeeze(-1)  # ordered by cell
    cell = torch.div(pair, num_chains, rounding_mode="floor")
    scene = torch.div(cell, num_cells, rounding_mode="floor")
    chain = pair - cell * num_chains + scene * num_chains
    vertices = chains.view(num_scenes * num_chains, -1, 2).index_select(0, chain)
    center = centers.view(-1, 2).index_select(0, cell)
    dx = vertices[..., 0] - center[:, None, 0]
    dy = vertices[..., 1] - center[:, None, 1]
    below = dy <= 0
    start_x, start_y, end_x, end_y = dx[:, :-1], dy[:, :-1], dx[:, 1:], dy[:, 1:]
    cross = start_x * end_y - start_y * end_x
    ray_crossed = (below[:, :-1] ^ below[:, 1:]) & ((cross < 0) == below[:, :-1])
    counts = crossed.to(torch.float32)
    counts.view(-1)[pair] = ray_crossed.sum(-1).to(torch.float32)
    members = torch.zeros((num_scenes, num_chains, num_polygons), dtype=torch.float32, device=centers.device)
    members.scatter_(2, chain_polygon.unsqueeze(-1), 1.0)
    inside = (torch.bmm(counts, members).to(torch.int32) & 1).bool()

    in_cell = torch.minimum(start_x, end_x) <= CELL_REACH
    in_cell &= torch.maximum(start_x, end_x) >= -CELL_REACH
    in_cell &= torch.minimum(start_y, end_y) <= CELL_REACH
    in_cell &= torch.maximum(start_y, end_y) >= -CELL_REACH
    in_cell &= cross.abs() <= CELL_REACH * ((end_x - start_x).abs() + (end_y - start_y).abs())
    row, edge = in_cell.nonzero(as_tuple=True)
    start, end = vertices[row, edge], vertices[row, edge + 1]
    ends = tuple(column.contiguous() for side in (start, end) for column in side.unbind(-1))
    center_left = cross[row, edge] >= 0  # the number that the ray was judged by, for a center on the very edge
    polygon = chain_polygon.reshape(-1).index_select(0, chain).index_select(0, row)
    return inside, (*ends, center_left), cell.index_select(0, row), polygon


def _count_crossings_from_center(
    point_x: Tensor,
    point_y: Tensor,
    center_x: Tensor,
    center_y: Tensor,
    start_x: Tensor,
    start_y: Tensor,
    end_x: Tensor,
    end_y: Tensor,
    center_left: Tensor,
) -> Tensor:
    """1 where the way from center to point crosses the edge, 0 where not, _BOUNDARY where the point is on it.

    An edge counts when its ends lie on different sides of the way's line (a vertex always on the same side
    for both of its edges) and the way's ends on different sides of the edge's line.
    """
    way_x, way_y = point_x - center_x, point_y - center_y
    start_left = way_x * (start_y - center_y) > way_y * (start_x - center_x)
    end_left = way_x * (end_y - center_y) > way_y * (end_x - center_x)
    edge_x, edge_y = end_x - start_x, end_y - start_y
    side_point = edge_x * (point_y - start_y) - edge_y * (point_x - start_x)
    crossed = (start_left ^ end_left) & ((side_point >= 0) ^ center_left)
    on_edge = (side_point == 0) & ((point_x - start_x) * (point_x - end_x) <= 0)
    on_edge &= (point_y - start_y) * (point_y - end_y) <= 0
    return crossed.to(torch.int32).masked_fill_(on_edge, _BOUNDARY)


def project_on_polyline(points: Tensor, line: Tensor, mask: Tensor) -> Tensor:
    """Distance [m] along a polyline of its point nearest to each query point.

    Same formulas and tie rule as GEOS ``project``: clamped to the ends, and the first of several equally
    near segments wins (lines may fold back on themselves or repeat a vertex).

    Args:
        points: (scene, point, 2).
        line: (scene, vertex, 2), at least two vertices per scene.
        mask: (scene, vertex) True for real vertices, which come first.
    """
    if choice.use_numba(points):
        from navsim_bridge.pdm.compiled import lines

        return lines.project_on_polyline(points, line, mask)
    start, end = line[:, :-1], line[:, 1:]
    step = end - start
    squared = (step * step).sum(-1)  # (scene, segment)
    length = torch.where(mask[:, 1:], squared.sqrt(), 0.0)
    begins_at = torch.cumsum(length, -1) - length
    offset_x = points[..., 0].unsqueeze(-1) - line[:, None, :, 0]  # (scene, point, vertex)
    offset_y = points[..., 1].unsqueeze(-1) - line[:, None, :, 1]
    to_vertex = (offset_x * offset_x + offset_y * offset_y).sqrt()
    offset_x, offset_y = offset_x[..., :-1], offset_y[..., :-1]
    step_x, step_y = step[:, None, :, 0], step[:, None, :, 1]
    fraction, distance = _to_segment(
        offset_x, offset_y, step_x, step_y, squared.unsqueeze(1), to_vertex[..., :-1], to_vertex[..., 1:]
    )
    distance = torch.where(mask[:, None, 1:], distance, torch.inf)
    nearest = _first_minimum(distance)
    along = torch.gather(fraction, -1, nearest).squeeze(-1).clamp(0.0, 1.0)
    nearest = nearest.squeeze(-1)
    return torch.gather(begins_at, 1, nearest) + along * torch.gather(length, 1, nearest)


def near_polyline(points: Tensor, line: Tensor, mask: Tensor, limit: float) -> Tensor:
    """(scene, point) bool: whether a polyline comes within ``limit`` meters; arguments as in ``project_on_polyline``.

    Only segments whose midpoint is close enough for that are measured.
    """
    if choice.use_numba(points):
        from navsim_bridge.pdm.compiled import lines

        return lines.near_polyline(points, line, mask, limit)
    num_scenes, num_points = points.shape[:2]
    step = line[:, 1:] - line[:, :-1]
    squared = (step * step).sum(-1)
    middle_x, middle_y = ((line[:, 1:] + line[:, :-1]) / 2).unbind(-1)
    reach = squared.sqrt() / 2 + (limit + 1e-6)
    reach = torch.where(mask[:, 1:], reach * reach, -1.0).unsqueeze(1)  # nothing is near padding
    away = (points[..., 0].contiguous().unsqueeze(-1) - middle_x.contiguous().unsqueeze(1)).square_()
    away += (points[..., 1].contiguous().unsqueeze(-1) - middle_y.contiguous().unsqueeze(1)).square_()
    pair = (away <= reach).view(-1).nonzero().squeeze(-1)
    num_segments = step.shape[1]
    row = torch.div(pair, num_segments, rounding_mode="floor")
    scene = torch.div(row, num_points, rounding_mode="floor")
    segment = pair - row * num_segments
    point = points.reshape(-1, 2).index_select(0, row)
    to_start, to_end = point - line[scene, segment], point - line[scene, segment + 1]
    step_x, step_y = step[scene, segment].unbind(-1)
    start_distance, end_distance = ((offset * offset).sum(-1).sqrt() for offset in (to_start, to_end))
    _, distance = _to_segment(
        to_start[:, 0], to_start[:, 1], step_x, step_y, squared[scene, segment], start_distance, end_distance
    )
    near = torch.zeros(num_scenes * num_points, dtype=torch.bool, device=points.device)
    near[row[distance <= limit]] = True
    return near.view(num_scenes, num_points)


def _to_segment(
    offset_x: Tensor,
    offset_y: Tensor,
    step_x: Tensor,
    step_y: Tensor,
    squared: Tensor,
    to_start: Tensor,
    to_end: Tensor,
) -> tuple[Tensor, Tensor]:
    """Foot of a point on a segment as a fraction of it, unclamped, and the distance, with the formulas of GEOS.

    The offset is that of the point from the segment's start, the step leads to its end; of length zero if they
    are the same, which ``squared`` says.
    """
    degenerate = squared == 0
    safe = torch.where(degenerate, 1.0, squared)
    fraction = (offset_x * step_x + offset_y * step_y) / safe
    aside = ((offset_x * step_y - offset_y * step_x) / safe).abs() * safe.sqrt()
    distance = torch.where(fraction <= 0, to_start, torch.where(fraction >= 1, to_end, aside))
    return fraction, torch.where(degenerate, to_start, distance)


def _first_minimum(values: Tensor) -> Tensor:
    """Index of the first smallest entry on the last axis, kept as an axis of size one."""
    is_smallest = values == values.amin(-1, keepdim=True)
    return is_smallest.to(torch.uint8).argmax(-1, keepdim=True)
