"""Leaderboard submissions (NAVSIM v1.1): written and checked without the devkit.

The file is a pickle of a dict whose plans are the devkit's `Trajectory` objects. It is written here with stand-in
classes that carry the devkit's names, and with numpy's version 1 names, so that the leaderboard's numpy 1.23 and
any numpy 2 can load it.

Plans may have any sampling. The official scorer (`navsim/evaluate/pdm_score.py`) casts the poses to float64, takes
the k-th as that of k intervals from now, interpolates between them at 10 Hz up to 4 s, and lets a plan that ends
before stand at its last pose. Of the sampling it reads horizon and interval, which say how many poses it looks at
at most; unpickling checks none of it. Refused here is what it would fail on or read otherwise than the file says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short, write_atomically
from dpvla.plan import NUM_POSES, PLAN_SECONDS, POSE_INTERVAL
from navsim_bridge.files.pickles import dump_plain_pickle, load_plain_pickle
from navsim_bridge.files.stand_in import StandIn

METADATA = ("team_name", "authors", "email", "institution", "country / region")
PREDICTIONS = "predictions"
TOLERANCE = 1e-6
"""[s] Plans are scored up to here."""
SHORTEST_INTERVAL = 2e-6
"""[s] The official scorer cuts times to whole microseconds."""
MOST_TIMES = 10**8
"""The official scorer lists the times up to a plan's horizon; so many take gigabytes."""
MOST_DISTANCE = 1e6
"""[m, rad] No car is there after seconds; with far larger numbers the scorer's own are no longer finite."""
LONGEST_TOKEN = 200
MOST_NOTES = 20
"""Problems, or warnings, that are told of one file."""


class SubmissionError(ValueError):
    """A submission that the leaderboard would refuse; the message lists why."""


@dataclass(frozen=True)
class Team:
    """Who submits. The leaderboard wants every field."""

    team_name: str  # shown on the board; v1.1 rules ask for a link to a technical report in it (HTML)
    authors: str  # names, comma-separated
    email: str  # contact address
    institution: str  # affiliation
    country: str  # country or region

    def metadata(self) -> dict[str, str]:
        """The devkit's keys. Raises SubmissionError naming an empty field."""
        values = (self.team_name, self.authors, self.email, self.institution, self.country)
        result = dict(zip(METADATA, values))
        empty = [key for key, value in result.items() if not value.strip()]
        if empty:
            raise SubmissionError(f"the submission needs {', '.join(empty)}")
        return result


class _Sampling(StandIn):
    """Stands in for the devkit's `TrajectorySampling`."""

    num_poses: Any = None
    time_horizon: Any = None  # [s]
    interval_length: Any = None  # [s]

    def __init__(self) -> None:
        self.num_poses, self.time_horizon, self.interval_length = NUM_POSES, int(PLAN_SECONDS), POSE_INTERVAL


class _Trajectory(StandIn):
    """Stands in for the devkit's `Trajectory`."""

    poses: Any = None
    trajectory_sampling: Any = _Sampling()  # the devkit's default, which a plan without its own has

    def __init__(self, poses: NDArray[np.float32], trajectory_sampling: _Sampling) -> None:
        self.poses, self.trajectory_sampling = poses, trajectory_sampling


DEVKIT_NAMES: dict[type, tuple[str, str]] = {
    _Trajectory: ("navsim.common.dataclasses", "Trajectory"),
    _Sampling: ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
}


def write_submission(path: Path | str, team: Team, predictions: Sequence[Mapping[str, NDArray[Any]]]) -> Path:
    """Write ``submission.pkl`` atomically.

    Args:
        path: the file.
        team: metadata.
        predictions: per seed, token -> plan (8, 3) in the ego rear-axle frame; all seeds with the same tokens.

    Raises:
        SubmissionError: empty metadata, no plans, plans of another shape, not finite, or seeds with other tokens.
    """
    metadata = team.metadata()
    problems = _token_problems(predictions, None) + _first_problems(predictions, _own_problem)
    if problems:
        raise SubmissionError("; ".join(problems))
    sampling = _Sampling()
    content = {
        **metadata,
        PREDICTIONS: [
            {token: _Trajectory(np.array(plan, dtype=np.float32), sampling) for token, plan in seed.items()}
            for seed in predictions
        ],
    }
    data = dump_plain_pickle(content, DEVKIT_NAMES)
    return write_atomically(path, lambda file: file.write(data))


@dataclass(frozen=True)
class Plan:
    """One plan of a submission as the official scorer reads it."""

    poses: NDArray[Any]  # (pose, 3) x, y [m], heading [rad] in the ego rear-axle frame
    sampling: tuple[Any, Any, Any]  # number of poses, horizon [s], interval [s], as the file says


def read_submission(path: Path | str) -> tuple[dict[str, Any], list[dict[str, NDArray[Any]]]]:
    """Metadata and, per seed, token -> poses (pose, 3); raises as `read_plans`."""
    metadata, plans = read_plans(path)
    return metadata, [{token: plan.poses for token, plan in seed.items()} for seed in plans]


def read_plans(path: Path | str) -> tuple[dict[str, Any], list[dict[str, Plan]]]:
    """Metadata and, per seed, token -> plan, read without running anything that the file asks for.

    Raises:
        SubmissionError: not a submission of version 1.1.
        FileNotFoundError, UnsafePickleError, ValueError: see `load_plain_pickle`.
    """
    content = load_plain_pickle(path, {names: stand_in for stand_in, names in DEVKIT_NAMES.items()})
    if not isinstance(content, dict):
        raise SubmissionError(f"{path}: expected a dict, found {type(content).__name__}")
    missing = [key for key in (*METADATA, PREDICTIONS) if key not in content]
    if missing:
        raise SubmissionError(f"{path}: no key {missing[0]!r}; found {short(list(content))}")
    seeds = content[PREDICTIONS]
    if not isinstance(seeds, list) or not all(isinstance(seed, dict) for seed in seeds):
        raise SubmissionError(f"{path}: {PREDICTIONS} must be a list of dicts, one per seed")
    plans: list[dict[str, Plan]] = []
    for i, seed in enumerate(seeds):
        plans.append({})
        for token, trajectory in seed.items():
            if not isinstance(token, str) or not token.strip() or not token.isprintable() or len(token) > LONGEST_TOKEN:
                expected = f"a token must be a text of at most {LONGEST_TOKEN} printable characters"
                raise SubmissionError(f"{path}: seed {i}: {expected}, found {short(token)}")
            where = f"{path}: seed {i}, token {token}"
            if not isinstance(trajectory, _Trajectory):
                raise SubmissionError(f"{where}: expected a Trajectory, found {short(trajectory)}")
            if not isinstance(trajectory.poses, np.ndarray):
                raise SubmissionError(
                    f"{where}: expected a Trajectory whose poses are a numpy array, found {short(trajectory.poses)}"
                )
            sampling = trajectory.trajectory_sampling
            if not isinstance(sampling, _Sampling):
                raise SubmissionError(f"{where}: expected a TrajectorySampling, found {short(sampling)}")
            plans[i][token] = Plan(
                trajectory.poses, (sampling.num_poses, sampling.time_horizon, sampling.interval_length)
            )
    return {key: content[key] for key in METADATA}, plans


def validate_submission(path: Path | str, tokens: Sequence[str] | None = None) -> list[str]:
    """Check a submission file; returns warnings.

    Args:
        path: the file.
        tokens: the split's scenes, which every seed must cover exactly; None leaves the token set unchecked.

    Raises:
        SubmissionError: listing every reason why the leaderboard would refuse or misread the file.
    """
    metadata, predictions = read_plans(path)
    texts = {key: value if isinstance(value, (list, tuple)) else [value] for key, value in metadata.items()}
    problems = [
        f"{key!r} is empty or not text: {short(metadata[key])}"
        for key, parts in texts.items()
        if not parts or not all(isinstance(part, str) and part.strip() for part in parts)
    ]
    problems += _token_problems(predictions, tokens)
    problems += _first_problems(predictions, _plan_problem)
    if problems:
        raise SubmissionError(f"{path}: " + "; ".join(_first_of(problems)))
    warnings = _first_of(_unusual(predictions))
    if not any("href" in part for part in texts["team_name"]):
        warnings.append("team_name holds no HTML link: version 1.1 of the rules asks for one to a technical report")
    if len(predictions) < 3:
        warnings.append(f"{_several(len(predictions), 'seed')}: the leaderboard encourages three or more")
    if tokens is None:
        warnings.append("the token set was not checked: give the split")
    return warnings


def _first_of(notes: list[str]) -> list[str]:
    return notes if len(notes) <= MOST_NOTES else [*notes[:MOST_NOTES], f"and {len(notes) - MOST_NOTES} more"]


AnyPlan = TypeVar("AnyPlan")


def _token_problems(predictions: Sequence[Mapping[str, object]], tokens: Sequence[str] | None) -> list[str]:
    if not predictions or not predictions[0]:
        return ["there are no predictions"]
    problems = []
    wanted = set(predictions[0]) if tokens is None else set(tokens)
    for i, seed in enumerate(predictions):
        missing, extra = sorted(wanted - set(seed)), sorted(set(seed) - wanted)
        if missing:
            problems.append(f"seed {i}: {len(missing)} of {len(wanted)} tokens are missing, first {missing[0]}")
        if extra:
            problems.append(f"seed {i}: {_several(len(extra), 'token')} not in the split, first {extra[0]}")
    return problems


def _first_problems(predictions: Sequence[Mapping[str, AnyPlan]], check: Callable[[AnyPlan], str]) -> list[str]:
    """The first bad plan of every seed: one says enough."""
    problems = []
    for i, seed in enumerate(predictions):
        found = next(((token, problem) for token, plan in seed.items() if (problem := check(plan))), None)
        if found:
            problems.append(f"seed {i}, token {found[0]}: {found[1]}")
    return problems


def _own_problem(poses: NDArray[Any]) -> str:
    """Why plans that are written here, 8 poses each, are not what they should be."""
    if np.shape(poses) != (NUM_POSES, 3):
        return f"shape {np.shape(poses)}, expected {(NUM_POSES, 3)}"
    return _pose_problem(np.asarray(poses))


def _pose_problem(poses: NDArray[Any]) -> str:
    if poses.ndim != 2 or poses.shape[1] != 3 or len(poses) < 1:
        return f"shape {poses.shape}, expected (poses, 3)"
    try:
        if poses.dtype.kind not in "biufOUS":  # of complex numbers the scorer would take the real part
            raise TypeError
        numbers = np.array(poses, dtype=np.float64)  # as the official scorer does, objects and texts included
    except (TypeError, ValueError, OverflowError):
        return f"poses of type {poses.dtype}, expected numbers"
    if not np.isfinite(numbers).all():
        return "NaN or infinite values"
    return "" if np.abs(numbers).max() <= MOST_DISTANCE else f"values of more than {MOST_DISTANCE:g} m or rad"


def _plan_problem(plan: Plan) -> str:
    """Why the official scorer would fail on a plan, or score another one than the file says; empty when it does not."""
    problem = _pose_problem(plan.poses)
    if problem:
        return problem
    horizon, interval = (_number(value) for value in plan.sampling[1:])
    if horizon is None or interval is None:
        found = f"horizon {short(plan.sampling[1])}, interval {short(plan.sampling[2])}"
        return f"horizon and interval must be positive numbers of seconds, found {found}"
    if interval < SHORTEST_INTERVAL:
        return f"an interval of {interval:g} s is below the microseconds that the official scorer counts in"
    if horizon / interval > MOST_TIMES:
        return f"{horizon:g} s every {interval:g} s are more times than the official scorer can list"
    read, given = math.ceil(horizon / interval), len(plan.poses)  # as many as numpy.arange(0, horizon, interval) has
    if read < given:
        return (
            f"{_several(given, 'pose')}, but {horizon:g} s every {interval:g} s are {read}: the scorer would leave out "
            "the rest"
        )
    return ""


def _unusual(predictions: Sequence[Mapping[str, Plan]]) -> list[str]:
    """What the official scorer takes although it is not what its own agents give."""
    notes: Counter[str] = Counter()
    for plan in (plan for seed in predictions for plan in seed.values()):
        count, horizon, interval = len(plan.poses), float(plan.sampling[1]), float(plan.sampling[2])
        poses, end = _several(count, "pose"), count * interval
        if (count, interval) != (NUM_POSES, POSE_INTERVAL):
            note = f"of {poses} every {interval:g} s: the scorer interpolates at 10 Hz up to {PLAN_SECONDS:g} s"
            if end < PLAN_SECONDS - TOLERANCE:
                note += f", standing from {end:g} s on"
            elif end > PLAN_SECONDS + TOLERANCE:
                note += ", and reads nothing later"
            notes[note] += 1
        if not math.isclose(horizon, end):
            notes[
                f"with a horizon of {horizon:.15g} s, whose poses end at {end:g} s: the scorer goes by the poses"
            ] += 1
        if _number(plan.sampling[0]) != count:
            notes[f"with num_poses {short(plan.sampling[0])} for {poses}: the scorer does not read it"] += 1
        if plan.poses.dtype != np.float32:
            notes[f"with poses in {plan.poses.dtype}, usually float32: the scorer computes in float64"] += 1
    return [f"{_several(count, 'plan')} {note}" for note, count in notes.items()]


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _number(value: Any) -> float | None:
    """A positive finite number of any kind, numpy's among them; None for anything else."""
    array = np.asarray(value) if isinstance(value, (int, float, np.generic, np.ndarray)) else np.array(None)
    if array.ndim or array.dtype.kind not in "biuf" or not np.isfinite(array) or array <= 0:
        return None
    return float(array)
