"""Value learning that agents share: two Q networks with targets, and IQL's V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dpvla.state_based.agents.config import AgentConfig, ImplicitQConfig
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.stacked import StackedMLP, follow, target_of

WhichQ = Literal["target", "online"]


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
        """Move the targets."""
        follow(self.target, self.online, self.rate)


def aggregate(q: Tensor, clip_q: bool) -> Tensor:
    """One number from the two Qs, (seed, 2, row) to (seed, row): the smaller one, or the mean."""
    return q.amin(1) if clip_q else q.mean(1)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """``|expectile - 1(d < 0)| d²``, element by element (IQL's Eq. 5)."""
    return (expectile - (difference < 0).to(difference.dtype)).abs() * difference.square()


def bootstrapped(batch: Batch, discount: float, next_value: Tensor) -> Tensor:
    """``r + gamma · mask · next value``, shaped like it: after a true end only the reward counts.

    Args:
        next_value: (seed, row), or several for each row, (seed, number, row).
    """
    rewards, masks = batch.rewards, batch.masks
    if next_value.dim() == 3:
        rewards, masks = rewards.unsqueeze(1), masks.unsqueeze(1)
    return torch.addcmul(rewards, masks, next_value, value=discount)


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of both Qs, (seed, 2, row) against (seed, row), summed over the two: (seed,).

    Of several targets a row, (seed, number, row), each Q learns all: the loss is the mean over them, and so is what the
    Q comes to.
    """
    if target.dim() == 2:
        return (q - target.unsqueeze(1)).square().sum(1).mean(-1)
    return (q.unsqueeze(2) - target.unsqueeze(1)).square().sum(1).mean((1, 2))


@dataclass(frozen=True)
class Values:
    """What value learning computed on a batch; none of it carries gradients."""

    target_qs: Tensor  # (seed, 2, row), target critic
    qs: Tensor  # (seed, 2, row), online critic
    v: Tensor  # (seed, row)

    def advantage(self, which: WhichQ, clip_q: bool) -> Tensor:
        """``Q - V`` of the recorded actions, (seed, row): the smaller Q, or without ``clip_q`` the mean of the two."""
        return aggregate(self.target_qs if which == "target" else self.qs, clip_q) - self.v


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
            next_value: (seed, row) or (seed, number, row), what stands behind the reward in Q's target or targets (see
                ``td_loss``); None: V(s').
        """
        config = self.config
        target_qs = self.critic.target_value(batch.observations, batch.actions)
        v = self.v(batch.observations)
        value_loss = expectile_loss(aggregate(target_qs, config.clip_q) - v, config.expectile).mean(-1)

        if next_value is None:
            with torch.no_grad():
                next_value = self.v(batch.next_observations)
        q = self.critic(batch.observations, batch.actions)
        critic_loss = td_loss(q, bootstrapped(batch, config.discount, next_value))

        values = Values(target_qs, q.detach(), v.detach())
        info = {
            "value/loss": value_loss.detach(),
            "value/v": values.v.mean(-1),
            "critic/loss": critic_loss.detach(),
            "critic/q": aggregate(values.qs, config.clip_q).mean(-1),
        }
        return value_loss + critic_loss, info, values
