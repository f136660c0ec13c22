"""An agent on disk: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from dpvla.checkpoint_layout import CONFIG_FILE, WEIGHTS_FILE
from dpvla.config import Count, Whole, from_dict, modern, to_dict
from dpvla.files import write_json
from dpvla.former_defaults import as_formerly
from dpvla.manifest import require_manifest, write_manifest
from dpvla.registry import RegistryError
from dpvla.schema import read_as
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.recipes import changed
from dpvla.state_based.agents.registry import agent_class, agent_name, make_agent
from dpvla.tensors import load_tensors, save_tensors
from dpvla.training import checkpoint


class _Needed(TypedDict):
    agent: str
    observation_dim: Count
    action_dim: Count
    seeds: list[Whole]
    config: dict[str, Any]


class _Description(_Needed, total=False):
    """``config.json``."""

    manifest: bool  # whether there is one


def save_agent(agent: Agent, directory: Path) -> None:
    """Write what ``load_agent`` needs."""
    meta = {
        "manifest": True,
        "agent": agent_name(agent),
        "observation_dim": agent.observation_dim,
        "action_dim": agent.action_dim,
        "seeds": list(agent.seeds),
        "config": to_dict(agent.config),
    }
    write_json(directory / CONFIG_FILE, meta)
    save_tensors(directory / WEIGHTS_FILE, agent.state_dict())
    write_manifest(directory, names=(CONFIG_FILE, WEIGHTS_FILE))


def read_hyperparameters(directory: Path) -> AgentConfig:
    """Those of the agent that ``save_agent`` wrote, in an earlier version as well; raises as ``load_agent``."""
    return _read(directory)[1]


def _read(directory: Path) -> tuple[_Description, AgentConfig]:
    where = Path(directory) / CONFIG_FILE
    meta = read_as(where, _Description)
    require_manifest(directory, meta.get("manifest", False), (CONFIG_FILE, WEIGHTS_FILE))
    try:
        own = agent_class(meta["agent"])
    except RegistryError as error:
        raise RegistryError(f"{where}: {error}") from None
    given = as_formerly(own.Config(), modern(own.Config, meta["config"], str(where)))
    return meta, from_dict(own.Config, given, str(where))


def load_agent(directory: Path, **changes: Any) -> Agent:
    """The agent that ``save_agent`` wrote, on the CPU; ``changes`` to its config, e.g. ``omega=2.0`` for acting.

    Raises:
        RegistryError: an agent of a plug-in that has not been imported.
        ConfigError: ``changes`` that the agent does not have, or values it cannot have.
        FileError, CheckpointError: a file is damaged, or holds weights of other networks.
    """
    meta, config = _read(directory)
    config = changed(config, changes, "changes")
    agent = make_agent(meta["agent"], config, meta["observation_dim"], meta["action_dim"], meta["seeds"])
    path = Path(directory) / WEIGHTS_FILE
    checkpoint.load_weights(agent, agent.state_dict(), load_tensors(path), path)
    return agent.eval()
