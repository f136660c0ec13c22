"""From the rewards of a group of plans to advantages."""

from __future__ import annotations

import torch
from torch import Tensor

ZERO_SPREAD = 1e-6
"""A group whose rewards all lie within this standard deviation carries no preference, whatever its scale."""


def group_advantages(rewards: Tensor, spread_floor: float = ZERO_SPREAD) -> tuple[Tensor, Tensor]:
    """``G_i = (r_i - mean(r)) / std(r)`` over the candidates of a scene (Eq. 17), 0 where they hardly differ.

    Eq. 17 has no floor: a group whose rewards differ by 1e-5 would get advantages of full size. Below the floor all are
    zero, rather than small in proportion, since some algorithms look at their order or sign alone.

    Args:
        rewards: (scene, candidate). The standard deviation is the population's.
        spread_floor: standard deviation below which a group carries no preference.

    Returns:
        advantages (scene, candidate) and a mask (scene,) of the groups below the floor.

    Raises ValueError for rewards that are not finite.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards hold NaN or infinity; a failed score is not a reward")
    centered = rewards - rewards.mean(-1, keepdim=True)
    spread = centered.pow(2).mean(-1, keepdim=True).sqrt()
    flat = spread < spread_floor
    return torch.where(flat, 0.0, centered / spread.clamp_min(spread_floor)), flat.squeeze(-1)
