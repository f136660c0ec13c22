"""Progress along the centerline, and driving against the route's direction."""

from __future__ import annotations

import torch
from torch import Tensor

from navsim_bridge.pdm.geometry import ego_center, project_on_polyline
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.terms.areas import EgoAreas

ENOUGH_PROGRESS = 5.0
"""[m] If no plan gets further than this, progress is not judged."""
_ONCOMING_WINDOW = 11  # steps summed, although the horizon is called one second
_ONCOMING_LIMITS = (2.0, 6.0)  # [m] below: 1, below: 0.5, else 0


def progress_along_centerline(scenes: SceneBatch, states: Tensor) -> Tensor:
    """Meters (scene, candidate) the ego center advances along the centerline, not below zero."""
    # all candidates start where the ego is
    ends = ego_center(torch.cat((states[:, :1, 0], states[:, :, -1]), dim=1))
    at = project_on_polyline(ends, scenes.centerline, scenes.centerline_mask)
    return (at[:, 1:] - at[:, :1]).clamp_min(0.0)


def progress_scale(weighted: Tensor, reference_weighted: Tensor) -> Tensor:
    """Meters (scene, candidate) that count as full progress: the further of candidate and reference.

    Args:
        weighted: (scene, candidate) meters times the product of the multipliers.
        reference_weighted: (scene,) the same of the reference.
    """
    return torch.maximum(weighted, reference_weighted.unsqueeze(-1))


def pooled_progress_scale(weighted: Tensor, reference_weighted: Tensor) -> Tensor:
    """As ``progress_scale``, but the furthest of the reference and all candidates of the scene."""
    everyone = torch.cat((weighted, reference_weighted.unsqueeze(-1)), dim=-1)
    return everyone.amax(-1, keepdim=True).expand_as(weighted)


def normalize_progress(weighted: Tensor, product: Tensor, scale: Tensor) -> Tensor:
    """Ego progress (scene, candidate) as a part of ``scale``; not judged when even that is short.

    Args:
        weighted: (scene, candidate) meters times the product, so a halved product halves the progress as well.
        product: (scene, candidate) of the multipliers.
        scale: (scene, candidate) [m].
    """
    judged = scale > ENOUGH_PROGRESS
    unjudged = (product != 0).to(torch.float64)
    return torch.where(judged, weighted / torch.where(judged, scale, 1.0), unjudged)


def normalize_raw_progress(raw: Tensor, scale: Tensor) -> Tensor:
    """As ``normalize_progress`` by the rule of v2: a plan's own multipliers only set the scale, and nobody is judged
    when that is short.

    Args:
        raw: (scene, candidate) meters.
        scale: (scene, candidate or 1) [m].
    """
    judged = scale > ENOUGH_PROGRESS
    return torch.where(judged, (raw / torch.where(judged, scale, 1.0)).clamp(0.0, 1.0), 1.0)


def against_route(states: Tensor, areas: EgoAreas) -> Tensor:
    """Meters (scene, candidate, 40) driven off the route's lanes within the window that ends at each step."""
    center = ego_center(states)
    step = torch.linalg.vector_norm(center[:, :, 1:] - center[:, :, :-1], dim=-1)
    against = torch.where(areas.oncoming[:, :, 1:], step, 0.0)
    padded = torch.nn.functional.pad(against, (_ONCOMING_WINDOW - 1, 0))
    return padded.unfold(-1, _ONCOMING_WINDOW, 1).sum(-1)


def driving_direction_compliance(states: Tensor, areas: EgoAreas) -> Tensor:
    """1, 0.5 or 0 (scene, candidate) by the most meters driven off the route's lanes within a window."""
    worst = against_route(states, areas).amax(-1)
    minor, major = _ONCOMING_LIMITS
    return torch.where(worst < minor, 1.0, torch.where(worst < major, 0.5, 0.0)).to(torch.float64)
