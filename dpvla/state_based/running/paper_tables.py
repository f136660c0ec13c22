"""The paper's state-based tables: what it ran, and the numbers it printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypedDict

from dpvla.files import read_yaml
from dpvla.schema import checked
from dpvla.state_based.agents.recipes import RECIPES, Reading
from dpvla.state_based.agents.registry import AGENTS

TABLES = RECIPES / "paper_tables.yaml"
"""Data file with the source of every number."""

OFFLINE_STEPS = ONLINE_STEPS = 1_000_000
"""Updates of the paper's offline runs, and environment steps (one update each) of its online phase."""

SEEDS = 8
"""Seeds behind the paper's means."""


@dataclass(frozen=True)
class Printed:
    """A cell as the paper prints it; success in percent, or return."""

    mean: float
    std: float
    after: tuple[float, float] | None = None  # mean and std after the online steps


@dataclass(frozen=True)
class TableMethod:
    """A column."""

    key: str
    title: str
    agent: str
    acting: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters of acting that differ from training's
    reading: Reading | None = None  # of its runs; none: the one that is asked for


@dataclass(frozen=True)
class PaperTable:
    """Rows are tasks, or domains whose five tasks are averaged; columns are methods."""

    key: str
    title: str
    methods: tuple[TableMethod, ...]
    rows: tuple[str, ...]
    averages: bool  # rows are domains
    printed: Mapping[tuple[str, str], Printed]  # by row and method; empty where the paper has nothing
    online: bool
    notes: tuple[str, ...]
    options: Mapping[str, Mapping[str, tuple[str, ...]]]  # by the beginning of a task's name, then by agent

    def tasks(self, row: str) -> tuple[str, ...]:
        """The tasks behind a row: itself, or the five of a domain."""
        if not self.averages:
            return (row,)
        return tuple(f"{row}-singletask-task{number}-v0" for number in range(1, 6))

    def options_of(self, task: str, agent: str) -> tuple[str, ...]:
        """Options that this table's runs of an agent take beyond the recipe."""
        return tuple(o for start, own in self.options.items() if task.startswith(start) for o in own.get(agent, ()))


def in_the_paper(task: str, agent: str) -> bool:
    """Whether a table of the paper prints a number of this agent on this task."""
    for key in table_keys():
        table = read_table(key)
        columns = [method.key for method in table.methods if method.agent == agent]
        if any(task in table.tasks(row) and (row, column) in table.printed for row in table.rows for column in columns):
            return True
    return False


def table_keys() -> tuple[str, ...]:
    """The tables of the data file: the paper's by their numbers, and ours."""
    return tuple(_content()["tables"])


def read_table(key: str) -> PaperTable:
    """Table ``key`` of the data file; one that names no columns has all agents, those of plug-ins as well."""
    table = _content()["tables"][key]
    methods = tuple(map(method_of, table.get("columns", AGENTS)))
    printed = {
        (row, method.key): Printed(cell[0], cell[1], tuple(cell[2:4]) or None)  # type: ignore[arg-type]
        for row, cells in table["rows"].items()
        for method, cell in zip(methods, cells)
    }
    options = {
        start: {agent: tuple(values) for agent, values in own.items()}
        for start, own in table.get("options", {}).items()
    }
    return PaperTable(
        key,
        table["title"],
        methods,
        tuple(table["rows"]),
        bool(table.get("averages", False)),
        printed,
        bool(table.get("online", False)),
        tuple(table.get("notes", ())),
        options,
    )


def method_of(name: str) -> TableMethod:
    """A method of the data file, or else the agent of that name."""
    given = _content()["methods"].get(name, {})
    agent, acting = given.get("agent", name), given.get("acting", {})
    return TableMethod(name, given.get("title", name), agent, acting, given.get("reading"))


def method_names() -> tuple[str, ...]:
    """The methods of the data file."""
    return tuple(_content()["methods"])


class _Method(TypedDict, total=False):
    title: str
    agent: str
    acting: dict[str, Any]
    reading: Reading


class _Choices(TypedDict, total=False):
    columns: list[str]
    averages: bool
    online: bool
    notes: list[str]
    options: dict[str, dict[str, list[str]]]


class _Table(_Choices):
    title: str
    rows: dict[str, list[tuple[float, float] | tuple[float, float, float, float]]]


class _Content(TypedDict):
    methods: dict[str, _Method]
    tables: dict[str, _Table]


@cache
def _content() -> _Content:
    content = read_yaml(TABLES)
    if isinstance(content, dict) and isinstance(content.get("tables"), dict):
        content["tables"] = {str(key): table for key, table in content["tables"].items()}  # YAML reads numbers
    return checked(content, _Content, str(TABLES))
