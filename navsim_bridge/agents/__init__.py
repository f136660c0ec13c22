"""Agents: callables from scene records to plans ``(scene, 8, 3)`` in the ego rear-axle frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from navsim_bridge.agents.baselines import constant_velocity, human, stand_still
from navsim_bridge.agents.policy_agent import PolicyAgent, load_policy
from navsim_bridge.splits.scenes import SceneRecord

Agent = Callable[[Sequence[SceneRecord]], NDArray[Any]]

BASELINES: dict[str, Agent] = {
    "constant_velocity": constant_velocity,
    "stand_still": stand_still,
    "human": human,
}

__all__ = ["BASELINES", "Agent", "PolicyAgent", "constant_velocity", "human", "load_policy", "stand_still"]
