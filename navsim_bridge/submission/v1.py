"""Submissions to the leaderboard of NAVSIM v1 (devkit 1.1), written without the devkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dpvla.plan import Plan
from navsim_bridge.files.submissions import Submission, write_submission_file
from navsim_bridge.submission.check import require
from navsim_bridge.submission.team import Team, submitted


def write_submission(path: Path | str, team: Team, predictions: Sequence[Mapping[str, Plan | NDArray[Any]]]) -> Path:
    """Write ``submission.pkl`` atomically.

    Args:
        path: the file.
        team: metadata.
        predictions: per seed, token -> plan, (8, 3) in the ego rear-axle frame or of another sampling; all seeds with
            the same tokens. Poses are written in float32.

    Raises:
        SubmissionError: empty metadata, no plans, plans that are none or not finite, or seeds with other tokens.
    """
    made = Submission(dict(team.metadata()), (tuple(submitted(seed) for seed in predictions),))
    require(made)
    return write_submission_file(path, made.metadata, made.stages)
