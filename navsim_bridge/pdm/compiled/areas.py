"""``geometry.points_in_polygons`` and ``terms.areas.ego_areas`` compiled: the same way by cells, the same comparisons.

Polygons that a point is in are bits of words.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.ego import EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.compiled.jit import helper, kernel
from navsim_bridge.pdm.parameters import CELL, CELL_OFFSET

_FRONT, _REAR, _LEFT = REAR_AXLE_TO_CENTER + EGO_LENGTH / 2, REAR_AXLE_TO_CENTER - EGO_LENGTH / 2, EGO_WIDTH / 2
_CENTER = REAR_AXLE_TO_CENTER
_MOST_CELLS = 1 << 20
_DRIVABLE, _LANE, _ON_ROUTE, _INTERSECTION = 0, 1, 2, 3


@helper
def _flip(bits: Any, row: int, polygon: int) -> None:
    bits[row, polygon >> 6] ^= np.uint64(1) << np.uint64(polygon & 63)


@helper
def _larger(array: Any) -> Any:
    """Twice the rows."""
    grown = np.empty((2 * array.shape[0], array.shape[1]), array.dtype)
    for i in range(array.shape[0]):
        for j in range(array.shape[1]):
            grown[i, j] = array[i, j]
    return grown


@helper
def _heights(chains: Any, count: int) -> Any:
    """Lowest and highest y (chain, 2) of chains (chain, vertex, 2), and lowest and highest x of all."""
    heights = np.empty((count, 2))
    left, right = np.inf, -np.inf
    for k in range(count):
        low, high = np.inf, -np.inf
        for v in range(chains.shape[1]):
            x, y = chains[k, v, 0], chains[k, v, 1]
            left, right, low, high = min(left, x), max(right, x), min(low, y), max(high, y)
        heights[k, 0], heights[k, 1] = low, high
    return heights, left, right


@helper
def _grid(points: Any, heights: Any, left: float, right: float) -> Any:
    """Square cells over the points that may be on the map: x, y of their corner, columns, rows, a cell's size."""
    bottom, top = np.inf, -np.inf
    for k in range(len(heights)):
        bottom, top = min(bottom, heights[k, 0]), max(top, heights[k, 1])
    x_low = y_low = np.inf
    x_high = y_high = -np.inf
    for p in range(len(points)):
        x, y = points[p, 0], points[p, 1]
        if left <= x <= right and bottom <= y <= top:
            x_low, x_high, y_low, y_high = min(x_low, x), max(x_high, x), min(y_low, y), max(y_high, y)
    if x_low > x_high:
        return 0.0, 0.0, 0, 0, CELL
    size = CELL
    while (x_high - x_low + size) * (y_high - y_low + size) > _MOST_CELLS * size * size:
        size *= 2.0
    x = math.floor((x_low - CELL_OFFSET[0]) / size) * size + CELL_OFFSET[0]
    y = math.floor((y_low - CELL_OFFSET[1]) / size) * size + CELL_OFFSET[1]
    return x, y, int((x_high - x) / size) + 1, int((y_high - y) / size) + 1, size


@helper
def _edges_of_row(chains: Any, owner: Any, heights: Any, low: float, high: float, edges: Any, polygon: Any) -> int:
    """Edges (edge, 4) of chains that come between two heights, and how many."""
    n = 0
    for k in range(len(heights)):
        if heights[k, 0] > high or heights[k, 1] < low:
            continue
        bx, by = chains[k, 0, 0], chains[k, 0, 1]
        for v in range(1, chains.shape[1]):
            ax, ay = bx, by
            bx, by = chains[k, v, 0], chains[k, v, 1]
            if min(ay, by) > high or max(ay, by) < low or (ax == bx and ay == by):
                continue  # too far, or what ends a ring early, whose vertex belongs to other edges
            edges[n, 0], edges[n, 1], edges[n, 2], edges[n, 3] = ax, ay, bx, by
            polygon[n] = owner[k]
            n += 1
    return n


@helper
def _polygons_of(points: Any, chains: Any, owner: Any, count: int, words: int) -> Any:
    """Polygons (point, word) that points (point, 2) are strictly inside."""
    inside = np.zeros((len(points), words), np.uint64)
    heights, left, right = _heights(chains, count)
    corner_x, corner_y, columns, rows, size = _grid(points, heights, left, right)
    per_meter, reach = 1.0 / size, 0.5 * size + 1e-6
    place, table = np.full(len(points), -1, np.int64), np.zeros(columns * rows, np.int64)
    for p in range(len(points)):
        column, row = (points[p, 0] - corner_x) * per_meter, (points[p, 1] - corner_y) * per_meter
        if 0.0 <= column < columns and 0.0 <= row < rows:  # others are outside of everything
            place[p] = int(row) * columns + int(column)
            table[place[p]] = 1

    # for each occupied cell: center, polygons around it, edges that cross it
    num_cells = 0
    for cell in range(len(table)):
        num_cells += table[cell]
    centers, span = np.empty((num_cells, 2)), np.empty((num_cells, 2), np.int64)
    around = np.zeros((num_cells, words), np.uint64)
    edges, sides = np.empty((2048, 10)), np.empty((2048, 2), np.int32)
    near, owners = np.empty((count * chains.shape[1], 4)), np.empty(count * chains.shape[1], np.int64)
    cell = n = 0
    for row in range(rows):
        y, num_near = corner_y + (row + 0.5) * size, -1
        for column in range(columns):
            if table[row * columns + column] == 0:
                continue
            if num_near < 0:
                num_near = _edges_of_row(chains, owner, heights, y - reach, y + reach, near, owners)
            x = corner_x + (column + 0.5) * size
            table[row * columns + column] = cell
            centers[cell, 0], centers[cell, 1], span[cell, 0] = x, y, n
            for i in range(num_near):
                ax, ay, bx, by = near[i, 0], near[i, 1], near[i, 2], near[i, 3]
                start_x, start_y, end_x, end_y = ax - x, ay - y, bx - x, by - y
                if min(start_x, end_x) > reach:
                    continue
                below = start_y <= 0
                straddles = below != (end_y <= 0)
                if max(start_x, end_x) < -reach:
                    if straddles:
                        _flip(around, cell, owners[i])
                    continue
                cross = start_x * end_y - start_y * end_x
                if straddles and (cross < 0) == below:
                    _flip(around, cell, owners[i])
                if abs(cross) <= reach * (abs(end_x - start_x) + abs(end_y - start_y)):
                    if n == len(edges):
                        edges, sides = _larger(edges), _larger(sides)
                    edges[n, 0], edges[n, 1], edges[n, 2], edges[n, 3] = ax, ay, bx, by
                    edges[n, 4], edges[n, 5], edges[n, 6], edges[n, 7] = start_x, start_y, end_x, end_y
                    edges[n, 8], edges[n, 9] = bx - ax, by - ay
                    sides[n, 0] = owners[i]
                    sides[n, 1] = cross >= 0  # the center is on the left
                    n += 1
            span[cell, 1] = n
            cell += 1

    # a point is where its cell's center is, unless edges lie between
    on_edge = np.zeros(words, np.uint64)
    for p in range(len(points)):
        if place[p] < 0:
            continue
        cell = table[place[p]]
        for w in range(words):
            inside[p, w] = around[cell, w]
        px, py = points[p, 0], points[p, 1]
        way_x, way_y = px - centers[cell, 0], py - centers[cell, 1]
        touches = False
        for i in range(span[cell, 0], span[cell, 1]):
            start_left = way_x * edges[i, 5] > way_y * edges[i, 4]
            end_left = way_x * edges[i, 7] > way_y * edges[i, 6]
            side = edges[i, 8] * (py - edges[i, 1]) - edges[i, 9] * (px - edges[i, 0])
            polygon = sides[i, 0]
            crossed = (start_left ^ end_left) & ((side >= 0) ^ (sides[i, 1] != 0))
            inside[p, polygon >> 6] ^= np.uint64(crossed) << np.uint64(polygon & 63)
            if (
                side == 0
                and (px - edges[i, 0]) * (px - edges[i, 2]) <= 0
                and (py - edges[i, 1]) * (py - edges[i, 3]) <= 0
            ):
                on_edge[polygon >> 6] |= np.uint64(1) << np.uint64(polygon & 63)
                touches = True
        if touches:
            for w in range(words):
                inside[p, w] &= ~on_edge[w]
                on_edge[w] = 0
    return inside


@kernel("void(f8[:,:,::1], f8[:,:,:,::1], i8[:,::1], i8[::1], b1[:,:,::1])")
def _points_in_polygons(points: Any, chains: Any, owner: Any, counts: Any, inside: Any) -> None:
    words = (inside.shape[2] + 63) >> 6
    for s in range(len(points)):
        bits = _polygons_of(points[s], chains[s], owner[s], counts[s], words)
        for p in range(inside.shape[1]):
            for polygon in range(inside.shape[2]):
                inside[s, p, polygon] = (bits[p, polygon >> 6] >> np.uint64(polygon & 63)) & np.uint64(1)


@helper
def _ego_points(states: Any) -> Any:
    """``geometry.ego_points`` of states (candidate, time, 11), in a row: (candidate * time * 6, 2)."""
    points = np.empty((states.shape[0] * states.shape[1] * 6, 2))
    n = 0
    for c in range(states.shape[0]):
        for t in range(states.shape[1]):
            x, y, cos, sin = states[c, t, 0], states[c, t, 1], math.cos(states[c, t, 2]), math.sin(states[c, t, 2])
            for q in range(6):
                along = _FRONT if q == 0 or q == 3 else (_REAR if q < 4 else (_CENTER if q == 4 else 0.0))
                left = 0.0 if q > 3 else (_LEFT if q < 2 else -_LEFT)
                points[n, 0], points[n, 1] = x + along * cos - left * sin, y + along * sin + left * cos
                n += 1
    return points


@kernel("void(f8[:,:,:,:], f8[:,:,:,::1], i8[:,::1], i8[::1], b1[:,:,::1], b1[:,:,:,::1])")
def _ego_areas(states: Any, chains: Any, owner: Any, counts: Any, masks: Any, flags: Any) -> None:
    """masks (scene, 4, polygon) -> flags (5, scene, candidate, time) in the order of ``EgoAreas``."""
    words = max(1, (masks.shape[2] + 63) >> 6)
    for s in range(len(states)):
        kinds = np.zeros((4, words), np.uint64)
        for kind in range(4):
            for polygon in range(masks.shape[2]):
                if masks[s, kind, polygon]:
                    _flip(kinds, kind, polygon)
        bits = _polygons_of(_ego_points(states[s]), chains[s], owner[s], counts[s], words)
        for pose in range(states.shape[1] * states.shape[2]):
            corner, center, rear_axle = 6 * pose, 6 * pose + 4, 6 * pose + 5
            lanes = 0
            off_road = whole_in_lane = on_route = rear_crosses = center_crosses = False
            for q in range(corner, center):
                road = False
                for w in range(words):
                    road |= bits[q, w] & kinds[_DRIVABLE, w] != 0
                off_road |= not road
            for w in range(words):
                a, b, c, d = bits[corner, w], bits[corner + 1, w], bits[corner + 2, w], bits[corner + 3, w]
                touched = (a | b | c | d) & kinds[_LANE, w]
                lanes += (touched != 0) + (touched & (touched - np.uint64(1)) != 0)  # none, one, or several
                whole_in_lane |= a & b & c & d & kinds[_LANE, w] != 0
                on_route |= bits[center, w] & kinds[_ON_ROUTE, w] != 0
                rear_crosses |= bits[rear_axle, w] & kinds[_INTERSECTION, w] != 0
                center_crosses |= bits[center, w] & kinds[_INTERSECTION, w] != 0
            c, t = pose // states.shape[2], pose % states.shape[2]
            flags[0, s, c, t] = lanes > 1 and not whole_in_lane
            flags[1, s, c, t] = off_road
            flags[2, s, c, t] = not on_route
            flags[3, s, c, t] = rear_crosses
            flags[4, s, c, t] = center_crosses


def points_in_polygons(points: Tensor, chains: Tensor, chain_polygon: Tensor, num_polygons: int) -> Tensor:
    """As ``geometry.points_in_polygons``."""
    inside = np.empty((*points.shape[:2], num_polygons), np.bool_)
    counts = np.full(len(points), chains.shape[1])
    arrays = chains.contiguous().numpy(), chain_polygon.contiguous().numpy()
    _points_in_polygons(points.contiguous().numpy(), *arrays, counts, inside)
    return torch.from_numpy(inside)


def ego_areas(
    states: Tensor, chains: Tensor, chain_polygon: Tensor, counts: Any, masks: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Flags (scene, candidate, time) in the order of ``EgoAreas``.

    Args:
        states: (scene, candidate, time, 11).
        chains, chain_polygon: as for ``points_in_polygons``.
        counts: (scene,) chains that are none of the padding.
        masks: drivable, lanes, lanes on the route and intersections, (scene, polygon) each.
    """
    flags = np.empty((5, *states.shape[:3]), np.bool_)
    arrays = chains.contiguous().numpy(), chain_polygon.contiguous().numpy(), np.ascontiguousarray(counts)
    _ego_areas(states.numpy(), *arrays, torch.stack(masks, dim=1).numpy(), flags)
    return tuple(torch.from_numpy(flags).unbind())
