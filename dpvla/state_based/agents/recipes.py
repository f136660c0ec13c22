"""Hyperparameters by agent and task: ``configs/state_based/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from dpvla.config import ConfigError, from_dict, modern, to_dict
from dpvla.files import read_yaml
from dpvla.recipes import RECIPES as BUNDLED
from dpvla.schema import checked
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.registry import agent_class

Reading = Literal["release", "paper"]
"""Of a method: as its authors released it, or as its paper's text alone has it. Only DIPOLE's recipe has both."""

RECIPES = BUNDLED / "state_based"


def load_recipe(name: str, task: str, reading: Reading = "release", folder: Path = RECIPES) -> AgentConfig:
    """Hyperparameters of agent ``name`` for ``task``; the defaults of its ``Config`` where it has no recipe.

    Args:
        task: an OGBench environment (``cube-single-play-singletask-task2-v0``) or ExORL task (``walker-walk``).
            The file's entries whose key begins the task's name apply in the file's order, so that a domain may
            refine its benchmark; ``all`` applies to everything, and a reading's name to that reading.

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
    entries = _entries(path)
    fields: dict[str, Any] = {}
    for key, values in entries.items():
        if key in ("all", reading) or task.startswith(key):
            fields |= values or {}
    tasks = [key for key in entries if key not in ("all", *get_args(Reading))]
    if not any(map(task.startswith, tasks)):
        raise ConfigError(f"{path} has no entry for {task!r}; it has {', '.join(tasks)}")
    return from_dict(config_class, fields, f"{path} for {task}")


def reading_of(name: str, reading: Reading, folder: Path = RECIPES) -> Reading:
    """``reading``, or ``release`` of an agent whose recipe is the same in every reading."""
    path = folder / f"{name}.yaml"
    return reading if path.exists() and reading in _entries(path) else "release"


def _entries(path: Path) -> dict[str, dict[str, Any] | None]:
    return checked(read_yaml(path), dict[str, dict[str, Any] | None], str(path))


def changed(recipe: AgentConfig, changes: Mapping[str, Any], where: str) -> AgentConfig:
    """``recipe`` with other values, which are checked; raises ConfigError that begins with ``where``."""
    return from_dict(type(recipe), to_dict(recipe) | modern(type(recipe), changes, where), where)
