"""Behavior cloning with a flow policy: weight 1 for every recorded action, no values. The floor for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpvla.config import Steps
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.policies import FlowPolicy
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws


@dataclass(frozen=True)
class FlowBCConfig(AgentConfig):
    """Adds the flow's steps; discount and target rate have no meaning here."""

    flow_steps: Steps = 10  # Euler steps


class FlowBC(Agent):
    """One flow policy."""

    Config = FlowBCConfig
    config: FlowBCConfig

    def __init__(self, config: FlowBCConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        self.policy = FlowPolicy(config, observation_dim, action_dim, self.generators())

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Flow matching."""
        loss = self.policy.loss(batch, draws)
        return loss, {"actor/flow": loss.detach()}

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """One sample."""
        return self.policy.sample(observations, draws, self.config.flow_steps)
