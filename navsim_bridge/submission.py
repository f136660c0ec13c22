"""Leaderboard submissions (NAVSIM v1.1): written and checked without the devkit.

The file is a pickle of a dict whose plans are the devkit's `Trajectory` objects. It is written here with stand-in
classes that carry the devkit's names, and with numpy's version 1 names, so that the leaderboard's numpy 1.23 and
any numpy 2 can load it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import write_atomically
from navsim_bridge.logs import load_plain_pickle
from navsim_bridge.scenes import NUM_POSES

PROTOCOL = 4
METADATA = ("team_name", "authors", "email", "institution", "country / region")
PREDICTIONS = "predictions"


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


class _Sampling:
    """Stands in for the devkit's `TrajectorySampling`."""

    def __init__(self) -> None:
        self.num_poses, self.time_horizon, self.interval_length = NUM_POSES, 4, 0.5


class _Trajectory:
    """Stands in for the devkit's `Trajectory`."""

    def __init__(self, poses: NDArray[np.float32], trajectory_sampling: _Sampling) -> None:
        self.poses, self.trajectory_sampling = poses, trajectory_sampling


DEVKIT_NAMES: dict[type, tuple[str, str]] = {
    _Trajectory: ("navsim.common.dataclasses", "Trajectory"),
    _Sampling: ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
}


class _Pickler(pickle._Pickler):
    """Python's own pickler, writing other names for some classes and for numpy's functions.

    The C pickler would try to import what it names, and the devkit is not here.
    """

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, type) and obj in DEVKIT_NAMES:
            module, name = DEVKIT_NAMES[obj]
        else:
            module, name = getattr(obj, "__module__", "") or "", name or obj.__qualname__
            if not module.startswith("numpy._core"):
                super().save_global(obj, name)  # type: ignore[misc]
                return
            module = module.replace("numpy._core", "numpy.core", 1)  # numpy 1 has no numpy._core
        self.save(module)  # type: ignore[attr-defined]
        self.save(name)  # type: ignore[attr-defined]
        self.write(pickle.STACK_GLOBAL)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]


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
    problems = _prediction_problems(predictions, None)
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
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=PROTOCOL).dump(content)
    return write_atomically(path, lambda file: file.write(buffer.getvalue()))


def read_submission(path: Path | str) -> tuple[dict[str, Any], list[dict[str, NDArray[Any]]]]:
    """Metadata and, per seed, token -> poses, read without running anything that the file asks for.

    Raises:
        SubmissionError: not a submission of version 1.1.
        FileNotFoundError, UnsafePickleError, ValueError: see `load_plain_pickle`.
    """
    content = load_plain_pickle(path, {names: stand_in for stand_in, names in DEVKIT_NAMES.items()})
    if not isinstance(content, dict):
        raise SubmissionError(f"{path}: expected a dict, found {type(content).__name__}")
    missing = [key for key in (*METADATA, PREDICTIONS) if key not in content]
    if missing:
        raise SubmissionError(f"{path}: no key {missing[0]!r}; found {', '.join(map(str, content))}")
    seeds = content[PREDICTIONS]
    if not isinstance(seeds, list) or not all(isinstance(seed, dict) for seed in seeds):
        raise SubmissionError(f"{path}: {PREDICTIONS} must be a list of dicts, one per seed")
    for i, seed in enumerate(seeds):
        for token, trajectory in seed.items():
            if not isinstance(trajectory, _Trajectory) or not isinstance(
                getattr(trajectory, "poses", None), np.ndarray
            ):
                raise SubmissionError(f"{path}: seed {i}, token {token}: expected a Trajectory with poses")
            sampling = getattr(trajectory, "trajectory_sampling", None)
            found = (
                tuple(vars(sampling).get(k) for k in ("num_poses", "time_horizon", "interval_length"))
                if sampling
                else ()
            )
            if found != (NUM_POSES, 4, 0.5):
                raise SubmissionError(
                    f"{path}: seed {i}, token {token}: expected {NUM_POSES} poses over 4 s every 0.5 s, found {found}"
                )
    poses = [{token: trajectory.poses for token, trajectory in seed.items()} for seed in seeds]
    return {key: content[key] for key in METADATA}, poses


def validate_submission(path: Path | str, tokens: Sequence[str] | None = None) -> list[str]:
    """Check a submission file; returns warnings.

    Args:
        path: the file.
        tokens: the split's scenes, which every seed must cover exactly; None leaves the token set unchecked.

    Raises:
        SubmissionError: listing every reason why the leaderboard would refuse or misread the file.
    """
    metadata, predictions = read_submission(path)
    problems = []
    for key, value in metadata.items():
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            problems.append(f"{key!r} is empty or not text: {value!r}")
    problems += _prediction_problems(predictions, tokens, dtype=np.dtype(np.float32))
    if problems:
        raise SubmissionError(f"{path}: " + "; ".join(problems))
    warnings = []
    if "href" not in str(metadata["team_name"]):
        warnings.append("team_name holds no HTML link: version 1.1 of the rules asks for one to a technical report")
    if len(predictions) < 3:
        warnings.append(f"{len(predictions)} seed: the leaderboard encourages three or more")
    if tokens is None:
        warnings.append("the token set was not checked: give the split")
    return warnings


def _prediction_problems(
    predictions: Sequence[Mapping[str, NDArray[Any]]], tokens: Sequence[str] | None, dtype: np.dtype[Any] | None = None
) -> list[str]:
    problems = []
    if not predictions or not predictions[0]:
        return ["there are no predictions"]
    wanted = set(predictions[0]) if tokens is None else set(tokens)
    for i, seed in enumerate(predictions):
        missing, extra = sorted(wanted - set(seed)), sorted(set(seed) - wanted)
        if missing:
            problems.append(f"seed {i}: {len(missing)} of {len(wanted)} tokens are missing, first {missing[0]}")
        if extra:
            problems.append(f"seed {i}: {len(extra)} tokens are not in the split, first {extra[0]}")
        for token, poses in seed.items():
            if np.shape(poses) != (NUM_POSES, 3):
                problems.append(f"seed {i}, token {token}: shape {np.shape(poses)}, expected {(NUM_POSES, 3)}")
            elif dtype is not None and poses.dtype != dtype:
                problems.append(f"seed {i}, token {token}: {poses.dtype}, expected {dtype}")
            elif not np.isfinite(poses).all():
                problems.append(f"seed {i}, token {token}: NaN or infinite values")
            else:
                continue
            break  # one bad plan per seed says enough
    return problems
