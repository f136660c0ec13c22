"""Ours beside the paper's: a table's cells from the results of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpvla.report.table import markdown_table
from dpvla.state_based.agents.recipes import reading_of
from dpvla.state_based.paper.reproduction import Grid
from dpvla.state_based.running.paper_tables import SEEDS, PaperTable, Printed, TableMethod
from dpvla.state_based.running.results import mean_and_std, read_acting
from dpvla.state_based.running.tasks import find_task

NOTHING = "–"


@dataclass(frozen=True)
class Ours:
    """Scores of one cell, one for each seed: percent of successes, or return."""

    scores: tuple[float, ...]
    before: tuple[float, ...]  # the same before the online steps; empty without them
    departures: frozenset[str]  # from the paper's protocol, and of the agent from released code
    made: tuple[str, ...]  # what made it, in words: ``made_with`` of its runs

    def text(self) -> str:
        """``97.5±1.6``, with ``before→after`` for online runs; the number of seeds where it is not the paper's."""
        parts = [_mean_std(scores) for scores in (self.before, self.scores) if scores]
        seeds = "" if len(self.scores) == SEEDS else f" ({len(self.scores)} seed{'s' * (len(self.scores) > 1)})"
        return "→".join(parts) + seeds + ("\\*" if self.departures else "")


def compare(grid: Grid) -> str:
    """The table in Markdown: each cell is ours / the paper's, mean ± standard deviation over seeds, and notes.

    A letter tells which reading, size, data and seeds made a cell.
    """
    table = grid.table
    departures: set[str] = set()
    letters: dict[str, str] = {}
    rows = []
    for row in grid.rows:
        line = {"task": row.removesuffix("-v0").replace("-singletask", "")}
        for method in grid.methods:
            ours, found = _cell(grid, row, method)
            text = f"{found if ours is None else ours.text()} / {_printed(table, row, method)}"
            if ours is not None:
                departures |= ours.departures
                for made in ours.made:
                    letters.setdefault(made, letter(len(letters)))
                text += f" [{', '.join(sorted(letters[made] for made in ours.made))}]"
            line[method.title] = text
        rows.append(line)
    label = f"Table {table.key} of the paper" if table.printed else f"Table '{table.key}'"
    lines = [f"{label}: {table.title}. Each cell: ours / the paper's, mean ± std over seeds.", "", markdown_table(rows)]
    notes = [*table.notes, *(f"[{mark}] {made}" for made, mark in letters.items())]
    if departures:
        marked = "not as the paper's runs, so not comparable with its numbers as they stand"
        notes.append(f"\\* {marked}: " + "; ".join(sorted(departures)))
    return "\n".join(lines + [""] * bool(notes) + [f"- {note}" for note in notes]) + "\n"


def _cell(grid: Grid, row: str, method: TableMethod) -> tuple[Ours | None, str]:
    """Our numbers of a cell; where there are none, what to print instead."""
    tasks = [_scores(grid, task, method) for task in grid.table.tasks(row)]
    seeds = [seed for seed in tasks[0] if all(seed in task for task in tasks)]
    if not seeds:
        begun = sum(bool(task) for task in tasks)
        return None, f"{begun} of {len(tasks)} tasks" if begun else NOTHING
    # As the paper's aggregates: a seed's mean over tasks first, then mean and deviation over seeds.
    after = [statistics.fmean(task[seed][0] for task in tasks) for seed in seeds]
    before = [statistics.fmean(task[seed][1] or 0.0 for task in tasks) for seed in seeds] if grid.table.online else []
    departures = frozenset(d for task in tasks for seed in seeds for d in task[seed][2])
    made = dict.fromkeys(task[seed][3] for task in tasks for seed in seeds)
    return Ours(tuple(after), tuple(before), departures, tuple(made)), ""


def letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    rest, last = divmod(number, 26)
    return (letter(rest - 1) if rest else "") + "abcdefghijklmnopqrstuvwxyz"[last]


def made_with(result: Mapping[str, Any]) -> str:
    """Reading, size, updates, data and seeds of a finished run, from its ``result.json``."""
    config, numbers = result.get("config", {}), result.get("hyperparameters", {})
    data = result.get("provenance", {}).get("data", {})
    agent = result["agent"]
    reading = reading_of(agent, config.get("reading", "paper"))  # runs of earlier versions had this one
    parts = [f"reading {reading}"] if reading_of(agent, "paper") == "paper" else []
    if hidden := numbers.get("hidden"):
        parts.append("layers " + " x ".join(map(str, hidden)))
    of = f" of {numbers['batch_size']} rows" if "batch_size" in numbers else ""
    parts.append(f"{result['steps']} updates{of}")
    if "origin" in data:
        rows = data.get("rows_used", {}).get("train")
        parts.append(f"{data['origin']} data" + (f", {rows} rows" if rows else ""))
    return "; ".join([*parts, "seeds " + " ".join(map(str, result["seeds"]))])


def curves(grid: Grid) -> list[dict[str, Any]]:
    """Every evaluation of the grid's runs, of unfinished ones too: a row for each task, agent and step.

    ``mean`` and ``std`` are over the seeds that were evaluated at the step: percent of successes, or return.
    """
    rows = []
    for task, agent, reading in grid.cells():
        metric = find_task(task).metric
        by_step: dict[int, dict[int, float]] = {}
        for evaluations in grid.evaluations(task, agent, reading):
            for key, evaluation in evaluations.items():
                scores = by_step.setdefault(int(key), {})
                scores |= {row["seed"]: _scale(metric) * row[metric] for row in evaluation["per_seed"]}
        for step in sorted(by_step):
            scores = {seed: score for seed, score in by_step[step].items() if seed in grid.config.seeds}
            if scores:
                mean, std = mean_and_std(list(scores.values()))
                found = {"metric": metric, "step": step, "mean": mean, "std": std, "seeds": len(scores)}
                rows.append({"task": task, "agent": grid.label(agent, reading)} | found)
    return rows


def timings(grid: Grid) -> str:
    """Wall time of the grid's finished runs in Markdown: updates, and the evaluations of a run in all."""
    rows = []
    for task, agent, reading in grid.cells():
        for result in grid.results(task, agent, reading):
            if not result["updates_per_s"]:  # nothing was logged
                continue
            seeds, evaluations = len(result["seeds"]), result["evaluations"].values()
            milliseconds = 1000 / result["updates_per_s"]
            rows.append(
                {
                    "task": task.removesuffix("-v0").replace("-singletask", ""),
                    "agent": grid.label(agent, reading),
                    "seeds": seeds,
                    "ms per update": milliseconds,
                    "ms per update and seed": milliseconds / seeds,
                    "updates": result["steps"],
                    "evaluations, s": sum(float(evaluation["seconds"]) for evaluation in evaluations),
                }
            )
    return markdown_table(rows) + "\n" if rows else ""


Panels = list[tuple[str, str, dict[str, dict[float, tuple[float, float]]]]]
"""What ``report.learning_curves.draw_curves`` takes: title, name of the score, mean and deviation of each curve."""


def curve_panels(rows: Sequence[Mapping[str, Any]]) -> Panels:
    """What `report.learning_curves.draw_curves` takes, from ``curves``; tasks without evaluations are left out."""
    panels: dict[str, tuple[str, dict[str, dict[float, tuple[float, float]]]]] = {}
    for row in rows:
        label = "success [%]" if row["metric"] == "success" else "return"
        _, lines = panels.setdefault(row["task"], (label, {}))
        lines.setdefault(row["agent"], {})[row["step"]] = (row["mean"], row["std"])
    return [(task, label, lines) for task, (label, lines) in panels.items()]


Scores = dict[int, tuple[float, float | None, Sequence[str], str]]
"""By seed: the last step's score, the one before the online steps, departures from the paper, what made it."""


def _scores(grid: Grid, task: str, method: TableMethod) -> Scores:
    metric = find_task(task).metric
    scale = _scale(metric)
    found: Scores = {}
    for result in grid.results(task, method.agent, method.reading):
        per_seed = result["per_seed"]
        if method.acting:
            out = grid.config_of(task, method.agent, result["seeds"], method.reading).out
            acting = read_acting(out, method.acting, result["steps"], metric)
            per_seed = acting["per_seed"] if acting else []
        before: Mapping[int, float] = {}
        if grid.table.online:
            offline = result["evaluations"][str(result["offline_steps"])]["per_seed"]
            before = {row["seed"]: scale * row[metric] for row in offline}
        departures, made = result["deviations_from_the_paper"], made_with(result)
        found |= {
            row["seed"]: (scale * row[metric], before.get(row["seed"]), departures, made)
            for row in per_seed
            if row["seed"] in grid.config.seeds
        }
    return dict(sorted(found.items()))


def scores_of(grid: Grid, task: str, method: TableMethod) -> dict[int, float]:
    """The last step's score of each seed that is done: percent of successes, or return."""
    return {seed: found[0] for seed, found in _scores(grid, task, method).items()}


def _scale(metric: str) -> float:
    return 100.0 if metric == "success" else 1.0


def _printed(table: PaperTable, row: str, method: TableMethod) -> str:
    same = (m.key for m in table.methods if (m.agent, m.acting) == (method.agent, method.acting))
    cell: Printed | None = next((table.printed[row, key] for key in same if (row, key) in table.printed), None)
    if cell is None:
        return NOTHING
    text = f"{cell.mean:g}±{cell.std:g}"
    return text if cell.after is None else f"{text}→{cell.after[0]:g}±{cell.after[1]:g}"


def _mean_std(scores: Sequence[float]) -> str:
    mean, std = mean_and_std(scores)
    return f"{mean:.1f}±{std:.1f}" if len(scores) > 1 else f"{mean:.1f}"
