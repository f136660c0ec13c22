"""FQL (Park et al., 2025): a flow that imitates, and a one-step policy distilled from it that also climbs Q."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpvla.config import NotNegative, Steps
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import WITHOUT_LAG, AgentConfig
from dpvla.state_based.agents.policies import FlowPolicy, flow_actions, policy_network
from dpvla.state_based.agents.values import Critic, aggregate, bootstrapped, td_loss
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws


@dataclass(frozen=True)
class FQLConfig(AgentConfig):
    """Adds distillation. The defaults are those of the FQL code's agent; alpha wants a value for each task."""

    target_lag: bool = True  # targets follow the weights from before the update, as in the FQL code
    alpha: NotNegative = 10.0  # weight of staying near the flow
    clip_q: bool = False  # min of the two target Qs in the TD target; off: their mean
    normalize_q: bool = False  # divide the Q term by the mean |Q|, so that alpha does not depend on the rewards' scale
    flow_steps: Steps = 10  # Euler steps

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """Against the FQL code; for ExORL nothing was released."""
        found = [] if self.target_lag else [WITHOUT_LAG]
        if benchmark != "OGBench":
            found.append("alpha and normalized Q are ours: the paper tuned alpha, prints none")
        return tuple(found)


class FQL(Agent):
    """Two Qs, one flow, one one-step policy."""

    Config = FQLConfig
    config: FQLConfig

    def __init__(self, config: FQLConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        generators = self.generators()
        self.critic = Critic(config, observation_dim, action_dim, generators)
        self.flow = FlowPolicy(config, observation_dim, action_dim, generators)
        self.policy = policy_network(config, generators, observation_dim + action_dim, action_dim)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """TD learning, flow matching, distillation and the climb on Q."""
        critic_loss, info = self.critic_loss(batch, draws)
        flow_loss = self.flow.loss(batch, draws)
        policy_loss, policy_info = self.policy_loss(batch, draws)
        return critic_loss + flow_loss + policy_loss, info | {"actor/flow": flow_loss.detach()} | policy_info

    def critic_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, Info]:
        """Mean squared error of both Qs to ``r + gamma Q'(s', a')`` with a' from the one-step policy."""
        with torch.no_grad():
            next_actions = self.act(batch.next_observations, draws)
            next_q = aggregate(self.critic.target_value(batch.next_observations, next_actions), self.config.clip_q)
        q = self.critic(batch.observations, batch.actions)
        loss = td_loss(q, bootstrapped(batch, self.config.discount, next_q)) / 2
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean((-2, -1))}

    def policy_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, Info]:
        """``alpha |mu(s, z) - flow(s, z)|² - Q(s, mu(s, z))``; gradients reach the one-step policy alone."""
        noise = draws.normal(*batch.actions.shape[1:])
        with torch.no_grad():
            taught = flow_actions(self.flow, batch.observations, noise, self.config.flow_steps)
        actions = self.policy(batch.observations, noise)[:, 0]
        distillation = (actions - taught).square().mean((-2, -1))
        q = self.critic(batch.observations, actions.clamp(-1, 1), frozen=True).mean(1)
        climb = -q.mean(-1)
        if self.config.normalize_q:
            climb = climb / q.detach().abs().mean(-1)
        info = {"actor/distillation": distillation.detach(), "actor/q": q.detach().mean(-1)}
        return self.config.alpha * distillation + climb, info

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """One step from noise."""
        noise = draws.normal(observations.shape[1], self.action_dim)
        return self.policy(observations, noise)[:, 0].clamp(-1, 1)
