"""From the rewards of a group of plans to advantages."""

from __future__ import annotations

import torch
from torch import Tensor

ZERO_SPREAD = 1e-6
"""A group whose rewards all lie within this standard deviation carries no preference."""


def group_advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """``G_i = (r_i - mean(r)) / std(r)`` over the candidates of a scene (Eq. 17).

    Args:
        rewards: (scene, candidate). The standard deviation is the population's.

    Returns:
        advantages (scene, candidate) and a mask (scene,) of the groups without spread, whose advantages are 0.

    Raises ValueError for rewards that are not finite.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards hold NaN or infinity; a failed score is not a reward")
    centered = rewards - rewards.mean(-1, keepdim=True)
    spread = centered.pow(2).mean(-1, keepdim=True).sqrt()
    flat = spread < ZERO_SPREAD
    return torch.where(flat, 0.0, centered / spread.clamp_min(ZERO_SPREAD)), flat.squeeze(-1)
