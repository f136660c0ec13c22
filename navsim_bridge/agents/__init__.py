"""Agents: who drives, from scene records to plans ``(scene, 8, 3)`` in the ego rear-axle frame.

A policy's networks are loaded when one is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from navsim_bridge.agents.agent import Agent, cameras_of
from navsim_bridge.agents.baselines import constant_velocity, human, stand_still
from navsim_bridge.agents.registry import AGENTS, find_agent

if TYPE_CHECKING:
    from navsim_bridge.agents.policy_agent import PolicyAgent, load_policy

__all__ = [
    "AGENTS", "Agent", "PolicyAgent", "cameras_of", "constant_velocity", "find_agent", "human", "load_policy",
    "stand_still",
]  # fmt: skip

_LOADED_WHEN_ASKED_FOR = dict.fromkeys(("PolicyAgent", "load_policy"), "navsim_bridge.agents.policy_agent")


def __getattr__(name: str) -> Any:
    if name not in _LOADED_WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOADED_WHEN_ASKED_FOR[name]), name)
