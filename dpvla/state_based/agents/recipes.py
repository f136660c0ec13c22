"""Hyperparameters by agent and task: ``configs/state_based/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpvla.config import ConfigError, from_dict, modern, to_dict
from dpvla.files import read_yaml
from dpvla.recipes import RECIPES as BUNDLED
from dpvla.schema import checked
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.registry import agent_class

RECIPES = BUNDLED / "state_based"


def load_recipe(name: str, task: str, folder: Path = RECIPES) -> AgentConfig:
    """Hyperparameters of agent ``name`` for ``task``; the defaults of its ``Config`` where it has no recipe.

    Args:
        task: an OGBench environment (``cube-single-play-singletask-task2-v0``) or ExORL task (``walker-walk``).
            The file's entries whose key begins the task's name apply in the file's order, so that a domain may
            refine its benchmark; ``all`` applies to everything.

    Raises:
        RegistryError: unknown agent.
        ConfigError: unknown field, a value of another type or out of range, no entry for the task, no recipes at all.
    """
    config_class = agent_class(name).Config
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist: the installation is not whole: install it again")
    path = folder / f"{name}.yaml"
    if not path.exists():
        return config_class()
    entries = checked(read_yaml(path), dict[str, dict[str, Any] | None], str(path))
    fields: dict[str, Any] = {}
    for key, values in entries.items():
        if key == "all" or task.startswith(key):
            fields |= values or {}
    if not any(key != "all" and task.startswith(key) for key in entries):
        raise ConfigError(f"{path} has no entry for {task!r}; it has {', '.join(entries)}")
    return from_dict(config_class, fields, f"{path} for {task}")


def changed(recipe: AgentConfig, changes: Mapping[str, Any], where: str) -> AgentConfig:
    """``recipe`` with other values, which are checked; raises ConfigError that begins with ``where``."""
    return from_dict(type(recipe), to_dict(recipe) | modern(type(recipe), changes, where), where)
