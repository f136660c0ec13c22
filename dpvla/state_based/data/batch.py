"""What one update learns from, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Info = dict[str, Tensor]
"""Numbers to log, one per seed: {name: (seed,)}."""


@dataclass(frozen=True)
class Batch:
    """The rows of one update. Seeds come first everywhere; each seed draws its own rows."""

    observations: Tensor  # (seed, row, observation)
    actions: Tensor  # (seed, row, action)
    rewards: Tensor  # (seed, row)
    next_observations: Tensor  # (seed, row, observation)
    masks: Tensor  # (seed, row), 0 where nothing follows
    next_actions: Tensor | None = None  # (seed, row, action) recorded in the next row; for agents that use them
    next_action_known: Tensor | None = None  # (seed, row), 0 where the next row belongs to another episode
