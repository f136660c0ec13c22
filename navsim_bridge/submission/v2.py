"""Submissions to the leaderboards of NAVSIM v2 (two stages): written without the devkit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dpvla.plan import Plan
from navsim_bridge.files.submissions import Submission, write_submission_file
from navsim_bridge.submission.check import Expected, require
from navsim_bridge.submission.team import Team, submitted


def write_submission(
    path: Path | str,
    team: Team,
    first: Mapping[str, Plan | NDArray[Any]],
    second: Mapping[str, Plan | NDArray[Any]],
    *,
    part: bool = False,
) -> Path:
    """Write ``submission.pkl`` atomically.

    Args:
        path: the file.
        team: metadata.
        first, second: of each stage, token -> plan, (8, 3) in the ego rear-axle frame or of another sampling. Poses
            are written in float32.
        part: of a split alone, in which a stage may be empty.

    Raises:
        SubmissionError: empty metadata, a stage without plans, plans that are none or not finite, or a token in both.
    """
    made = Submission(dict(team.metadata()), ((submitted(first),), (submitted(second),)))
    require(made, Expected((tuple(first), tuple(second))) if part else None)
    return write_submission_file(path, made.metadata, made.stages)
