"""No at-fault collision: 0 after an at-fault hit of an agent, 0.5 of something static, else 1."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.ego import EGO_LENGTH, EGO_RADIUS, EGO_WIDTH, HALF_EGO, REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.constants import constant
from navsim_bridge.pdm.geometry import (
    boxes_intersect,
    ego_center,
)
from navsim_bridge.pdm.objects import Objects
from navsim_bridge.pdm.packing import STOPPED_SPEED
from navsim_bridge.pdm.terms.areas import EgoAreas

AHEAD = math.radians(30.0)  # strictly smaller angles are ahead
BEHIND = math.radians(150.0)  # strictly larger angles are behind
NEVER = 1 << 20
"""Time key of a (candidate, track) pair that never touches."""


class FirstHits(NamedTuple):
    """The first contact of every (candidate, track) pair that has one; n rows."""

    scene: Tensor  # (n,)
    candidate: Tensor  # (n,)
    track: Tensor  # (n,)
    key: Tensor  # (n,) time * number of lookaheads + lookahead


class Contacts(NamedTuple):
    """First contacts and the verdict on each; n rows."""

    hits: FirstHits
    at_fault: Tensor  # (n,) bool
    agent: Tensor  # (n,) bool, something that moves by itself: costs all instead of half
    standing: Tensor  # (n,) bool, the object is static or stood at first sight
    frontal: Tensor  # (n,) bool, the ego's front edge touches


class CollisionResult(NamedTuple):
    score: Tensor  # (scene, candidate) float64 0, 0.5 or 1
    time_index: Tensor  # (scene, candidate) float64 first at-fault time index, inf if none


def first_hits(
    scenes: Objects, centers: Tensor, headings: Tensor, lookahead: tuple[int, ...], active: Tensor | None = None
) -> FirstHits:
    """First time at which each ego box meets each track, over time and then lookahead.

    Only the first contact matters in both users: a contact that is not charged puts the token on the
    devkit's ignore list for good, and after a charged one further contacts change nothing.

    Args:
        centers: (scene, candidate, time, lookahead, 2) ego box centers.
        headings: (scene, candidate, time).
        lookahead: object frame minus time index, for each entry of the lookahead axis.
        active: (scene, candidate, time) False where contacts are not looked at.
    """
    num_scenes, num_candidates, num_times, num_ahead, _ = centers.shape
    num_objects = scenes.object_mask.shape[2]
    device = centers.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    if num_objects == 0:
        return FirstHits(none, none, none, none)
    frames = torch.arange(num_times, device=device)[:, None] + constant(device, np.array, lookahead)
    flat_frames = frames.view(-1)
    boxes = scenes.object_boxes.index_select(1, flat_frames)
    usable = scenes.object_mask & ~torch.gather(scenes.track_skipped, 1, scenes.object_track).unsqueeze(1)
    # a contact needs the centers closer than both circumradii; a hopeless reach rules out absent objects
    reach = torch.linalg.vector_norm(scenes.object_boxes[..., 3:], dim=-1) + (EGO_RADIUS + 1e-6)
    reach = torch.where(usable, reach * reach, -1.0).index_select(1, flat_frames).unsqueeze(1)
    ego = centers.view(num_scenes, num_candidates, num_times * num_ahead, 1, 2)
    distance = (ego[..., 0] - boxes[:, None, :, :, 0]).square_()
    distance += (ego[..., 1] - boxes[:, None, :, :, 1]).square_()
    close = distance <= reach
    if active is not None:
        close &= active.repeat_interleave(num_ahead, dim=2).unsqueeze(-1)
    pair = close.view(-1).nonzero().squeeze(-1)

    row = torch.div(pair, num_objects, rounding_mode="floor")  # (scene, candidate, time, lookahead)
    column = pair - row * num_objects
    ego_row = torch.div(row, num_times * num_ahead, rounding_mode="floor")  # (scene, candidate)
    key = row - ego_row * (num_times * num_ahead)
    scene = torch.div(ego_row, num_candidates, rounding_mode="floor")
    box = boxes.view(-1, 5).index_select(0, (scene * len(flat_frames) + key) * num_objects + column)
    heading = headings.reshape(-1).index_select(0, torch.div(row, num_ahead, rounding_mode="floor"))
    hit = boxes_intersect(
        centers.reshape(-1, 2).index_select(0, row), heading, HALF_EGO, box[:, :2], box[:, 2], box[:, 3:]
    )
    track = scenes.object_track.view(-1).index_select(0, scene * num_objects + column)
    first = torch.full((num_scenes * num_candidates * num_objects,), NEVER, dtype=torch.int64, device=device)
    first.scatter_reduce_(0, ego_row * num_objects + track, torch.where(hit, key, NEVER), "amin")
    found = (first < NEVER).nonzero().squeeze(-1)
    ego_row = torch.div(found, num_objects, rounding_mode="floor")
    scene = torch.div(ego_row, num_candidates, rounding_mode="floor")
    return FirstHits(
        scene, ego_row - scene * num_candidates, found - ego_row * num_objects, first.index_select(0, found)
    )


def relative_angle(states: Tensor, targets: Tensor) -> Tensor:
    """Angle [rad] between the ego heading and the way from its rear axle to targets (..., 2).

    The cosine is not clipped, as in the devkit: rounding beyond one, or no distance at all, gives NaN,
    which is neither ahead nor behind.
    """
    offset = targets - states[..., :2]
    direction = offset / torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
    heading = states[..., 2]
    return torch.arccos(heading.cos() * direction[..., 0] + heading.sin() * direction[..., 1])


def judge_contacts(scenes: Objects, states: Tensor, areas: EgoAreas) -> Contacts:
    """Who is to blame for each first contact of simulated states (scene, candidate, time, 11)."""
    hits = first_hits(scenes, ego_center(states).unsqueeze(3), states[..., 2], (0,))
    at = (hits.scene, hits.candidate, hits.key)
    ego = states[at]
    box = scenes.object_boxes[hits.scene, hits.key, hits.track]
    ego_stopped = torch.hypot(ego[:, 3], ego[:, 4]) <= STOPPED_SPEED
    track_stopped = scenes.track_stopped[hits.scene, hits.track]
    behind = relative_angle(ego, box[:, :2]) > BEHIND
    to_front = REAR_AXLE_TO_CENTER + EGO_LENGTH / 2
    heading = ego[:, 2]
    front = ego[:, :2] + to_front * torch.stack((heading.cos(), heading.sin()), dim=-1)
    frontal = boxes_intersect(front, heading, (0.0, EGO_WIDTH / 2), box[:, :2], box[:, 2], box[:, 3:])
    careless = areas.multiple_lanes[at] | areas.non_drivable[at]
    at_fault = ~ego_stopped & (track_stopped | (~behind & (frontal | careless)))
    return Contacts(hits, at_fault, scenes.track_is_agent[hits.scene, hits.track], track_stopped, frontal)


def no_at_fault_collisions(scenes: Objects, states: Tensor, areas: EgoAreas) -> CollisionResult:
    """Charge the ego for contacts it caused, for simulated states (scene, candidate, time, 11)."""
    if choice.use_numba(states):
        from navsim_bridge.pdm.compiled import contacts

        careless = areas.multiple_lanes | areas.non_drivable
        return CollisionResult(*contacts.collisions(scenes, states, careless, STOPPED_SPEED, BEHIND))
    num_scenes, num_candidates = states.shape[:2]
    hits, at_fault, agent, _, _ = judge_contacts(scenes, states, areas)
    value = torch.where(at_fault, torch.where(agent, 0.0, 0.5), 1.0).to(torch.float64)
    time = torch.where(at_fault, hits.key.to(torch.float64), torch.inf)
    ego_row = hits.scene * num_candidates + hits.candidate
    score = torch.ones(num_scenes * num_candidates, dtype=torch.float64, device=states.device)
    index = torch.full_like(score, torch.inf)
    score.scatter_reduce_(0, ego_row, value, "amin")
    index.scatter_reduce_(0, ego_row, time, "amin")
    return CollisionResult(score.view(num_scenes, num_candidates), index.view(num_scenes, num_candidates))
