"""What a run of the state-based track leaves: ``evaluations.json`` while it runs, ``result.json`` when it is done."""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from dpvla import provenance
from dpvla.checkpoint_layout import METRICS_FILE
from dpvla.config import ConfigError, NotNegative, Whole, one_line, to_dict
from dpvla.files import FileError, read_json, read_text, short, write_json
from dpvla.schema import checked, read_as
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.data.local_data import ORIGIN
from dpvla.state_based.running.config import StateBasedConfig
from dpvla.state_based.running.deviations import deviations
from dpvla.state_based.running.evaluation import AgentEvaluation
from dpvla.state_based.running.tasks import Task
from dpvla.training.run_directory import read_run

EVALUATIONS, DATA, RESULT = "evaluations.json", "data.json", "result.json"
MOST_DIGITS = 12
"""Of a number of updates."""


_Scores = TypedDict("_Scores", {"success": float, "return": float}, total=False)  # the benchmark's one


class _OfSeed(_Scores):
    seed: Whole


class Summary(_Scores):
    """What files keep of an evaluation."""

    std: NotNegative
    seconds: NotNegative
    per_seed: list[_OfSeed]


class _Acting(Summary, total=False):
    step: Whole


class Result(_Scores):
    """What ``result.json`` holds of a run for those that read it again; ``write_result`` writes more."""

    env: str
    agent: str
    seeds: list[Whole]
    std: NotNegative
    per_seed: list[_OfSeed]
    steps: Whole
    offline_steps: Whole
    online_steps: Whole
    updates_per_s: NotNegative
    evaluations: dict[str, Summary]
    deviations_from_the_paper: list[str]


class _Data(TypedDict, total=False):
    dataset: str
    packages: dict[str, str]


def _require_metric(content: Summary | Result, metric: str, where: str) -> None:
    """Raise FileError where an evaluation, or a seed of it, lacks the benchmark's measure."""
    for key, scores in (("", content), *((f"per_seed[{i}].", row) for i, row in enumerate(content["per_seed"]))):
        if metric not in scores:
            raise FileError(f"{where}: {key}{metric} is missing")


def _require_evaluations(content: Mapping[str, Summary], metric: str, where: str, prefix: str = "") -> None:
    for step, summary in content.items():
        if not step.isdecimal() or len(step) > MOST_DIGITS:
            raise FileError(f"{where}: {prefix}{short(step)} is no number of updates")
        _require_metric(summary, metric, f"{where}: {prefix}{step}")


class Evaluations:
    """Evaluations of a run by step, written to its directory as they come."""

    def __init__(self, run_dir: Path, metric: str, until: int | None = None) -> None:
        """``until``: the update a run goes on from. Evaluations after it are of updates that are made again.

        Raises FileError where the file is damaged, or of another benchmark than judges by ``metric``.
        """
        self._path = run_dir / EVALUATIONS
        found: dict[str, Any] = {}
        if self._path.exists():
            found = checked(read_json(self._path), dict[str, Summary], str(self._path))
            _require_evaluations(found, metric, str(self._path))
        self.by_step = {step: row for step, row in found.items() if until is None or int(step) <= until}

    def __contains__(self, step: int) -> bool:
        return str(step) in self.by_step

    def add(self, evaluation: AgentEvaluation) -> dict[str, float]:
        """Keep an evaluation (in place of an earlier one of the same step); returns the numbers to log."""
        summary = summarize(evaluation)
        by_step = self.by_step | {str(evaluation.step): summary}
        self.by_step = dict(sorted(by_step.items(), key=lambda item: int(item[0])))
        write_json(self._path, self.by_step)
        name = evaluation.metric
        values = {f"evaluation/{name}": summary[name], f"evaluation/{name}_std": summary["std"]}
        if len(evaluation.seeds) > 1:
            values |= {f"evaluation/{name}_seed_{s}": score for s, score in zip(evaluation.seeds, evaluation.scores)}
        return values | {"evaluation/seconds": evaluation.seconds}


def summarize(evaluation: AgentEvaluation) -> dict[str, Any]:
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


def note_data(run_dir: Path, about: Mapping[str, Any], begins: bool) -> None:
    """Note what a run learns from, when it begins; also where a start without checkpoint has noted other data."""
    if begins or not (run_dir / DATA).exists():
        write_json(run_dir / DATA, about)


def check_data(run_dir: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse to go on with other data than a run began with; it may lie elsewhere.

    Returns ``about``, and as ``packages_at_start`` the simulators' versions where those have changed: rewards and
    episodes may depend on them, which is said on stderr.

    Raises:
        ConfigError: the run began with other data; names what differs.
    """
    path = run_dir / DATA
    if not path.exists():  # cut off while it began
        return dict(about)
    before: dict[str, Any] = dict(read_as(path, _Data))
    now = json.loads(json.dumps(about))
    for key in ("dataset", "files", "contents", "rows_used", "success_timing"):
        if key in before and before[key] != now.get(key):
            raise ConfigError(
                f"{run_dir} was begun with data whose {key} was {short(before.get(key))}, now it is "
                f"{short(now.get(key))}; put the old files back, or begin anew with --restart or another --out"
            )
    packages = before.get("packages", now["packages"])
    if packages == now["packages"]:
        return dict(about)
    print(
        f"{run_dir} was begun with {_listed(packages)}, now there is {_listed(now['packages'])}: rewards and episodes "
        "may differ",
        file=sys.stderr,
    )
    return {**about, "packages_at_start": packages}


def _listed(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def write_result(
    run_dir: Path,
    config: StateBasedConfig,
    task: Task,
    recipe: AgentConfig,
    data: Mapping[str, Any],
    evaluations: Evaluations,
    device: torch.device,
) -> dict[str, Any]:
    """Write ``result.json`` of a finished run, trained on ``device``; returns its content.

    ``success`` (0 to 1) or ``return`` is the last step's, the mean over seeds; the best step is not picked.
    """
    last = evaluations.by_step[str(config.all_steps)]
    run = read_run(run_dir)
    resumed = run.get("resumed") or []
    departures = deviations(config, task, recipe, data, resumed)
    seeds = list(config.all_seeds)
    result = {
        "env": task.name,
        "agent": config.agent,
        "seeds": seeds,
        task.metric: last[task.metric],
        "std": last["std"],
        "per_seed": last["per_seed"],
        "steps": config.all_steps,
        "offline_steps": config.steps,
        "online_steps": config.online_steps,
        "updates_per_s": updates_per_second(run_dir),
        "seed_updates_per_s": updates_per_second(run_dir) * len(seeds),
        "evaluations": evaluations.by_step,
        "locally_generated": data["origin"] == ORIGIN,
        "deviations_from_the_paper": departures,
        "hyperparameters": to_dict(recipe),
        "config": to_dict(config),
        "provenance": provenance.made_by(seeds if len(seeds) > 1 else seeds[0], device) | {"data": dict(data)},
    }
    if resumed:  # by other commands, versions or machines, perhaps
        result |= {"begun_with": run["provenance"], "resumed": resumed}
    write_json(run_dir / RESULT, result)
    return result


def read_result(run_dir: Path, task: Task, agent: str) -> dict[str, Any] | None:
    """``result.json`` of a run, None when it is not done.

    Raises FileError where it is damaged, or of another task or agent.
    """
    path = run_dir / RESULT
    if not path.exists():
        return None
    result = read_as(path, Result)
    for key, value in (("env", task.name), ("agent", agent)):
        if result[key] != value:  # type: ignore[literal-required]
            found = result[key]  # type: ignore[literal-required]
            raise FileError(f"{path}: {key} is {short(found, 80)}, its run's is {value!r}: it is of another run")
    _require_metric(result, task.metric, str(path))
    _require_evaluations(result["evaluations"], task.metric, str(path), "evaluations.")
    for steps in (result["steps"], result["offline_steps"]):
        if str(steps) not in result["evaluations"]:
            raise FileError(f"{path}: evaluations.{steps} is missing")
    return dict(result)


def acting_file(run_dir: Path, acting: Mapping[str, Any]) -> Path:
    """Where an evaluation of a finished run with other hyperparameters of acting is kept."""
    return run_dir / ("acting_" + "_".join(f"{name}={value}" for name, value in acting.items()) + ".json")


def read_acting(run_dir: Path | str, acting: Mapping[str, Any], step: int, metric: str) -> dict[str, Any] | None:
    """What `training_run.evaluate_acting` found after update ``step``, None when it was not called then."""
    path = acting_file(Path(run_dir), acting)
    if not path.exists():
        return None
    found = read_as(path, _Acting)
    _require_metric(found, metric, str(path))
    return dict(found) if found.get("step", step) == step else None


def updates_per_second(run_dir: Path) -> float:
    """Updates over the time they took, evaluations left out, from a run's ``metrics.csv``; 0 before anything is logged.

    Several seeds side by side count as one update. FileError names a line that cannot be read.
    """
    path = run_dir / METRICS_FILE
    if not path.exists():
        return 0.0
    updates, seconds, before = 0, 0.0, 0
    rows = csv.DictReader(read_text(path).splitlines())
    try:
        for row in rows:
            if speed := row.get("speed/steps_per_s"):
                step, rate = int(row["step"]), float(speed)
                if not (step >= 0 and 0 < rate < math.inf):
                    raise ValueError("a speed that is not above 0")
                updates, seconds, before = updates + step - before, seconds + (step - before) / rate, step
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FileError(f"{path}, line {rows.line_num}: {one_line(error)[:100]}; remove what is damaged") from None
    return updates / seconds if seconds > 0 else 0.0
