"""All agents by name: how they are made, configured, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dpvla.config import ConfigError, check, from_dict, to_dict
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.cfgrl import CFGRL, CFGRLConfig
from dpvla.state_based.agents.dipole import Dipole, DipoleConfig
from dpvla.state_based.agents.flow_bc import FlowBC, FlowBCConfig
from dpvla.state_based.agents.fql import FQL, FQLConfig
from dpvla.state_based.agents.idql import IDQL, IDQLConfig
from dpvla.state_based.agents.ifql import IFQL, IFQLConfig
from dpvla.state_based.agents.iql import IQL, IQLConfig
from dpvla.state_based.agents.rebrac import ReBRAC, ReBRACConfig
from dpvla.state_based.networks.critics import AgentConfig
from dpvla.tensors import load_tensors, save_tensors
from dpvla.training import checkpoint

AGENTS: dict[str, tuple[type[Agent], type[AgentConfig]]] = {
    "dipole": (Dipole, DipoleConfig),
    "iql": (IQL, IQLConfig),
    "rebrac": (ReBRAC, ReBRACConfig),
    "cfgrl": (CFGRL, CFGRLConfig),
    "idql": (IDQL, IDQLConfig),
    "ifql": (IFQL, IFQLConfig),
    "fql": (FQL, FQLConfig),
    "flow_bc": (FlowBC, FlowBCConfig),
}

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "state_based"


def make_agent(config: AgentConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> Agent:
    """The agent that belongs to ``config``, with the initial weights of every seed, on the CPU.

    Raises:
        ConfigError: a value of another type or out of range.
    """
    check(config, f"{type(config).__name__}")
    for agent, its_config in AGENTS.values():
        if type(config) is its_config:
            return agent(config, observation_dim, action_dim, seeds)
    raise ValueError(f"no agent has a {type(config).__name__}; expected the config of one of {', '.join(AGENTS)}")


def agent_name(config: AgentConfig) -> str:
    """The name under which ``config``'s agent stands in ``AGENTS``."""
    return next(name for name, (_, its_config) in AGENTS.items() if type(config) is its_config)


def load_recipe(
    name: str,
    task: str,
    overrides: Mapping[str, Any] | None = None,
    folder: Path = RECIPES,
    overrides_from: str = "overrides",
) -> AgentConfig:
    """Hyperparameters of agent ``name`` for ``task`` from ``configs/state_based/NAME.yaml``.

    Args:
        task: an OGBench environment (``cube-single-play-singletask-task2-v0``) or ExORL task (``walker-walk``).
            The file's entries whose key begins the task's name apply in the file's order, so that a domain may
            refine its benchmark; ``all`` applies to everything.
        overrides: fields that win over the file; ``overrides_from`` is what messages call them.

    Raises:
        ConfigError: unknown agent or field, a value of another type or out of range, or no entry for the task.
    """
    if name not in AGENTS:
        raise ConfigError(f"unknown agent {name!r}; expected one of {', '.join(AGENTS)}")
    path = folder / f"{name}.yaml"
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: the recipes come with the source tree") from None
    config_class = AGENTS[name][1]
    fields: dict[str, Any] = {}
    for key, values in entries.items():
        if key == "all" or task.startswith(key):
            fields |= values or {}
    if not any(key != "all" and task.startswith(key) for key in entries):
        raise ConfigError(f"{path} has no entry for {task!r}; it has {', '.join(entries)}")
    recipe = from_dict(config_class, fields, f"{path} for {task}")
    return from_dict(config_class, to_dict(recipe) | dict(overrides), overrides_from) if overrides else recipe


def save_agent(agent: Agent, directory: Path) -> None:
    """``config.json`` and ``model.safetensors``: what ``load_agent`` needs."""
    meta = {
        "agent": agent_name(agent.config),
        "observation_dim": agent.observation_dim,
        "action_dim": agent.action_dim,
        "seeds": list(agent.seeds),
        "config": to_dict(agent.config),
    }
    checkpoint.write_meta(directory / "config.json", meta)
    save_tensors(directory / "model.safetensors", agent.state_dict())


def load_agent(directory: Path, **changes: Any) -> Agent:
    """The agent that ``save_agent`` wrote, on the CPU; ``changes`` to its config, e.g. ``omega=2.0`` for acting."""
    meta = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    config: AgentConfig = from_dict(AGENTS[meta["agent"]][1], meta["config"], f"{directory}/config.json")
    config = dataclasses.replace(config, **changes)
    agent = make_agent(config, meta["observation_dim"], meta["action_dim"], meta["seeds"])
    path = Path(directory) / "model.safetensors"
    checkpoint.load_weights(agent, agent.state_dict(), load_tensors(path), path)
    return agent.eval()
