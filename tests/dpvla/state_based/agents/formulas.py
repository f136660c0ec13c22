"""What the tests of the losses have in common: small agents, a batch in NumPy, and the parts of their formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.values import ImplicitQ
from dpvla.state_based.data.batch import Batch
from tests.dpvla.state_based.agent_of import agent_of
from tests.dpvla.state_based.agents.plain_networks import (
    Array,
    KnownDraws,
    mlp,
    plain,
    shake,
)

SMALL: dict[str, Any] = {"hidden": (5, 4), "batch_size": 6, "discount": 0.9}


def small_agent(config: AgentConfig) -> Any:
    agent = agent_of(config, 3, 2, [0]).double()
    shake(agent)
    return agent


@dataclass
class Rows:
    """A batch of one seed as NumPy arrays (row, ·)."""

    s: Array
    a: Array
    r: Array
    following: Array
    mask: Array
    next_a: Array
    known: Array

    @staticmethod
    def of(batch: Batch) -> Rows:
        assert batch.next_actions is not None and batch.next_action_known is not None
        return Rows(*(plain(x)[0] for x in (batch.observations, batch.actions, batch.rewards, batch.next_observations,
                                            batch.masks, batch.next_actions, batch.next_action_known)))  # fmt: skip


def qs(stack: nn.Module, s: Array, a: Array, name: str, norm: str = "after") -> Array:
    """(2, row)."""
    return np.stack([mlp(stack, s, a, name=name, norm=norm, member=m)[:, 0] for m in (0, 1)])  # type: ignore[arg-type]


def expectile(d: Array, tau: float) -> Array:
    return np.where(d >= 0, tau, 1 - tau) * d**2


def value_parts(values: ImplicitQ, rows: Rows, next_value: Array | None = None) -> tuple[float, Array, Array, Array]:
    """Loss of V and both Qs, and target Q, online Q and V on the rows; ``next_value`` (row,), or (number, row)."""
    config = values.config
    name, norm = config.activation, config.value_norm
    one = (lambda q: q.min(0)) if config.clip_q else (lambda q: q.mean(0))
    target_q = one(qs(values.critic.target, rows.s, rows.a, name, norm))
    v = mlp(values.value, rows.s, name=name, norm=norm)[:, 0]
    if next_value is None:
        next_value = mlp(values.value, rows.following, name=name, norm=norm)[:, 0]
    y = rows.r + config.discount * rows.mask * next_value
    q = qs(values.critic.online, rows.s, rows.a, name, norm)
    loss = expectile(target_q - v, config.expectile).mean() + ((q[:, None] - np.atleast_2d(y)) ** 2).sum(0).mean()
    return float(loss), target_q, one(q), v


def flow_euler(velocity: Any, noise: Array, steps: int) -> Array:
    x = noise
    for step in range(steps):
        x = x + velocity(x, np.full((len(x), 1), step / steps)) / steps
    return np.clip(x, -1, 1)


def total(agent: Agent, batch: Batch, draws: KnownDraws, phase: int = 0) -> float:
    loss, info = agent.loss(batch, draws, phase)
    assert loss.shape == (1,) and all(value.shape == (1,) and not value.requires_grad for value in info.values())
    return float(loss.detach())
