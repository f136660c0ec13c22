"""The ablations and figures of the state-based track: what each of them varies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypedDict

from dpvla.files import FileError, read_yaml
from dpvla.schema import checked
from dpvla.state_based.agents.recipes import RECIPES

FIGURES = RECIPES / "figures.yaml"
"""Data file of the figures."""


@dataclass(frozen=True)
class Figure:
    """One entry of the data file."""

    key: str
    title: str
    tasks: tuple[str, ...]
    name: str = ""  # of the hyperparameter that is varied; none: agents are compared
    values: tuple[float, ...] = ()
    acting: bool = False  # varied when acting alone
    agents: tuple[str, ...] = ("dipole",)
    online: bool = False
    logged: tuple[str, ...] = ()  # columns of metrics.csv


class _Choices(TypedDict, total=False):
    tasks: list[str]
    vary: dict[str, list[float]]
    when: Literal["training", "acting"]
    agents: list[str]
    online: bool
    logged: list[str]


class _Figure(_Choices):
    title: str


class _Content(TypedDict):
    tasks: list[str]
    figures: dict[str, _Figure]


def figure_keys() -> tuple[str, ...]:
    """The figures of the data file."""
    return tuple(_content()["figures"])


def read_figure(key: str) -> Figure:
    """Figure ``key`` of the data file."""
    content = _content()
    given = content["figures"][key]
    tasks = tuple(given.get("tasks", content["tasks"]))
    agents = tuple(given.get("agents", ("dipole",)))
    rest: dict[str, Any] = {"online": given.get("online", False), "logged": tuple(given.get("logged", ()))}
    for name, values in given.get("vary", {}).items():
        rest |= {"name": name, "values": tuple(values), "acting": given.get("when") == "acting"}
    return Figure(key, given["title"], tasks, agents=agents, **rest)


@cache
def _content() -> _Content:
    content = checked(read_yaml(FIGURES), _Content, str(FIGURES))
    for key, figure in content["figures"].items():
        if len(figure.get("vary", {})) + ("agents" in figure) != 1:
            raise FileError(f"{FIGURES}: figures.{key}: needs one hyperparameter under vary, or agents")
    return content
