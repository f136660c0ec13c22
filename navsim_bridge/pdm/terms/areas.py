"""Which parts of the map the ego box is on, for every simulated pose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.geometry import CENTER, REAR_AXLE, ego_points, points_in_polygons
from navsim_bridge.pdm.scene import SceneBatch

_POINTS_AT_ONCE = 6000
"""On the CPU: more do not fit its caches, and for few plans a scene the temporaries grow with scenes squared."""


class EgoAreas(NamedTuple):
    """Flags (scene, candidate, time) for every pose."""

    multiple_lanes: Tensor  # corners touch several lane polygons and none holds all four
    non_drivable: Tensor  # at least one corner is in no drivable polygon
    oncoming: Tensor  # the center is in no on-route lane; always true when the route is empty
    in_intersection: Tensor  # the rear axle is strictly inside an intersection
    center_in_intersection: Tensor  # the center is; only EPDMS asks


def ego_areas(scenes: SceneBatch, states: Tensor) -> EgoAreas:
    """Area flags of simulated states (scene, candidate, time, 11) in the scene frame.

    Drivable are roadblocks, intersections, car parks and drivable areas; lanes alone are not, since the
    cache holds them only inside the others.
    """
    masks = (scenes.polygon_drivable, scenes.polygon_lane, scenes.polygon_on_route, scenes.polygon_intersection)
    if choice.use_numba(states):
        from navsim_bridge.pdm.compiled import areas

        chains = scenes.chain_vertices, scenes.chain_polygon, scenes.sizes[:, 1]
        return EgoAreas(*areas.ego_areas(states, *chains, masks))
    num_scenes, num_candidates, num_times = states.shape[:3]
    points = ego_points(states).view(num_scenes, -1, 2)
    at_once = num_scenes if points.is_cuda else max(1, _POINTS_AT_ONCE // max(1, points.shape[1]))
    groups = []
    for first in range(0, num_scenes, at_once):
        group = slice(first, first + at_once)
        num_chains = max(1, int(scenes.sizes[group, 1].max()))
        inside = points_in_polygons(
            points[group],
            scenes.chain_vertices[group, :num_chains].contiguous(),
            scenes.chain_polygon[group, :num_chains].contiguous(),
            scenes.num_polygons,
        )
        inside = inside.view(len(inside), num_candidates, num_times, 6, scenes.num_polygons)
        groups.append(_flags(inside, *(mask[group, None, None] for mask in masks)))
    return EgoAreas(*(torch.cat(flags) for flags in zip(*groups)))


def _flags(inside: Tensor, drivable: Tensor, lane: Tensor, on_route: Tensor, intersection: Tensor) -> EgoAreas:
    """Flags from ``inside`` (scene, candidate, time, point, polygon); masks (scene, 1, 1, polygon)."""
    corners = inside[..., :4, :]
    any_corner, all_corners = corners.any(-2), corners.all(-2)
    on_road = (corners & drivable.unsqueeze(-2)).any(-1).all(-1)
    lanes_touched = (any_corner & lane).sum(-1, dtype=torch.int32)
    whole_in_lane = (all_corners & lane).any(-1)
    return EgoAreas(
        multiple_lanes=(lanes_touched > 1) & ~whole_in_lane,
        non_drivable=~on_road,
        oncoming=~(inside[..., CENTER, :] & on_route).any(-1),
        in_intersection=(inside[..., REAR_AXLE, :] & intersection).any(-1),
        center_in_intersection=(inside[..., CENTER, :] & intersection).any(-1),
    )


def drivable_area_compliance(areas: EgoAreas) -> Tensor:
    """(scene, candidate): 0 if any corner ever leaves the drivable area (t = 0 included), else 1."""
    return (~areas.non_drivable.any(-1)).to(torch.float64)
