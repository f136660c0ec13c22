"""Names of agents. A module of yours adds one, ``AGENTS["mine"] = drive``, and is named with ``--plugin my_module``."""

from __future__ import annotations

from typing import Any

from dpvla.registry import Registry, look_up

AGENTS = Registry(
    None,
    dpvla="navsim_bridge.agents.policy_agent:PolicyAgent",
    constant_velocity="navsim_bridge.agents.baselines:constant_velocity",
    stand_still="navsim_bridge.agents.baselines:stand_still",
    human="navsim_bridge.agents.baselines:human",
)
"""Each an `Agent`, or where it is; a trained policy, which needs a checkpoint, is the class `PolicyAgent`."""


def find_agent(name: str) -> Any:
    """The agent of that name (for a trained policy `PolicyAgent`). Raises RegistryError listing the names there are."""
    return look_up(AGENTS, name, "agent")
