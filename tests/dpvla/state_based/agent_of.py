"""The agent of a config, for tests that say what they train by its hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.registry import AGENTS, agent_class, make_agent


def agent_of(config: AgentConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> Agent:
    name = next(name for name in AGENTS if agent_class(name).Config is type(config))
    return make_agent(name, config, observation_dim, action_dim, seeds)


def config_of(name: str, **changes: Any) -> AgentConfig:
    return agent_class(name).Config(**changes)
