"""Traffic-light compliance (EPDMS): does the ego touch a lane connector of the route while its light is red?"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from navsim_bridge.ego import EGO_RADIUS, HALF_EGO
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.geometry import boxes_intersect, ego_center, points_in_polygons
from navsim_bridge.pdm.objects import ObjectBatch
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.terms.collision import first_hits


def traffic_light_compliance(scenes: EPDMSBatch, states: Tensor) -> Tensor:
    """0 where the ego box ever shares a point with a connector of the route that is red then, else 1.

    Takes simulated states (scene, candidate, time, 11). Starting on such a connector fails, too.
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
    return (~failed).to(torch.float64)


def meets_false_light(objects: SceneBatch | ObjectBatch, is_light: Tensor, states: Tensor) -> Tensor:
    """(scene, candidate): whether the ego ever meets one of the objects that the devkit takes for red connectors.

    Args:
        objects: around the ego.
        is_light: (scene, object) bool, tracks whose token starts with ``red_light``.
        states: (scene, candidate, time, 11).
    """
    met = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
    if bool(is_light.any()):
        only_lights = dataclasses.replace(objects, track_skipped=~is_light)
        hits = first_hits(only_lights, ego_center(states).unsqueeze(3), states[..., 2], (0,))
        met[hits.scene, hits.candidate] = True
    return met


def _on_red_edge(scenes: EPDMSBatch, centers: Tensor, headings: Tensor) -> Tensor:
    """(scene, candidate): whether the ego box ever meets an edge of a light that is red then."""
    if choice.use_numba(centers):
        from navsim_bridge.pdm.compiled import contacts

        return contacts.edges_met(centers, headings, scenes.light_chains, scenes.chain_light, scenes.light_red)
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
