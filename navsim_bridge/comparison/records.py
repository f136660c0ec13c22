"""What runs and evaluations left behind, looked at before it counts: budgets, scores by scene, logged numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from dpvla.checkpoint_layout import METRICS_FILE, RUN_FILE, CheckpointLayout
from dpvla.config import ConfigError, Count, modern
from dpvla.files import FileError, read_text, short
from dpvla.schema import read_as
from dpvla.training.checkpoint import checkpoint_step, latest_checkpoint
from dpvla.training.tracking import read_rows
from navsim_bridge.comparison.config import RunOptions
from navsim_bridge.comparison.jobs import Job
from navsim_bridge.evaluation.results import SCORES, SUMMARY

REWARD = "rollout/score"
"""Column of metrics.csv that has a value for every time plans were rolled out and scored."""


class _Data(TypedDict):
    scenes: Count


class _RunFile(TypedDict):
    config: dict[str, Any]
    data: _Data


@dataclass(frozen=True)
class Spent:
    """What a run spent, by its own records."""

    plans: int  # scored
    updates: int
    parameters: int  # of all its adapters

    def __str__(self) -> str:
        return f"{self.plans:,} plans scored, {self.updates:,} updates, {self.parameters:,} parameters of adapters"


def spent_by(out: Path, job: Job) -> Spent:
    """Of a finished RL run.

    Raises ConfigError where the folder holds a run of other options than ``job``'s, or less than a whole run.
    """
    run = out / job.name
    content = read_as(run / RUN_FILE, _RunFile)
    assert job.recipe is not None
    told = {key: content["config"].get(key, {}) for key in job.recipe[1]}
    _refuse_other(run, modern(RunOptions, told, str(run / RUN_FILE)), job.recipe[1])
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f"{run} has no checkpoint: remove {out / 'jobs' / job.name}.json to have it made again")
    rollouts = content["config"]["rollouts"]
    scenes = content["data"]["scenes"]
    a_cycle = min(rollouts["scenes_per_cycle"] or scenes, scenes) * rollouts["group_size"]
    cycles = sum(bool(row.get(REWARD)) for row in read_rows(run / METRICS_FILE)[1])
    files = sorted(CheckpointLayout(checkpoint).adapters.glob("*/*.safetensors"))
    return Spent(cycles * a_cycle, checkpoint_step(checkpoint), sum(map(_numbers_in, files)))


def _numbers_in(path: Path) -> int:
    with safe_open(path, "np") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def _refuse_other(run: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in wanted.items():
        there = found.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            _refuse_other(run, there, value, f"{prefix}{key}.")
        elif there != value:
            raise ConfigError(
                f"{run} holds a run with {prefix}{key} {short(there, 80)}, this row's has {short(value, 80)}: remove "
                "the folder, or choose another --out"
            )


@dataclass(frozen=True)
class Scored:
    """One evaluation."""

    folder: Path
    summary: Mapping[str, Any]
    tokens: tuple[str, ...]
    values: Mapping[str, NDArray[np.float64]]  # by column (scene,), NaN where a scene has no value

    @property
    def averages(self) -> Mapping[str, float]:
        """By column, as the metric averages."""
        found: Mapping[str, float] = self.summary["averages"]
        return found

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """(scene,) in the order of ``tokens``."""
        return self.values["score"]


class _Summary(TypedDict):
    scenes: Count
    averages: dict[str, Any]
    split: str
    data_fingerprint: str
    provenance: dict[str, Any]


def read_scored(folder: Path) -> Scored:
    """What ``tools/evaluate.py`` wrote. Raises FileError where both files do not fit each other, or are damaged."""
    summary = read_as(folder / SUMMARY, _Summary)
    path = folder / SCORES
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    scenes = summary["scenes"]
    if len(rows) != scenes + 2 or rows[0][:2] != ["token", "valid"] or "score" not in rows[0]:
        raise FileError(f"{path} is not the table of {scenes} scenes that {SUMMARY} beside it tells of: evaluate again")
    columns = rows[0][2 : rows[0].index("score") + 1]
    try:
        table = np.array([[float(cell or "nan") for cell in row[2 : 2 + len(columns)]] for row in rows[1:-1]])
    except ValueError:
        raise FileError(f"{path} holds something else than numbers: evaluate again") from None
    values = {column: table[:, i] for i, column in enumerate(columns)}
    return Scored(folder, summary, tuple(row[0] for row in rows[1:-1]), values)


def logged(run: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a run's metrics.csv, each without the rows that have no value in it."""
    columns, rows = read_rows(run / METRICS_FILE)
    series = {name: np.array([float(row[name]) for row in rows if row.get(name)]) for name in columns}
    return {name: values for name, values in series.items() if len(values)}
