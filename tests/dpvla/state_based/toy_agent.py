"""A plug-in with an agent: everything that an agent may have, and nothing of it in another file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpvla.config import Count, NotNegative
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.agents.values import Critic, bootstrapped, td_loss
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws
from dpvla.state_based.networks.stacked import StackedMLP


@dataclass(frozen=True)
class ToyConfig(AgentConfig):
    """TD3+BC without its tricks."""

    noise: NotNegative = 0.1  # when collecting
    every: Count = 2  # the policy learns every so many-th time
    extra_size: Count = 16  # of the policy alone

    def with_width(self, width: int) -> ToyConfig:
        return replace(self, hidden=(width,) * len(self.hidden), extra_size=width // 2)

    def differences(self, benchmark: str) -> tuple[str, ...]:
        return (f"a toy on {benchmark}",)


class Toy(Agent):
    Config = ToyConfig
    config: ToyConfig
    uses_next_actions = True

    def __init__(self, config: ToyConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        self.period, generators = config.every, self.generators()
        self.critic = Critic(config, observation_dim, action_dim, generators)
        self.policy = StackedMLP(generators, 1, observation_dim, (config.extra_size,), action_dim, "relu")

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        assert batch.next_actions is not None
        next_q = self.critic.target_value(batch.next_observations, batch.next_actions).amin(1)
        loss = td_loss(self.critic(batch.observations, batch.actions), bootstrapped(batch, 0.9, next_q))
        if phase == 0:
            actions = self.policy(batch.observations)[:, 0].tanh()
            loss = loss + (actions - batch.actions).square().mean((-2, -1))
            loss = loss - self.critic(batch.observations, actions, frozen=True).mean((-2, -1))
        return loss, {"toy/next_q": next_q.mean(-1)}

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        actions = self.policy(observations)[:, 0].tanh()
        noise = self.config.noise * temperature * draws.normal(*actions.shape[1:])
        return (actions + noise).clamp(-1, 1)


AGENTS["toy"] = Toy
