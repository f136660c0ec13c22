"""A submission file as an agent: it drives what the file says, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpvla.manifest import sha256_of
from dpvla.plan import Plan
from navsim_bridge.agents.agent import Plans
from navsim_bridge.files.submissions import STAGES, SubmissionError, read_submission, several
from navsim_bridge.splits.scenes import SceneRecord


class SubmissionAgent:
    """Gives the plans of a file, read as the official scorer reads them; of version 1.1 or 2.

    As a proposer it gives the predictions of its first ``samples`` seeds.
    """

    def __init__(self, path: Path | str, samples: int = 1, sha256: str | None = None) -> None:
        """``sha256``: what the file must have, where it was read before.

        Raises SubmissionError for a file that is no submission, of version 2 without exactly one dict in each stage, or
        with fewer seeds than ``samples``; FileNotFoundError, UnsafePickleError or ValueError as `read_submission`.
        """
        self.path = Path(path)
        submission = read_submission(path)
        self.sha256 = sha256_of(self.path)
        """Of the file."""
        if sha256 not in (None, self.sha256):
            raise SubmissionError(f"{path} has changed since this was started; start again")
        if submission.two_stages:
            for key, seeds in zip(STAGES, submission.stages):
                if len(seeds) != 1:
                    raise SubmissionError(f"{path}: {key} must hold exactly one dict, found {len(seeds)}")
            first, second = (seeds[0] for seeds in submission.stages)
            self._seeds = [{**first, **second}]
        else:
            self._seeds = [dict(seed) for seed in submission.stages[0]]
        if len(self._seeds) < samples:
            found = several(len(self._seeds), "prediction")
            raise SubmissionError(f"--samples {samples}: {path} holds {found} a scene")
        self.samples = samples
        self.tokens = frozenset(set.intersection(*(set(seed) for seed in self._seeds[:samples])))
        """Scenes that it has plans of."""

    @property
    def about(self) -> dict[str, str]:
        """What a result must say of the file."""
        return {"path": str(self.path.resolve()), "sha256": self.sha256}

    def __call__(self, records: Sequence[SceneRecord]) -> Plans:
        """The first seed's plans. Raises ValueError, naming the file, for a scene without one that can be scored."""
        return self._of(0, records)

    def propose(self, records: Sequence[SceneRecord]) -> list[Plans]:
        """For each seed its plans; raises likewise."""
        return [self._of(seed, records) for seed in range(self.samples)]

    def require_finite(self, plans: object, candidate: int) -> None:
        """Plans that are not finite are refused as they are read."""

    def _of(self, seed: int, records: Sequence[SceneRecord]) -> list[Plan]:
        plans = []
        for record in records:
            plan = self._seeds[seed].get(record.token)
            if plan is None:
                raise SubmissionError(f"{self.path} has no plan of scene {record.token}")
            if problem := plan.problem():
                raise SubmissionError(f"{self.path}: plan of scene {record.token}: {problem}")
            plans.append(plan.as_scored())
        return plans
