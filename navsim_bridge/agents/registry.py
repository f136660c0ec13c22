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
    submission="navsim_bridge.agents.submission_agent:SubmissionAgent",
)
"""Each an `Agent`, or where it is; of those that are made from files the class: `PolicyAgent` of a checkpoint,
`SubmissionAgent` of a submission."""


def find_agent(name: str) -> Any:
    """The agent of that name (its class where it is made from files); RegistryError lists the names there are."""
    return look_up(AGENTS, name, "agent")
