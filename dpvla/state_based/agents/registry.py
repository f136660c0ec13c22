"""All agents by name. A plug-in adds to ``AGENTS``: see ``agent.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpvla.config import ConfigError, check, checked_config
from dpvla.registry import Registry, RegistryError, look_up
from dpvla.state_based.agents.config import AgentConfig

if TYPE_CHECKING:
    from dpvla.state_based.agents.agent import Agent

AGENTS = Registry(
    "dpvla.state_based.agents.agent:Agent",
    dipole="dpvla.state_based.agents.dipole:Dipole",
    iql="dpvla.state_based.agents.iql:IQL",
    rebrac="dpvla.state_based.agents.rebrac:ReBRAC",
    cfgrl="dpvla.state_based.agents.cfgrl:CFGRL",
    idql="dpvla.state_based.agents.idql:IDQL",
    ifql="dpvla.state_based.agents.ifql:IFQL",
    fql="dpvla.state_based.agents.fql:FQL",
    flow_bc="dpvla.state_based.agents.flow_bc:FlowBC",
)


def agent_class(name: str) -> type[Agent]:
    """The agent of a name.

    Raises:
        RegistryError: there is none (the message has the nearest name and all others), or what is registered is no
            whole ``Agent`` with a ``Config``.
    """
    found: type[Agent] = look_up(AGENTS, name, "agent")
    checked_config(getattr(found, "Config", None), AgentConfig, f"agent {name!r}")
    return found


def agent_name(agent: Agent) -> str:
    """The name that an agent's class is registered under; raises RegistryError when it is under none."""
    own = f"{type(agent).__module__}:{type(agent).__qualname__}"
    for name, found in AGENTS.items():
        if found is type(agent) or found == own:
            return name
    raise RegistryError(f"{type(agent).__name__} is not registered: it needs a name in AGENTS to be saved under")


def make_agent(name: str, config: AgentConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> Agent:
    """The agent ``name`` with the initial weights of every seed, on the CPU.

    Raises:
        RegistryError: unknown name.
        ConfigError: another agent's config, a value of another type or out of range.
    """
    own = agent_class(name)
    if type(config) is not own.Config:
        raise ConfigError(f"agent {name!r} takes a {own.Config.__name__}, found a {type(config).__name__}")
    check(config, type(config).__name__)
    return own(config, observation_dim, action_dim, seeds)
