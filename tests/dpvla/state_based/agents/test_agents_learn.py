"""Every agent, end to end on a two-step task: it must act better than the behavior that it learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.networks.draws import FreshDraws
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.update import StackedUpdate
from tests.dpvla.state_based.agent_of import agent_of, config_of

SMALL: dict[str, Any] = {"hidden": (64, 64), "batch_size": 128, "target_rate": 0.05, "discount": 0.9}
SPECIAL: dict[str, dict[str, Any]] = {
    "dipole": {"beta": 10.0, "samples": 4, "flow_steps": 5},
    "iql": {"alpha": 10.0},
    "rebrac": {"alpha_actor": 0.1, "alpha_critic": 0.0},
    "cfgrl": {"omega": 1.0, "flow_steps": 5},
    "idql": {"policy_size": 64, "policy_rate": 0.05, "samples": 8},
    "ifql": {"flow_steps": 5, "samples": 8},
    "fql": {"alpha": 1.0, "flow_steps": 5},
    "flow_bc": {"flow_steps": 20},
}
STEPS = 300


def wanted(observations: Tensor) -> Tensor:
    """The best action: the observation itself, halved."""
    return 0.5 * observations


def reward(observations: Tensor, actions: Tensor) -> Tensor:
    return -(actions - wanted(observations)).square().sum(-1)


def random_behavior(rows: int = 4000) -> Transitions:
    """Two-step episodes: uniform actions, the second observation drawn afresh, then a true end."""
    generator = torch.Generator().manual_seed(0)
    observations = 2 * torch.rand(rows, 2, generator=generator) - 1
    actions = 2 * torch.rand(rows, 2, generator=generator) - 1
    second = (torch.arange(rows) % 2).float()
    return Transitions(
        observations, actions, reward(observations, actions), observations.roll(-1, 0), 1 - second, second
    )


def reward_after_training(name: str) -> list[float]:
    """Mean reward of one action, for each of two seeds that train side by side."""
    seeds = [0, 1]
    agent = agent_of(config_of(name, **(SMALL | SPECIAL[name])), 2, 2, seeds)
    replay = Replay(random_behavior(), seeds)
    update = StackedUpdate(agent, replace(STATE_BASED_LOOP, lr=2e-3), UpdateConfig(threads=1))
    for step in range(1, STEPS + 1):
        update.step(replay, step, 2e-3 * (1 - step / STEPS))
    observations = 2 * torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1) - 1
    actions = agent.act(observations, FreshDraws(seeds, "cpu", 0), temperature=0.0)
    return reward(observations, actions).mean(-1).tolist()


def behaviors_reward() -> float:
    return float(random_behavior().rewards.mean())


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "flow_bc"])
def test_the_agent_acts_much_better_than_the_random_behavior_it_saw(name: str) -> None:
    assert max(-value for value in reward_after_training(name)) < 0.5 * -behaviors_reward()


def test_cloning_acts_like_the_behavior() -> None:
    for value in reward_after_training("flow_bc"):
        assert value == pytest.approx(behaviors_reward(), rel=0.3)
