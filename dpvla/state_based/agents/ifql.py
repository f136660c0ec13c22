"""IFQL: IQL's values, a flow policy that imitates, and the best of N of its samples (FQL's paper, IDQL with a flow)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpvla.config import Count, Steps
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import WITHOUT_LAG, ImplicitQConfig
from dpvla.state_based.agents.policies import FlowPolicy, best_of, repeated
from dpvla.state_based.agents.values import ImplicitQ, aggregate
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws


@dataclass(frozen=True)
class IFQLConfig(ImplicitQConfig):
    """Adds sampling."""

    target_lag: bool = True  # targets follow the weights from before the update, as in the FQL code
    samples: Count = 32  # N: actions drawn when acting, of which the one with the largest Q is taken
    flow_steps: Steps = 10  # Euler steps

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """Against the FQL code."""
        return () if self.target_lag else (WITHOUT_LAG,)


class IFQL(Agent):
    """Two Qs, V, one flow policy."""

    Config = IFQLConfig
    config: IFQLConfig

    def __init__(self, config: IFQLConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        generators = self.generators()
        self.values = ImplicitQ(config, observation_dim, action_dim, generators)
        self.policy = FlowPolicy(config, observation_dim, action_dim, generators)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Values, and flow matching on all recorded actions alike."""
        value_loss, info, _ = self.values.loss(batch)
        policy_loss = self.policy.loss(batch, draws)
        return value_loss + policy_loss, info | {"actor/flow": policy_loss.detach()}

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The best of N samples by the online Q."""
        several = repeated(observations, self.config.samples)
        actions = self.policy.sample(several, draws, self.config.flow_steps)
        return best_of(
            aggregate(self.values.critic(several, actions), self.config.clip_q), actions, self.config.samples
        )
