"""Leaderboard submissions as files: what they hold, read without running anything that they ask for.

A submission is a pickle of a dict of texts and of plans by token, which are the devkit's `Trajectory` objects. Version
1.1 has one list of such dicts, one for each seed; version 2 one list for each of its two stages, with one dict each.

Plans may have any sampling. The official scorer (`navsim/evaluate/pdm_score.py`) casts the poses to float64, takes
the k-th as that of k intervals from now, interpolates between them at 10 Hz up to 4 s, and lets a plan that ends
before stand at its last pose. Of the sampling it reads horizon and interval, which say how many poses it looks at
at most; unpickling checks none of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short, write_atomically
from dpvla.plan import NUM_POSES, PLAN_SECONDS, POSE_INTERVAL, Plan
from navsim_bridge.files.pickles import dump_plain_pickle, load_plain_pickle
from navsim_bridge.files.stand_in import StandIn

METADATA = ("team_name", "authors", "email", "institution", "country / region")
PREDICTIONS = "predictions"
STAGES = ("first_stage_predictions", "second_stage_predictions")
SHORTEST_INTERVAL = 2e-6
"""[s] The official scorer cuts times to whole microseconds."""
MOST_TIMES = 10**8
"""The official scorer lists the times up to a plan's horizon; so many take gigabytes."""
MOST_DISTANCE = 1e6
"""[m, rad] No car is there after seconds; with far larger numbers the scorer's own are no longer finite."""
LONGEST_TOKEN = 200
USUAL = (NUM_POSES, int(PLAN_SECONDS), POSE_INTERVAL)
"""Number of poses, horizon [s] and interval [s] of the devkit's own plans."""


class SubmissionError(ValueError):
    """A submission that the leaderboard would refuse; the message lists why."""


class TrajectorySampling(StandIn):
    """Stands in for the devkit's class of that name."""

    num_poses: Any = None
    time_horizon: Any = None  # [s]
    interval_length: Any = None  # [s]

    def __init__(self, num_poses: Any, time_horizon: Any, interval_length: Any) -> None:
        self.num_poses, self.time_horizon, self.interval_length = num_poses, time_horizon, interval_length


class Trajectory(StandIn):
    """Stands in for the devkit's class of that name."""

    poses: Any = None
    trajectory_sampling: Any = TrajectorySampling(*USUAL)  # the devkit's default, which a plan without its own has

    def __init__(self, poses: NDArray[np.float32], trajectory_sampling: TrajectorySampling) -> None:
        self.poses, self.trajectory_sampling = poses, trajectory_sampling


DEVKIT_NAMES: dict[type, tuple[str, str]] = {
    Trajectory: ("navsim.common.dataclasses", "Trajectory"),
    TrajectorySampling: ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
}


@dataclass(frozen=True)
class SubmittedPlan:
    """One plan of a submission as the file has it."""

    poses: NDArray[Any]  # (pose, 3) x, y [m], heading [rad] in the ego rear-axle frame
    sampling: tuple[Any, Any, Any]  # number of poses, horizon [s], interval [s], as the file says

    @classmethod
    def of(cls, plan: Plan) -> SubmittedPlan:
        """An agent's plan, its poses in float32 as the devkit's agents give them."""
        count, interval = len(plan.poses), plan.interval
        sampling = USUAL if (count, interval) == (NUM_POSES, POSE_INTERVAL) else (count, count * interval, interval)
        return cls(np.array(plan.poses, dtype=np.float32), sampling)

    def as_scored(self) -> Plan:
        """The plan as the official scorer reads it. Raises ValueError where it has a `problem`."""
        if problem := self.problem():
            raise ValueError(problem)
        return Plan(np.array(self.poses, dtype=np.float64), float(self.sampling[2]))

    def problem(self) -> str:
        """Why the official scorer would fail on the plan, or score another than the file says; empty when not."""
        if problem := pose_problem(self.poses):
            return problem
        horizon, interval = (as_number(value) for value in self.sampling[1:])
        if horizon is None or interval is None:
            found = f"horizon {short(self.sampling[1])}, interval {short(self.sampling[2])}"
            return f"horizon and interval must be positive numbers of seconds, found {found}"
        if interval < SHORTEST_INTERVAL:
            return f"an interval of {interval:g} s is below the microseconds that the official scorer counts in"
        if horizon / interval > MOST_TIMES:
            return f"{horizon:g} s every {interval:g} s are more times than the official scorer can list"
        read, given = math.ceil(horizon / interval), len(self.poses)  # as many as numpy.arange(0, horizon, interval)
        if read < given:
            return (
                f"{several(given, 'pose')}, but {horizon:g} s every {interval:g} s are {read}: the scorer would leave "
                "out the rest"
            )
        return ""


Predictions = Mapping[str, SubmittedPlan]
"""Plans by token."""


@dataclass(frozen=True)
class Submission:
    """What a submission file holds."""

    metadata: dict[str, Any]  # by the keys of METADATA, whatever the file has there
    stages: tuple[tuple[Predictions, ...], ...]  # of version 1.1 one, of version 2 two; in each a dict for every seed

    @property
    def two_stages(self) -> bool:
        """Whether it is one of version 2."""
        return len(self.stages) == len(STAGES)

    @property
    def version(self) -> str:
        """Of the devkit that reads it."""
        return "2" if self.two_stages else "1.1"


def read_submission(path: Path | str) -> Submission:
    """What a file holds.

    Raises:
        SubmissionError: not a submission of version 1.1 or 2.
        FileNotFoundError, UnsafePickleError, ValueError: see `load_plain_pickle`.
    """
    content = load_plain_pickle(path, {names: stand_in for stand_in, names in DEVKIT_NAMES.items()})
    if not isinstance(content, dict):
        raise SubmissionError(f"{path}: expected a dict, found {type(content).__name__}")
    keys = STAGES if any(key in content for key in STAGES) else (PREDICTIONS,)
    missing = [key for key in (*METADATA, *keys) if key not in content]
    if missing:
        raise SubmissionError(f"{path}: no key {missing[0]!r}; found {short(list(content))}")
    stages = tuple(tuple(_seeds(path, key, content[key], len(keys) > 1)) for key in keys)
    return Submission({key: content[key] for key in METADATA}, stages)


def _seeds(path: Path | str, key: str, seeds: Any, staged: bool) -> list[Predictions]:
    if not isinstance(seeds, list) or not all(isinstance(seed, dict) for seed in seeds):
        raise SubmissionError(f"{path}: {key} must be a list of dicts, {'with one' if staged else 'one per seed'}")
    found: list[Predictions] = []
    for number, seed in enumerate(seeds):
        where = f"{path}: {place_of(key, number, staged)}"
        found.append({token: _plan(where, token, trajectory) for token, trajectory in seed.items()})
    return found


def place_of(key: str, number: int, staged: bool) -> str:
    """'seed 1', or in version 2 'first stage': where something stands in a submission."""
    return key.partition("_predictions")[0].replace("_", " ") if staged else f"seed {number}"


def _plan(where: str, token: Any, trajectory: Any) -> SubmittedPlan:
    if not isinstance(token, str) or not token.strip() or not token.isprintable() or len(token) > LONGEST_TOKEN:
        expected = f"a token must be a text of at most {LONGEST_TOKEN} printable characters"
        raise SubmissionError(f"{where}: {expected}, found {short(token)}")
    where = f"{where}, token {token}"
    if not isinstance(trajectory, Trajectory):
        raise SubmissionError(f"{where}: expected a Trajectory, found {short(trajectory)}")
    if not isinstance(trajectory.poses, np.ndarray):
        raise SubmissionError(
            f"{where}: expected a Trajectory whose poses are a numpy array, found {short(trajectory.poses)}"
        )
    sampling = trajectory.trajectory_sampling
    if not isinstance(sampling, TrajectorySampling):
        raise SubmissionError(f"{where}: expected a TrajectorySampling, found {short(sampling)}")
    return SubmittedPlan(trajectory.poses, (sampling.num_poses, sampling.time_horizon, sampling.interval_length))


def pose_problem(poses: NDArray[Any]) -> str:
    """Why poses are none; empty when they are."""
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


def as_number(value: Any) -> float | None:
    """A positive finite number of any kind, numpy's among them; None for anything else."""
    array = np.asarray(value) if isinstance(value, (int, float, np.generic, np.ndarray)) else np.array(None)
    if array.ndim or array.dtype.kind not in "biuf" or not np.isfinite(array) or array <= 0:
        return None
    return float(array)


def write_submission_file(
    path: Path | str, metadata: Mapping[str, str], stages: Sequence[Sequence[Predictions]]
) -> Path:
    """Write ``submission.pkl`` atomically, so that the leaderboard's numpy 1.23 and any numpy 2 can load it.

    ``stages``: as in `Submission`, of which ``metadata`` has the keys.
    """
    samplings: dict[tuple[Any, ...], TrajectorySampling] = {}  # one object for all that are equal
    content: dict[str, Any] = {key: metadata[key] for key in METADATA}
    for key, seeds in zip(STAGES if len(stages) > 1 else (PREDICTIONS,), stages):
        content[key] = [
            {token: Trajectory(plan.poses, _shared(samplings, plan.sampling)) for token, plan in seed.items()}
            for seed in seeds
        ]
    data = dump_plain_pickle(content, DEVKIT_NAMES)
    return write_atomically(path, lambda file: file.write(data))


def _shared(samplings: dict[tuple[Any, ...], TrajectorySampling], sampling: tuple[Any, Any, Any]) -> TrajectorySampling:
    key = tuple(map(repr, sampling))
    if key not in samplings:
        samplings[key] = TrajectorySampling(*sampling)
    return samplings[key]


def several(count: int, what: str) -> str:
    """'1 plan', '3 plans'."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
