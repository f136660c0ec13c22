"""Ablations and figures of the state-based track: what is varied, the runs behind it, and what comes out.

A value of a hyperparameter that is the recipe's own has the run that the tables have, too; any other one has a folder,
``OUT/beta=2.0``, with a grid of runs like that of a table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpvla.checkpoint_layout import METRICS_FILE
from dpvla.config import ConfigError, one_line, to_dict
from dpvla.files import FileError, read_text
from dpvla.report.table import markdown_table
from dpvla.state_based.agents.recipes import Reading, changed
from dpvla.state_based.paper.comparison import Panels, curve_panels, curves, scores_of
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.paper.figure_file import Figure
from dpvla.state_based.paper.reproduction import Grid, MissingRun
from dpvla.state_based.running.config import read_task
from dpvla.state_based.running.paper_tables import PaperTable, TableMethod
from dpvla.state_based.running.results import mean_and_std
from dpvla.state_based.running.tasks import find_task, nearest


@dataclass(frozen=True)
class Point:
    """One value on one task, and the runs that it comes from."""

    task: str
    value: float
    own: bool  # it is the recipe's
    grid: Grid
    method: TableMethod


@dataclass(frozen=True)
class Output:
    """Rows for a CSV file, and the same as a picture."""

    stem: str  # of the files
    rows: Sequence[Mapping[str, Any]]
    panels: Panels
    across: str = "updates"  # what runs from left to right


@dataclass
class FigureRuns:
    """The grids of runs behind a figure; raises ConfigError for tasks that it has not and values that cannot be."""

    figure: Figure
    config: ReproduceConfig
    points: list[Point] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)

    def __post_init__(self) -> None:
        figure = self.figure
        for word in self.config.only:
            if not any(task.startswith(word) for task in figure.tasks):
                near = nearest(word, [*figure.tasks])
                raise ConfigError(f"figure {figure.key} has no task '{word}'; nearest valid name: '{near}'")
        for task in figure.tasks:
            if not self.config.only or task.startswith(self.config.only):
                self._add(task)

    def missing(self) -> list[MissingRun]:
        """Runs that are not done."""
        return [run for grid in self.grids for run in grid.missing()]

    def estimate(self) -> Iterator[tuple[MissingRun, float]]:
        """Seconds of updates that each missing run still needs; each agent is tried once on a task."""
        speeds: dict[tuple[str, str, int], float] = {}
        for grid in self.grids:
            for run in grid.missing():
                kind = (run.config.env, run.config.agent, len(run.config.all_seeds))
                if kind not in speeds:
                    ((_, seconds),) = grid.estimate([run])
                    speeds[kind] = run.updates / seconds if seconds else math.inf
                yield run, run.updates / speeds[kind]

    def run(self, until: float = math.inf) -> dict[str, str]:
        """Make what is missing, as ``Grid.run``."""
        return {out: why for grid in self.grids for out, why in grid.run(until).items()}

    def outputs(self) -> list[Output]:
        """What the runs so far give; empty outputs where nothing is done."""
        key, name = f"figure_{self.figure.key}", self.figure.name
        if not name:
            rows = [row for grid in self.grids for row in curves(grid)]
            return [Output(key, rows, curve_panels(rows))]
        rows = list(self._scores())
        found = [Output(key, rows, _panels(rows, "task", "agent", name), name)]
        if self.figure.logged:
            logged = list(self._logged())
            found.append(Output(f"{key}_logged", logged, _panels(logged, "column", name, "step")))
        return found

    def table(self) -> str:
        """The figure's numbers in Markdown."""
        lines = [f"Figure '{self.figure.key}': {self.figure.title}.", ""]
        rows = [row for output in self.outputs()[:1] for row in output.rows]
        return "\n".join([*lines, markdown_table(rows) if rows else "nothing is there yet"]) + "\n"

    def _add(self, task: str) -> None:
        figure = self.figure
        if not figure.name:
            self._grid(task, [TableMethod(agent, agent, agent) for agent in figure.agents], "")
            return
        agent = figure.agents[0]
        plain = Grid(self._table(task, [TableMethod(agent, agent, agent)], ""), replace(self.config, only=()))
        recipe = read_task(plain.config_of(task, agent, self.config.seeds))[1]
        found: dict[str, list[tuple[float, bool, TableMethod]]] = {}
        for value in figure.values:
            same = to_dict(changed(recipe, {figure.name: value}, f"figure {figure.key}")) == to_dict(recipe)
            acting = {figure.name: value} if figure.acting and not same else {}
            method = TableMethod(f"{figure.name}={value}", f"{figure.name} {value}", agent, acting)
            option = "" if same or figure.acting else f"{figure.name}={value}"
            found.setdefault(option, []).append((value, same, method))
        for option, points in found.items():
            grid = self._grid(task, [method for *_, method in points], option, plain.reading)
            self.points += [Point(task, value, own, grid, method) for value, own, method in points]

    def _grid(self, task: str, methods: Sequence[TableMethod], option: str, reading: Reading | None = None) -> Grid:
        out = str(Path(self.config.out) / option) if option else self.config.out
        config = replace(self.config, out=out, only=(), reading=reading or self.config.reading)
        self.grids.append(Grid(self._table(task, methods, option), config))
        return self.grids[-1]

    def _table(self, task: str, methods: Sequence[TableMethod], option: str) -> PaperTable:
        options = {"": {methods[0].agent: (option,)}} if option else {}
        key, title, online = f"figure_{self.figure.key}", self.figure.title, self.figure.online
        return PaperTable(key, title, tuple(methods), (task,), False, {}, online, (), options)

    def _scores(self) -> Iterator[dict[str, Any]]:
        for point in self.points:
            if scores := scores_of(point.grid, point.task, point.method):
                mean, std = mean_and_std(list(scores.values()))
                yield {
                    "task": point.task,
                    "agent": point.method.agent,
                    "metric": find_task(point.task).metric,
                    self.figure.name: point.value,
                    "mean": mean,
                    "std": std,
                    "seeds": len(scores),
                    "recipe's": "yes" if point.own else "",
                }

    def _logged(self) -> Iterator[dict[str, Any]]:
        for point in self.points:
            runs = [logged(Path(r["config"]["out"]), self.figure.logged) for r in self._results(point)]
            for column in self.figure.logged:
                for step in sorted({step for run in runs for step in run.get(column, {})}):
                    values = [run[column][step] for run in runs if step in run.get(column, {})]
                    mean, std = mean_and_std(values)
                    at = {"task": point.task, "column": column, self.figure.name: point.value, "step": step}
                    yield at | {"mean": mean, "std": std}

    def _results(self, point: Point) -> list[dict[str, Any]]:
        return point.grid.results(point.task, point.method.agent)


def logged(run_dir: Path, columns: Sequence[str]) -> dict[str, dict[int, float]]:
    """Columns of a run's ``metrics.csv`` by step; raises FileError for a line that cannot be read."""
    path, found = run_dir / METRICS_FILE, {column: dict[int, float]() for column in columns}
    rows = csv.DictReader(read_text(path).splitlines()) if path.exists() else csv.DictReader([])
    try:
        for row in rows:
            for column in columns:
                if text := row.get(column):
                    found[column][int(row["step"])] = float(text)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FileError(f"{path}, line {rows.line_num}: {one_line(error)[:100]}; remove what is damaged") from None
    return found


def _panels(rows: Sequence[Mapping[str, Any]], panel: str, line: str, across: str) -> Panels:
    """A panel for each task, and for each ``panel`` in it; ``line`` names its curves."""
    panels: dict[tuple[str, str], dict[str, dict[float, tuple[float, float]]]] = {}
    labels: dict[tuple[str, str], str] = {}
    for row in rows:
        place = (row["task"], row[panel])
        label = {"success": "success [%]", "return": "return"}.get(row.get("metric", ""), str(row[panel]))
        labels[place] = label
        name = row[line] if isinstance(row[line], str) else f"{line} {row[line]:g}"
        panels.setdefault(place, {}).setdefault(name, {})[row[across]] = (row["mean"], row["std"])
    return [(place[0], labels[place], lines) for place, lines in panels.items()]
