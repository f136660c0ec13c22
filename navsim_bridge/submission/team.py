"""Who submits, and what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.plan import NUM_POSES, Plan
from navsim_bridge.files.submissions import METADATA, SubmissionError, SubmittedPlan


@dataclass(frozen=True)
class Team:
    """Who submits. The leaderboard wants every field."""

    team_name: str  # shown on the board; v1.1 rules ask for a link to a technical report in it (HTML)
    authors: str  # names, comma-separated
    email: str  # contact address
    institution: str  # affiliation
    country: str  # country or region

    @property
    def by_key(self) -> dict[str, str]:
        """By the devkit's keys."""
        return dict(zip(METADATA, (self.team_name, self.authors, self.email, self.institution, self.country)))

    def metadata(self) -> dict[str, str]:
        """The same. Raises SubmissionError naming an empty field."""
        empty = [key for key, value in self.by_key.items() if not value.strip()]
        if empty:
            raise SubmissionError(f"the submission needs {', '.join(empty)}")
        return self.by_key


def submitted(plans: Mapping[str, Plan | NDArray[Any]]) -> dict[str, SubmittedPlan]:
    """An agent's plans as a submission has them. Raises SubmissionError for an array of another shape than (8, 3)."""
    found = {}
    for token, plan in plans.items():
        if not isinstance(plan, Plan) and np.shape(plan) != (NUM_POSES, 3):
            raise SubmissionError(f"token {token}: shape {np.shape(plan)}, expected {(NUM_POSES, 3)}")
        found[token] = SubmittedPlan.of(plan if isinstance(plan, Plan) else Plan(plan))
    return found
