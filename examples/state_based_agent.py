"""A state-based agent to copy: plain behavior cloning with a Gaussian policy, the simplest of all baselines.

python tools/train_state_based.py --plugin examples/state_based_agent.py --agent gaussian_bc \
    --env cube-single-play-singletask-v0 --data data/ogbench --out runs/gaussian_bc

What an agent must offer, and what the track then does for it, is on one page: dpvla/state_based/agents/agent.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpvla.config import Positive
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.policies import policy_network
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws


@dataclass(frozen=True)
class GaussianBCConfig(AgentConfig):
    """Adds the smallest standard deviation; discount and target rate have no meaning here."""

    smallest_std: Positive = 0.05  # actions lie in [-1, 1]


class GaussianBC(Agent):
    """Imitates every recorded action alike: maximum likelihood under a Gaussian, one per state."""

    Config = GaussianBCConfig
    config: GaussianBCConfig

    def __init__(self, config: GaussianBCConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        self.policy = policy_network(config, self.generators(), observation_dim, 2 * action_dim)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """``(a - mean)² / (2 std²) + log std``, mean over rows and action numbers."""
        mean, std = self.gaussian(batch.observations)
        loss = (0.5 * ((batch.actions - mean) / std).square() + std.log()).mean((-2, -1))
        return loss, {"actor/loss": loss.detach(), "actor/std": std.detach().mean((-2, -1))}

    def gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (seed, row, action) each."""
        mean, width = self.policy(observations)[:, 0].chunk(2, -1)
        return mean.tanh(), nn.functional.softplus(width) + self.config.smallest_std

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The mean plus ``temperature`` times the Gaussian's noise."""
        mean, std = self.gaussian(observations)
        return (mean + temperature * std * draws.normal(*mean.shape[1:])).clamp(-1, 1)


AGENTS["gaussian_bc"] = GaussianBC
