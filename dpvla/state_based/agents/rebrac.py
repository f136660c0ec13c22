"""ReBRAC (Tarasov et al., 2023): TD3+BC with separate penalties on actor and critic.

It follows ``rebrac.py`` of github.com/seohongpark/fql (commit 719d044), but for what is in
``ReBRACConfig.differences``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpvla.config import Count, NotNegative
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import WITHOUT_LAG, AgentConfig
from dpvla.state_based.agents.policies import FIRST_ACTIONS_NEAR_ZERO, policy_network
from dpvla.state_based.agents.values import Critic, bootstrapped, td_loss
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws
from dpvla.state_based.networks.stacked import follow, target_of


@dataclass(frozen=True)
class ReBRACConfig(AgentConfig):
    """Adds penalties and smoothing noise. The FQL code's penalties default to 0: it expects a value for each task."""

    FORMERLY: ClassVar[dict[str, Any]] = AgentConfig.FORMERLY | {"actor_coasts": False}

    target_lag: bool = True  # targets follow the weights from before the update, as in the FQL code
    alpha_actor: NotNegative = 0.01  # weight of |pi(s) - a|² in the actor's loss
    alpha_critic: NotNegative = 0.01  # weight of |a' - recorded a'|² in the TD target
    noise: NotNegative = 0.2  # standard deviation of the target actions' noise, and of the noise when collecting data
    noise_clip: NotNegative = 0.5  # it is clipped to ± this
    actor_every: Count = 2  # the actor learns, and the targets follow, in every so many-th update
    actor_coasts: bool = (
        True  # in the others Adam's momentum moves it on, with zero gradients (FQL code); off: it rests
    )

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """The end of episodes, penalties nobody published, and what of the FQL code's updates is turned off."""
        found = [] if benchmark == "OGBench" else ["penalties are ours: none are published"]
        if not self.target_lag:
            found.append(WITHOUT_LAG)
        if self.actor_every > 1 and not self.actor_coasts:
            found.append(
                "between its updates the actor rests (in the FQL code Adam's momentum moves it on, with zero gradients)"
            )
        if self.alpha_critic:
            found.append(
                "no critic penalty behind an episode's last row (in the FQL code: to the first action of the next one)"
            )
        return tuple(found)


class ReBRAC(Agent):
    """Two Qs and a deterministic policy, both with targets."""

    Config = ReBRACConfig
    config: ReBRACConfig
    uses_next_actions = True

    def __init__(self, config: ReBRACConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        self.period, self.coasts = config.actor_every, config.actor_coasts
        generators = self.generators()
        self.critic = Critic(config, observation_dim, action_dim, generators)
        self.policy = policy_network(
            config, generators, observation_dim, action_dim, final_scale=FIRST_ACTIONS_NEAR_ZERO
        )
        self.target_policy = target_of(self.policy)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """TD learning, and in every second update the actor."""
        critic_loss, info = self.critic_loss(batch, draws)
        if not self._actor_learns(phase):
            return critic_loss, info
        policy_loss, policy_info = self.policy_loss(batch)
        return critic_loss + policy_loss, info | policy_info

    def critic_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, Info]:
        """Mean squared error of both Qs to ``r + gamma (min Q'(s', a') - alpha_critic |a' - recorded a'|²)``.

        Behind an episode's last row no action is recorded, so the penalty is left out there.
        """
        assert batch.next_actions is not None and batch.next_action_known is not None
        with torch.no_grad():
            next_actions = torch.tanh(self.target_policy(batch.next_observations)[:, 0])
            next_actions = (next_actions + self.smoothing(draws, next_actions)).clamp(-1, 1)
            next_q = self.critic.target_value(batch.next_observations, next_actions).amin(1)
            distance = (next_actions - batch.next_actions).square().sum(-1)
            next_q = next_q - self.config.alpha_critic * batch.next_action_known * distance
        q = self.critic(batch.observations, batch.actions)
        loss = td_loss(q, bootstrapped(batch, self.config.discount, next_q)) / 2
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean((-2, -1))}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """``-min Q(s, pi(s)) / mean|Q| + alpha_actor |pi(s) - a|²``; gradients reach the actor alone."""
        actions = torch.tanh(self.policy(batch.observations)[:, 0])
        q = self.critic(batch.observations, actions, frozen=True).amin(1)
        climb = -q.mean(-1) / q.detach().abs().mean(-1)
        distance = (actions - batch.actions).square().sum(-1).mean(-1)
        return climb + self.config.alpha_actor * distance, {
            "actor/q": q.detach().mean(-1),
            "actor/distance": distance.detach(),
        }

    def smoothing(self, draws: Draws, actions: Tensor, temperature: float = 1.0) -> Tensor:
        """Clipped Gaussian noise shaped like ``actions``."""
        noise = temperature * self.config.noise * draws.normal(*actions.shape[1:])
        return noise.clamp(-self.config.noise_clip, self.config.noise_clip)

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The deterministic action plus ``temperature`` times the smoothing noise."""
        actions = torch.tanh(self.policy(observations)[:, 0])
        return (actions + self.smoothing(draws, actions, temperature)).clamp(-1, 1)

    def update_targets(self, phase: int) -> None:
        """Both targets follow when the actor has learned."""
        if self._actor_learns(phase):
            super().update_targets(phase)
            follow(self.target_policy, self.policy, self.config.target_rate)

    def _actor_learns(self, phase: int) -> bool:
        return phase == self.period - 1
