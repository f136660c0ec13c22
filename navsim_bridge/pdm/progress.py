"""Progress along the centreline, and driving against the route's direction."""

from __future__ import annotations

import torch
from torch import Tensor

from navsim_bridge.pdm.areas import EgoAreas
from navsim_bridge.pdm.geometry import ego_center, project_on_polyline
from navsim_bridge.pdm.scene import SceneBatch

_ENOUGH_PROGRESS = 5.0  # [m] if neither plan gets further than this, progress is not judged
_ONCOMING_WINDOW = 11  # steps summed, although the horizon is called one second
_ONCOMING_LIMITS = (2.0, 6.0)  # [m] below: 1, below: 0.5, else 0


def progress_along_centerline(scenes: SceneBatch, states: Tensor) -> Tensor:
    """Metres (scene, candidate) the ego centre advances along the centreline, not below zero."""
    ends = ego_center(states[:, :, [0, -1]])
    num_scenes, num_candidates = states.shape[:2]
    at = project_on_polyline(ends.view(num_scenes, -1, 2), scenes.centerline, scenes.centerline_mask)
    at = at.view(num_scenes, num_candidates, 2)
    return (at[..., 1] - at[..., 0]).clamp_min(0.0)


def normalize_progress(raw: Tensor, product: Tensor, reference_raw: Tensor, reference_product: Tensor) -> Tensor:
    """Ego progress (scene, candidate) against the reference, one pair at a time as in one devkit call.

    Args:
        raw, product: (scene, candidate) metres and the product of the multipliers; a halved product halves
            the progress as well.
        reference_raw, reference_product: (scene,) the same of the reference.
    """
    weighted = raw * product
    best = torch.maximum(weighted, (reference_raw * reference_product).unsqueeze(-1))
    judged = best > _ENOUGH_PROGRESS
    unjudged = (product != 0).to(torch.float64)
    return torch.where(judged, weighted / torch.where(judged, best, 1.0), unjudged)


def driving_direction_compliance(states: Tensor, areas: EgoAreas) -> Tensor:
    """1, 0.5 or 0 (scene, candidate) by the most metres driven off the route's lanes within a window."""
    center = ego_center(states)
    step = torch.linalg.vector_norm(center[:, :, 1:] - center[:, :, :-1], dim=-1)
    against = torch.where(areas.oncoming[:, :, 1:], step, 0.0)
    padded = torch.nn.functional.pad(against, (_ONCOMING_WINDOW - 1, 0))
    worst = padded.unfold(-1, _ONCOMING_WINDOW, 1).sum(-1).amax(-1)
    minor, major = _ONCOMING_LIMITS
    return torch.where(worst < minor, 1.0, torch.where(worst < major, 0.5, 0.0)).to(torch.float64)
