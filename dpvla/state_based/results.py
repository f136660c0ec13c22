"""What a run of the state-based track leaves: ``evaluations.json`` while it runs, ``result.json`` when it is done."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpvla import provenance
from dpvla.config import ConfigError, to_dict
from dpvla.files import write_json
from dpvla.state_based.critics import AgentConfig
from dpvla.state_based.data.local_data import ORIGIN
from dpvla.state_based.evaluation import Evaluation
from dpvla.state_based.protocol import StateBasedConfig, deviations
from dpvla.state_based.tasks import Task

EVALUATIONS, DATA, RESULT = "evaluations.json", "data.json", "result.json"


class Evaluations:
    """Evaluations of a run by step, written to its directory as they come."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVALUATIONS
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else "{}"
        self.by_step: dict[str, Any] = json.loads(text)

    def __contains__(self, step: int) -> bool:
        return str(step) in self.by_step

    def add(self, evaluation: Evaluation) -> dict[str, float]:
        """Keep an evaluation (in place of an earlier one of the same step); returns the numbers to log."""
        summary = summarise(evaluation)
        by_step = self.by_step | {str(evaluation.step): summary}
        self.by_step = dict(sorted(by_step.items(), key=lambda item: int(item[0])))
        write_json(self._path, self.by_step)
        name = evaluation.metric
        values = {f"evaluation/{name}": summary[name], f"evaluation/{name}_std": summary["std"]}
        if len(evaluation.seeds) > 1:
            values |= {f"evaluation/{name}_seed_{s}": score for s, score in zip(evaluation.seeds, evaluation.scores)}
        return values | {"evaluation/seconds": evaluation.seconds}


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON: the metric's mean and standard deviation over seeds, and a row for each seed."""
    rows = [
        {
            "seed": seed,
            evaluation.metric: score,
            "episodes": len(episodes),
            "mean_length": statistics.fmean(episode.length for episode in episodes),
            "outcomes": [episode.success if evaluation.metric == "success" else episode.total for episode in episodes],
        }
        for seed, score, episodes in zip(evaluation.seeds, evaluation.scores, evaluation.episodes)
    ]
    mean, std = mean_and_std(evaluation.scores)
    return {evaluation.metric: mean, "std": std, "seconds": round(evaluation.seconds, 3), "per_seed": rows}


def mean_and_std(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (NumPy's default)."""
    return statistics.fmean(scores), statistics.pstdev(scores)


def check_data(run_dir: Path, about: Mapping[str, Any]) -> None:
    """Note what a run learns from, or refuse to go on with something else.

    Raises:
        ConfigError: the run began with other data; names what differs.
    """
    path = run_dir / DATA
    if not path.exists():
        write_json(path, about)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(about))
    for key in ("dataset", "files", "rows_used", "success_timing"):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{run_dir} was begun with data whose {key} was {before.get(key)!r}, now it is {now.get(key)!r}; "
                "put the old files back, or begin anew with --restart or another --out"
            )


def write_result(
    run_dir: Path,
    config: StateBasedConfig,
    task: Task,
    recipe: AgentConfig,
    data: Mapping[str, Any],
    evaluations: Evaluations,
) -> dict[str, Any]:
    """Write ``result.json`` of a finished run; returns its content.

    ``success`` (0 to 1) or ``return`` is the last step's, the mean over seeds; the best step is not picked.
    """
    last = evaluations.by_step[str(config.all_steps)]
    departures = deviations(config, task, recipe, data)
    result = {
        "env": task.name,
        "agent": config.agent,
        "seeds": list(config.all_seeds),
        task.metric: last[task.metric],
        "std": last["std"],
        "per_seed": last["per_seed"],
        "steps": config.all_steps,
        "offline_steps": config.steps,
        "online_steps": config.online_steps,
        "updates_per_s": updates_per_second(run_dir),
        "seed_updates_per_s": updates_per_second(run_dir) * len(config.all_seeds),
        "evaluations": evaluations.by_step,
        "locally_generated": data["origin"] == ORIGIN,
        "deviations_from_the_paper": departures,
        "hyperparameters": to_dict(recipe),
        "config": to_dict(config),
        "provenance": provenance.collect(config.all_seeds[0]) | {"data": dict(data)},
    }
    write_json(run_dir / RESULT, result)
    return result


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """``result.json`` of a run, None when it is not done."""
    path = run_dir / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def acting_file(run_dir: Path, acting: Mapping[str, Any]) -> Path:
    """Where an evaluation of a finished run with other hyperparameters of acting is kept."""
    return run_dir / ("acting_" + "_".join(f"{name}={value}" for name, value in acting.items()) + ".json")


def read_acting(run_dir: Path | str, acting: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `training_run.evaluate_acting` found, None when it was not called."""
    path = acting_file(Path(run_dir), acting)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def updates_per_second(run_dir: Path) -> float:
    """Updates over the time they took, evaluations left out, from a run's ``metrics.csv``; 0 before anything is logged.

    Several seeds side by side count as one update.
    """
    path = run_dir / "metrics.csv"
    if not path.exists():
        return 0.0
    updates, seconds, before = 0, 0.0, 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if speed := row.get("speed/steps_per_s"):
                step = int(row["step"])
                updates, seconds, before = updates + step - before, seconds + (step - before) / float(speed), step
    return updates / seconds if seconds else 0.0
