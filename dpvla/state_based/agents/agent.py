"""What every agent of the state-based track offers: a loss, targets that follow, actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpvla.state_based.networks.draws import Draws
from dpvla.training.order import step_seed

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


class Agent(nn.Module, ABC):
    """Networks of one method for several seeds at once.

    An agent is made by ``make_agent``; ``update.StackedUpdate`` trains it and calls, for each update, ``loss``, the
    optimiser's step on the loss summed over seeds, and ``update_targets``. Seeds share nothing but the launch.
    """

    period: int = 1
    """The loss of update n (from 0) may depend on n modulo this (ReBRAC: its actor learns every second time)."""

    uses_next_actions: bool = False
    """Whether batches carry the recorded next actions."""

    def __init__(self, config: Any, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__()
        self.config, self.observation_dim, self.action_dim = config, observation_dim, action_dim
        self.seeds = tuple(seeds)

    def generators(self) -> list[torch.Generator]:
        """For the initial weights: one per seed, so that a seed starts the same whoever trains beside it."""
        return [torch.Generator().manual_seed(step_seed(seed, 0)) for seed in self.seeds]

    @abstractmethod
    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Sum of all networks' losses, (seed,), and numbers to log. ``phase``: update number modulo ``period``."""

    @abstractmethod
    def update_targets(self, phase: int) -> None:
        """Let the target networks follow; called after the optimiser's step."""

    @abstractmethod
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Actions in [-1, 1], (seed, row, action), for observations (seed, row, observation).

        Args:
            temperature: scale of the noise of Gaussian and deterministic policies (0: their mean, as in evaluation;
                1: as when collecting data). Flow and diffusion policies draw the same way at any temperature.
        """

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device
