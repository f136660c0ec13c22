"""Time to collision within bound: would the ego, kept at its velocity, hit something within 0.9 s?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.constants import constant
from navsim_bridge.pdm.geometry import ego_center
from navsim_bridge.pdm.objects import Objects
from navsim_bridge.pdm.terms.areas import EgoAreas
from navsim_bridge.pdm.terms.collision import AHEAD, BEHIND, FirstHits, first_hits, relative_angle

LOOKAHEAD = (0, 3, 6, 9)
"""Steps of 0.1 s; the devkit's range ends before the nominal 1.0 s."""
_STANDING = 0.005  # [m/s] slower egos are not tested


class Threats(NamedTuple):
    """First extrapolated contacts of every (candidate, track) pair, and which of them count; n rows."""

    hits: FirstHits
    time: Tensor  # (n,) time index of the ego
    steps: Tensor  # (n,) how far it is extrapolated [0.1 s]
    ahead: Tensor  # (n,) bool, the object is ahead
    infraction: Tensor  # (n,) bool


class TTCResult(NamedTuple):
    score: Tensor  # (scene, candidate) float64 0 or 1
    time_index: Tensor  # (scene, candidate) float64 first infraction, inf if none


def judge_threats(scenes: Objects, states: Tensor, areas: EgoAreas) -> Threats:
    """Which extrapolated contacts of simulated states (scene, candidate, time, 11) count.

    The box is moved along its heading by the unsigned speed, so a reversing ego is extrapolated forward. A
    contact counts when the object is ahead, or not behind while the ego is between lanes, off the road or
    in an intersection; any other contact makes the devkit ignore that token from then on.
    """
    speed = torch.hypot(states[..., 3], states[..., 4])
    heading = states[..., 2]
    direction = torch.stack((heading.cos(), heading.sin()), dim=-1)
    seconds = constant(states.device, np.array, LOOKAHEAD) * 0.1
    travel = (speed.unsqueeze(-1) * seconds).unsqueeze(-1) * direction.unsqueeze(3)
    centers = ego_center(states).unsqueeze(3) + travel
    hits = first_hits(scenes, centers, heading, LOOKAHEAD, active=speed >= _STANDING)

    time = torch.div(hits.key, len(LOOKAHEAD), rounding_mode="floor")
    steps = constant(states.device, np.array, LOOKAHEAD)[hits.key - time * len(LOOKAHEAD)]
    at = (hits.scene, hits.candidate, time)
    target = scenes.object_boxes[hits.scene, time + steps, hits.track, :2]
    angle = relative_angle(states[at], target)
    exposed = areas.multiple_lanes[at] | areas.non_drivable[at] | areas.in_intersection[at]
    ahead = angle < AHEAD
    return Threats(hits, time, steps, ahead, ahead | (exposed & ~(angle > BEHIND)))


def time_to_collision(scenes: Objects, states: Tensor, areas: EgoAreas) -> TTCResult:
    """1 unless a threat counts, for simulated states (scene, candidate, time, 11)."""
    if choice.use_numba(states):
        from navsim_bridge.pdm.compiled import contacts

        exposed = areas.multiple_lanes | areas.non_drivable | areas.in_intersection
        index = contacts.threats(scenes, states, exposed, LOOKAHEAD, _STANDING, AHEAD, BEHIND)
        return TTCResult(torch.isinf(index).to(torch.float64), index)
    num_scenes, num_candidates = states.shape[:2]
    hits, time, _, _, infraction = judge_threats(scenes, states, areas)
    index = torch.full((num_scenes * num_candidates,), torch.inf, dtype=torch.float64, device=states.device)
    index.scatter_reduce_(
        0,
        hits.scene * num_candidates + hits.candidate,
        torch.where(infraction, time.to(torch.float64), torch.inf),
        "amin",
    )
    index = index.view(num_scenes, num_candidates)
    return TTCResult(torch.isinf(index).to(torch.float64), index)
