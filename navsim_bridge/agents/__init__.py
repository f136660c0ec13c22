"""Agents: who drives, from scene records to plans ``(scene, 8, 3)`` in the ego rear-axle frame."""

from navsim_bridge.agents.agent import Agent, cameras_of
from navsim_bridge.agents.baselines import constant_velocity, human, stand_still
from navsim_bridge.agents.policy_agent import PolicyAgent, load_policy
from navsim_bridge.agents.registry import AGENTS, find_agent

__all__ = [
    "AGENTS", "Agent", "PolicyAgent", "cameras_of", "constant_velocity", "find_agent", "human", "load_policy",
    "stand_still",
]  # fmt: skip
