"""Cells: a row, trained on a split, scored on another, over seeds; what its finished runs come to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.config import ConfigError
from dpvla.files import FileError
from navsim_bridge.comparison.config import Budget
from navsim_bridge.comparison.grid import Grid
from navsim_bridge.comparison.jobs import Job, Jobs
from navsim_bridge.comparison.records import Scored, Spent, read_scored, spent_by
from navsim_bridge.comparison.rows import ReadRow
from navsim_bridge.comparison.statistics import Interval, over_logs, spread
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import select_scenes

SHOWN = ("no_at_fault_collisions", "drivable_area_compliance", "time_to_collision_within_bound", "comfort",
         "ego_progress")  # fmt: skip
"""Sub-scores that stand in a table, in the order of the paper's, as far as the first metric has them."""
NO_SEED = 0
"""In place of a seed for agents that draw nothing."""


@dataclass(frozen=True)
class Cell:
    """The jobs behind a line of a table."""

    row: ReadRow
    trained_on: str  # empty for agents without training
    split: str
    runs: Mapping[int, Job]  # training by seed
    scores: Mapping[int, Mapping[str, Job]]  # evaluation by seed and metric

    @classmethod
    def of(
        cls,
        jobs: Jobs,
        row: ReadRow,
        trained_on: str,
        split: str,
        seeds: Sequence[int],
        metrics: Sequence[str],
        **evaluate: float,
    ) -> Cell:
        """Ask for what the cell needs; ``evaluate``: options of tools/evaluate.py."""
        own = seeds if row.is_trained else (NO_SEED,)
        return cls(
            row,
            trained_on if row.is_trained else "",
            split,
            {seed: jobs.train(row, trained_on, seed) for seed in own if row.is_trained},
            {seed: {m: jobs.score(row, trained_on, split, m, seed, **evaluate) for m in metrics} for seed in own},
        )


@dataclass(frozen=True)
class Found:
    """What the finished seeds of a cell come to; ``scored`` by seed and metric."""

    cell: Cell
    scored: Mapping[int, Mapping[str, Scored]]
    spent: Mapping[int, Spent]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.scored)

    def averages(self, metric: str, column: str) -> list[float]:
        """Percent, one for each finished seed."""
        return [100 * of_seed[metric].averages[column] for of_seed in self.scored.values()]

    def by_scene(self, metric: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        """(scene,) score in percent, mean over ``seeds``."""
        means: NDArray[np.float64] = 100 * np.mean([self.scored[seed][metric].score for seed in seeds], axis=0)
        return means


class Results:
    """Reads cells; all scores of a split must be of the same scenes and logs."""

    def __init__(self, grid: Grid, data_root: Path, resamples: int) -> None:
        self.grid, self.data_root, self.resamples = grid, data_root, resamples
        self._first: dict[str, Scored] = {}
        self._logs: dict[str, dict[str, str]] = {}

    def read(self, cell: Cell) -> Found:
        """The seeds of which all evaluations are done.

        Raises ConfigError, FileError for what is there and does not belong here.
        """
        scored, spent = {}, {}
        for seed, by_metric in cell.scores.items():
            jobs = [*by_metric.values(), *([cell.runs[seed]] if seed in cell.runs else [])]
            if self.grid.missing(jobs):
                continue
            scored[seed] = {metric: self._scored(cell.split, job) for metric, job in by_metric.items()}
            if cell.row.options is not None:
                spent[seed] = spent_by(self.grid.out, cell.runs[seed])
        return Found(cell, scored, spent)

    def interval(self, found: Found, metric: str) -> Interval | None:
        """Of a cell's mean score, over logs; None where nothing is finished."""
        if not found.seeds:
            return None
        return self._over_logs(found, found.by_scene(metric, found.seeds), metric)

    def difference(self, found: Found, base: Found, metric: str) -> Interval | None:
        """Of a cell's score less that of ``base`` on the same scenes, and the same seeds where both have some."""
        seeds = [seed for seed in found.seeds if seed in base.seeds]
        alone = not found.cell.row.is_trained or not base.cell.row.is_trained
        if not found.seeds or not base.seeds or (not seeds and not alone):
            return None
        one = found.by_scene(metric, found.seeds if alone else seeds)
        return self._over_logs(found, one - base.by_scene(metric, base.seeds if alone else seeds), metric)

    def logs_of(self, split: str) -> dict[str, str]:
        """Log of every scene of a split."""
        if split not in self._logs:
            records = select_scenes(load_split(split, self.data_root), self.data_root)
            self._logs[split] = {record.token: record.log_name for record in records}
        return self._logs[split]

    def _over_logs(self, found: Found, values: NDArray[np.float64], metric: str) -> Interval:
        scored = next(iter(found.scored.values()))[metric]
        logs = self.logs_of(found.cell.split)
        return over_logs(values, [logs[token] for token in scored.tokens], self.resamples)

    def _scored(self, split: str, job: Job) -> Scored:
        scored = read_scored(self.grid.out / job.name)
        first = self._first.setdefault(split, scored)
        same = first.summary["data_fingerprint"] == scored.summary["data_fingerprint"] and first.tokens == scored.tokens
        if not same or set(scored.tokens) != set(self.logs_of(split)):
            raise ConfigError(
                f"{scored.folder} and {first.folder} were scored on other scenes or logs of {split}, or the data is "
                "other now: give the --data-root of these runs, or choose another --out"
            )
        if not np.isfinite(scored.score).all():
            raise FileError(f"{scored.folder} has scenes without a score: evaluate again")
        return scored


def refuse_unequal(found: Sequence[Found], equal: Sequence[Budget], where: str) -> None:
    """Raise ConfigError where runs that are compared spent unequally, by their own records."""
    for what in equal:
        by_row = {of.cell.row.key: {getattr(s, what) for s in of.spent.values()} for of in found if of.spent}
        if len(set().union(*by_row.values())) > 1:
            listed = ", ".join(f"{key} {' and '.join(map(str, sorted(values)))}" for key, values in by_row.items())
            raise ConfigError(
                f"{where}: the runs spent {what} unequally ({listed:.400}): their scores are no comparison; make them "
                f"equal, or take {what} out of 'equal'"
            )


def label_of(metric: str, column: str) -> str:
    """As the metric prints it."""
    return next(c.label for c in make_metric(metric).columns if c.name == column)


def columns_of(metrics: Sequence[str]) -> list[tuple[str, str]]:
    """(metric, column) of what a table shows, the scores last."""
    has = {column.name for column in make_metric(metrics[0]).columns}
    return [*((metrics[0], name) for name in SHOWN if name in has), *((metric, "score") for metric in metrics)]


def line_of(results: Results, found: Found, base: Found | None, metrics: Sequence[str]) -> dict[str, Any]:
    """A line of a Markdown table: unfinished cells are empty."""
    line: dict[str, Any] = {"method": found.cell.row.title, "trained on": found.cell.trained_on}
    for metric, column in columns_of(metrics):
        line[label_of(metric, column)] = _mean(found.averages(metric, column), column == "score")
        if (metric, column) == (metrics[0], "score"):
            line["95 % over logs"] = _interval(results.interval(found, metric))
            other = base is not None and base.cell.row.key != found.cell.row.key
            line["difference"] = _interval(results.difference(found, base, metric), True) if base and other else ""
    done, wanted = len(found.seeds), len(found.cell.scores)
    line["seeds"] = ("" if not found.cell.row.is_trained else str(done)) if done == wanted else f"{done} of {wanted}"
    return line


def rows_of_csv(found: Found, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Every value of every seed, with what made it."""
    lines = []
    for seed, by_metric in found.scored.items():
        run = found.cell.runs.get(seed)
        for metric in metrics:
            scored = by_metric[metric]
            for column, value in scored.averages.items():
                lines.append(
                    {
                        "row": found.cell.row.key,
                        "trained_on": found.cell.trained_on,
                        "split": found.cell.split,
                        "seed": seed if run else "",
                        "metric": metric,
                        "column": column,
                        "value": "" if value is None else value,
                        "run": run.name if run else "",
                        "scores": scored.folder.name,
                        "commit": scored.summary["provenance"].get("git_commit") or "",
                    }
                )
    return lines


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys as CSV; quotes where a text needs them."""
    import csv
    import io

    if not rows:
        return ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _mean(values: Sequence[float], with_spread: bool) -> str:
    if not values:
        return ""
    deviation = spread(values) if with_spread else None
    return f"{statistics.fmean(values):.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def _interval(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return ""
    sign = "+" if signed else ""
    span = f"[{interval.low:{sign}.1f}, {interval.high:{sign}.1f}]"
    return f"{interval.mean:+.1f} {span}" if signed else span
