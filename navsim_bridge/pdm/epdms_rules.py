"""The sub-scores that only EPDMS has: traffic lights, lane keeping, comfort with history and over two frames."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from navsim_bridge.ego import EGO_RADIUS, HALF_EGO, REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.geometry import (
    boxes_intersect,
    ego_center,
    near_polyline,
    points_in_polygons,
)
from navsim_bridge.pdm.terms.areas import EgoAreas
from navsim_bridge.pdm.terms.collision import first_hits
from navsim_bridge.pdm.terms.comfort import BOUNDS, smooth, unwrap, within_bounds

_LANE_DEVIATION = 0.5  # [m] further from the centreline is off the lane
_LANE_STEPS = 20  # consecutive steps off the lane that fail
_MOTION_COLUMNS = (2, 5, 6)  # of a state: heading, longitudinal and lateral acceleration
_LATEST_PREVIOUS = 0.55  # [s]
_LARGEST_RMS = (0.7, 0.5, 0.1, 0.1)  # |a| [m/s^2], jerk [m/s^3], yaw rate [rad/s], yaw acceleration [rad/s^2]


def traffic_light_compliance(scenes: EPDMSBatch, states: Tensor) -> Tensor:
    """0 where the ego box ever shares a point with a connector of the route that is red then, else 1.

    Takes simulated states (scene, candidate, time, 11). Starting on such a connector fails, too. Tracked objects
    whose token starts with ``red_light`` count as red connectors, as in the devkit.
    """
    num_scenes, num_candidates, num_times = states.shape[:3]
    centers = ego_center(states)
    failed = torch.zeros((num_scenes, num_candidates), dtype=torch.bool, device=states.device)
    if scenes.light_chains.shape[1]:
        flat = centers.view(num_scenes, -1, 2)
        num_lights = scenes.light_red.shape[2]
        inside = points_in_polygons(flat, scenes.light_chains, scenes.chain_light, num_lights)
        inside = inside.view(num_scenes, num_candidates, num_times, num_lights) & scenes.light_red[:, None, :num_times]
        failed |= inside.flatten(2).any(-1)
        failed |= _on_red_edge(scenes, centers, states[..., 2])
    if bool(scenes.object_is_light.any()):
        only_lights = dataclasses.replace(scenes.scenes, track_skipped=~scenes.object_is_light)
        hits = first_hits(only_lights, centers.unsqueeze(3), states[..., 2], (0,))
        failed[hits.scene, hits.candidate] = True
    return (~failed).to(torch.float64)


def _on_red_edge(scenes: EPDMSBatch, centers: Tensor, headings: Tensor) -> Tensor:
    """(scene, candidate): whether the ego box ever meets an edge of a light that is red then."""
    num_scenes, num_candidates, num_times = headings.shape
    start, end = scenes.light_chains[:, :, :-1], scenes.light_chains[:, :, 1:]
    num_edges = start.shape[1] * start.shape[2]
    middle = ((start + end) / 2).view(num_scenes, num_edges, 2)
    along = (end - start).view(num_scenes, num_edges, 2)
    half = torch.linalg.vector_norm(along, dim=-1) / 2
    owner = scenes.chain_light.repeat_interleave(start.shape[2], dim=1)
    red = torch.gather(scenes.light_red[:, :num_times], 2, owner.unsqueeze(1).expand(-1, num_times, -1))
    reach = half + (EGO_RADIUS + 1e-6)
    away_x, away_y = (
        (centers[..., axis].contiguous().unsqueeze(-1) - middle[..., axis].contiguous()[:, None, None]).square_()
        for axis in (0, 1)
    )
    # padding is infinite and its length NaN, so it never compares as near
    near = ((away_x + away_y) <= (reach * reach)[:, None, None]) & red.unsqueeze(1)
    scene, candidate, time, edge = near.nonzero(as_tuple=True)
    direction = along[scene, edge]
    hit = boxes_intersect(
        centers[scene, candidate, time],
        headings[scene, candidate, time],
        HALF_EGO,
        middle[scene, edge],
        torch.atan2(direction[:, 1], direction[:, 0]),
        torch.stack((half[scene, edge], torch.zeros_like(direction[:, 0])), dim=-1),
    )
    met = torch.zeros(num_scenes * num_candidates, dtype=torch.bool, device=centers.device)
    met[(scene * num_candidates + candidate)[hit]] = True
    return met.view(num_scenes, num_candidates)


def lane_keeping(scenes: EPDMSBatch, states: Tensor, areas: EgoAreas) -> Tensor:
    """0 where the centre stays further than 0.5 m from the centreline for 20 steps in a row, else 1.

    Steps with the centre in an intersection are passed over: they neither count nor end a row.
    """
    num_scenes, num_candidates, num_times = states.shape[:3]
    line = scenes.scenes
    points = ego_center(states).view(num_scenes, -1, 2)
    off = ~near_polyline(points, line.centerline, line.centerline_mask, _LANE_DEVIATION)
    off = off.view(num_scenes, num_candidates, num_times)
    # judged steps move to the front, in order; the others behind them end the last row
    skipped, order = torch.sort(areas.center_in_intersection.to(torch.uint8), dim=-1, stable=True)
    off = torch.gather(off, -1, order) & (skipped == 0)
    steps = torch.arange(1, num_times + 1, device=states.device)
    on_lane_last = torch.where(off, 0, steps).cummax(-1).values
    return ((steps - on_lane_last).amax(-1) < _LANE_STEPS).to(torch.float64)


def history_comfort_flags(scenes: EPDMSBatch, states: Tensor) -> Tensor:
    """Which quantities of ``comfort.BOUNDS`` hold over past and plan: (scene, candidate, 6) bool.

    Unlike in v1, accelerations are those of the centre (with the devkit's signs: both terms along x), jerk takes a
    window of 15, and the recorded past precedes the states (scene, candidate, 41, 11). Past states have no yaw rate.
    """
    spin = states[..., 9].square() + states[..., 10]
    columns = {
        "accel_x": states[..., 5] + REAR_AXLE_TO_CENTER * spin,
        "accel_y": states[..., 6],
        "magnitude": torch.hypot(states[..., 5], states[..., 6]),
        "heading": states[..., 2],
    }
    past_heading, past_x, past_y = scenes.past.unbind(-1)
    before = {
        "accel_x": past_x,
        "accel_y": past_y,
        "magnitude": torch.hypot(past_x, past_y),
        "heading": past_heading,
    }
    flags = torch.zeros((*states.shape[:2], len(BOUNDS)), dtype=torch.bool, device=states.device)
    for count in torch.unique(scenes.past_count).tolist():
        rows = (scenes.past_count == count).nonzero().squeeze(-1)
        whole = {
            name: torch.cat((before[name][rows, None, :count].expand(-1, states.shape[1], -1), values[rows]), dim=-1)
            for name, values in columns.items()
        }
        accel_x = smooth(whole["accel_x"], 8, 2)
        heading = unwrap(whole["heading"])
        values = (
            accel_x,
            smooth(whole["accel_y"], 8, 2),
            smooth(smooth(whole["magnitude"], 8, 2), 15, 2, derivative=1),
            smooth(accel_x, 15, 2, derivative=1),
            smooth(heading, 5, 3, derivative=2),
            smooth(heading, 5, 2, derivative=1),
        )
        flags[rows] = within_bounds(values)
    return flags


def motion_of(states: Tensor) -> Tensor:
    """Heading, longitudinal and lateral acceleration (..., 41, 3) of states: what two frames are compared by."""
    return states[..., _MOTION_COLUMNS]


def two_frame_extended_comfort(motion: Tensor, previous: Tensor, seconds: Tensor) -> Tensor:
    """1 where a plan moves as the plan of the frame before it would have, else 0; NaN without one.

    Args:
        motion: (scene, candidate, 41, 3) from ``motion_of`` the simulated plans.
        previous: (scene, candidate, 41, 3) the same of the plans that were made ``seconds`` earlier.
        seconds: (scene,) [s]; NaN where there is no previous frame.

    Raises:
        ValueError: a previous frame that is not at most 0.55 s, and at least one 0.1 s step, earlier.
    """
    known = ~torch.isnan(seconds)
    shift = torch.round(seconds / 0.1)  # half to even, as Python does
    bad = known & ~((seconds < _LATEST_PREVIOUS) & (shift >= 1))
    if bool(bad.any()):
        raise ValueError(
            f"the previous plan of scene {int(bad.nonzero()[0])} is {float(seconds[bad][0]):.3f} s earlier; two-frame "
            f"comfort compares plans at least one step of 0.1 s and less than {_LATEST_PREVIOUS} s apart"
        )
    result = torch.full(motion.shape[:2], torch.nan, dtype=torch.float64, device=motion.device)
    for steps in torch.unique(shift[known]).to(torch.int64).tolist():
        rows = (known & (shift == steps)).nonzero().squeeze(-1)
        now = _extended_features(motion[rows, :, :-steps])
        then = _extended_features(previous[rows, :, steps:])
        smoothness = [
            (one - two).square().mean(-1).sqrt() <= largest for one, two, largest in zip(now, then, _LARGEST_RMS)
        ]
        result[rows] = torch.stack(smoothness).all(0).to(torch.float64)
    return result


def _extended_features(motion: Tensor) -> tuple[Tensor, ...]:
    """|a|, its jerk, yaw rate and yaw acceleration of (..., time, 3)."""
    heading, accel_x, accel_y = motion.unbind(-1)
    accel = smooth(torch.hypot(accel_x, accel_y), 8, 2)
    heading = unwrap(heading)
    return (
        accel,
        smooth(accel, 15, 2, derivative=1),
        smooth(heading, 5, 2, derivative=1),
        smooth(heading, 5, 2, derivative=2),
    )
