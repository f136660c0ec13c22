"""Value learning that agents share: two Q networks with targets, and IQL's V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpvla.state_based.agents.config import AgentConfig, ImplicitQConfig
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.stacked import StackedMLP, follow, target_of


class Critic(nn.Module):
    """Two Q networks for each seed, and targets that follow them."""

    def __init__(
        self, config: AgentConfig, observation_dim: int, action_dim: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.rate = config.target_rate
        inputs = observation_dim + action_dim
        self.online = StackedMLP(generators, 2, inputs, config.hidden, 1, config.activation, config.value_norm)
        self.target = target_of(self.online)

    def forward(self, observations: Tensor, actions: Tensor, frozen: bool = False) -> Tensor:
        """Online Q, (seed, 2, row); ``frozen``: gradients reach the actions but not the parameters."""
        return self.online(observations, actions, frozen=frozen).squeeze(-1)

    def target_value(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Target Q, (seed, 2, row)."""
        return self.target(observations, actions).squeeze(-1)

    def follow(self) -> None:
        """Move the targets after an update."""
        follow(self.target, self.online, self.rate)


def aggregate(q: Tensor, clip_q: bool) -> Tensor:
    """One number from the two Qs, (seed, 2, row) to (seed, row): the smaller one, or the mean."""
    return q.amin(1) if clip_q else q.mean(1)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """``|expectile - 1(d < 0)| d²``, element by element (IQL's Eq. 5)."""
    return (expectile - (difference < 0).to(difference.dtype)).abs() * difference.square()


def bootstrapped(batch: Batch, discount: float, next_value: Tensor) -> Tensor:
    """``r + gamma · mask · next value``, (seed, row): after a true end only the reward counts."""
    return torch.addcmul(batch.rewards, batch.masks, next_value, value=discount)


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of both Qs, (seed, 2, row) against (seed, row), summed over the two: (seed,)."""
    return (q - target.unsqueeze(1)).square().sum(1).mean(-1)


@dataclass(frozen=True)
class Values:
    """What value learning computed on a batch; none of it carries gradients."""

    target_q: Tensor  # (seed, row), target critic
    q: Tensor  # (seed, row), online critic
    v: Tensor  # (seed, row)


class ImplicitQ(nn.Module):
    """IQL's V and Q: V is the expectile of the target Q over dataset actions, Q learns ``r + gamma V(s')``."""

    def __init__(
        self, config: ImplicitQConfig, observation_dim: int, action_dim: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.config = config
        self.critic = Critic(config, observation_dim, action_dim, generators)
        self.value = StackedMLP(generators, 1, observation_dim, config.hidden, 1, config.activation, config.value_norm)

    def v(self, observations: Tensor) -> Tensor:
        """V(s), (seed, row)."""
        return self.value(observations)[:, 0, :, 0]

    def loss(self, batch: Batch, next_value: Tensor | None = None) -> tuple[Tensor, Info, Values]:
        """Losses of V and both Qs, (seed,).

        Args:
            next_value: (seed, row), what stands behind the reward in Q's target; None: V(s').
        """
        config = self.config
        target_q = aggregate(self.critic.target_value(batch.observations, batch.actions), config.clip_q)
        v = self.v(batch.observations)
        value_loss = expectile_loss(target_q - v, config.expectile).mean(-1)

        if next_value is None:
            with torch.no_grad():
                next_value = self.v(batch.next_observations)
        q = self.critic(batch.observations, batch.actions)
        critic_loss = td_loss(q, bootstrapped(batch, config.discount, next_value))

        values = Values(target_q, aggregate(q.detach(), config.clip_q), v.detach())
        info = {
            "value/loss": value_loss.detach(),
            "value/v": values.v.mean(-1),
            "critic/loss": critic_loss.detach(),
            "critic/q": values.q.mean(-1),
        }
        return value_loss + critic_loss, info, values
