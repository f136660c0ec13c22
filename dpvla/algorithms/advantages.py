"""From the rewards of a group of plans to advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from dpvla.config import ConfigError

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


def preferred(rewards: Tensor, spread_floor: float) -> tuple[Tensor, Tensor]:
    """``group_advantages`` of a cycle, for an algorithm that learns from preferences alone.

    Raises ConfigError where no group of the cycle has any: its updates would be spent for nothing.
    """
    advantages, flat = group_advantages(rewards, spread_floor)
    if bool(flat.all()):
        largest = float(rewards.std(-1, unbiased=False).max())
        raise ConfigError(
            f"there is nothing to learn: in each of the {len(rewards)} scenes of this cycle the plans have nearly the "
            f"same reward (standard deviation up to {largest:.2g}, algorithm.spread_floor is {spread_floor:g}; mean "
            f"reward {float(rewards.mean()):.4g}): see that --metric is the one you mean, and that the policy is "
            "pretrained; or take more plans a scene, or a lower floor"
        )
    return advantages, flat
