"""What plans do, whatever scores them: how far apart they are, and the ways in which rewards are known to be cheated.

Plans are (..., 8, 3) [m, m, rad] in the ego frame at t = 0, one pose every half second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpvla.plan import POSE_INTERVAL

_SCENES_AT_ONCE = 1024


def reverses(plans: Tensor, speed: float) -> Tensor:
    """(...) bool: between its last two poses a plan moves backwards, along its last heading, faster than so many m/s.

    The end of a plan is nothing but a pose to most scores, so that a step back costs little and may avoid a contact.
    """
    step, heading = plans[..., -1, :2] - plans[..., -2, :2], plans[..., -1, 2]
    along = step[..., 0] * heading.cos() + step[..., 1] * heading.sin()
    return along < -speed * POSE_INTERVAL


def stands_still(plans: Tensor, meters: float) -> Tensor:
    """(...) bool: the way from where the car is over all poses is shorter than so many meters."""
    places = torch.cat([torch.zeros_like(plans[..., :1, :2]), plans[..., :2]], dim=-2)
    return places.diff(dim=-2).norm(dim=-1).sum(-1) < meters


def pairwise_distance(plans: Tensor) -> Tensor:
    """(scene,) [m]: how far the plans (scene, candidate, 8, 3) of a scene are from each other, a mean over pairs and
    poses (the average pairwise distance of motion prediction, per pose). 0 for one candidate alone."""
    count = plans.shape[1]
    found = []
    for some in plans[..., :2].split(_SCENES_AT_ONCE):
        points = some.double().transpose(1, 2)  # (scene, pose, candidate, 2)
        apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(apart.sum(dim=(-2, -1)).mean(-1) / max(1, count * (count - 1)))
    return torch.cat(found)


def displacement(plans: Tensor, others: Tensor) -> Tensor:
    """(...) [m]: how far poses lie from those of other plans, a mean over poses."""
    return (plans[..., :2] - others[..., :2]).norm(dim=-1).mean(-1)


def effective_share(weights: Tensor) -> float:
    """``(sum w)^2 / (n sum w^2)`` of all weights: 1 where they are equal, 1/n where one has everything; 0 of none."""
    weights = weights.double()
    squares = weights.square().sum()
    return float(weights.sum().square() / (weights.numel() * squares)) if squares > 0 else 0.0
