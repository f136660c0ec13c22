"""The best checkpoint of a run by what evaluations say, and the end of a run that falls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dpvla.checkpoint_layout import BEST
from dpvla.training import checkpoint
from dpvla.training.checkpoint import Judged


class FallenError(ValueError):
    """The score has fallen further below the best than is allowed. All of it is saved."""


class Judge:
    """Keeps the first step whose evaluation gave the highest score, and says when a run has fallen below it.

    The start counts for falling, but is no checkpoint that could be kept.
    """

    def __init__(self, score: str, what: str, stop_below: float | None = None) -> None:
        """``score``: name of the number among those that the stage's ``evaluate`` gives.

        Args:
            what: what is scored, in words.
            stop_below: a score so much below the highest so far ends the run; None: none does.
        """
        self.score, self.what, self.stop_below = score, what, stop_below
        self.start: float | None = None
        self.best: float | None = None
        self.last: float | None = None
        self.best_step = 0

    def note(self, step: int, values: Mapping[str, float]) -> bool:
        """Take in an evaluation; whether it is the best after an update so far."""
        self.last = score = values[self.score]
        if step == 0:
            self.start = score
            return False
        if self.best is not None and score <= self.best:
            return False
        self.best, self.best_step = score, step
        return True

    def shown(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those of an evaluation that stand on the terminal: what is judged, and its like of other metrics."""
        kind = self.score.rpartition("/")[2]
        return {name: value for name, value in values.items() if name.rpartition("/")[2] == kind}

    @property
    def highest(self) -> float | None:
        """Of all scores, the start's as well."""
        return max((score for score in (self.start, self.best) if score is not None), default=None)

    @property
    def has_fallen(self) -> bool:
        """Whether the last score lies too far below the highest."""
        bound, highest = self.stop_below, self.highest
        return bound is not None and highest is not None and self.last is not None and self.last < highest - bound

    def refuse_fall(self, run_dir: Path) -> None:
        """Raise FallenError where the run has fallen."""
        if self.has_fallen:
            when = f"at step {self.best_step}" if self.highest == self.best else "before the first update"
            best = (
                "no checkpoint" if self.best is None else f"{run_dir / BEST} ({self.best:.4f}, step {self.best_step})"
            )
            raise FallenError(
                f"{self.score} fell to {self.last:.4f}, more than {self.stop_below:g} below {self.highest:.4f} {when}: "
                f"the run is stopped and all of it is saved; the best checkpoint is {best}. The same command goes on "
                "with a larger --heldout.stop-below, or without"
            )

    def state(self) -> Judged:
        """For a checkpoint."""
        return Judged(what=self.what, start=self.start, best=self.best, best_step=self.best_step, last=self.last)

    def restore(self, state: Judged | None, run_dir: Path) -> str | None:
        """Take up what a checkpoint says; what is to be said where the best of it does not count any more."""
        if state is None:
            return None
        if state["what"] != self.what:
            return f"what is held out was {state['what']}, is {self.what}: the best score is found anew"
        self.start, self.last = state["start"], state["last"]
        if state["best"] is None:
            return None
        if not checkpoint.place(run_dir, state["best_step"]).is_dir():
            return f"the best checkpoint, of step {state['best_step']}, is gone: another is found"
        self.best, self.best_step = state["best"], state["best_step"]
        return None
