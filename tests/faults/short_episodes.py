"""Lets a state-based run be evaluated, and collect, in environments of the right sizes with episodes of few steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpvla.state_based.running import training_run
from dpvla.state_based.running.environment_workers import EnvironmentPool
from tests.dpvla.state_based.countdown import Countdown


class _ShortEpisodes(EnvironmentPool):
    def __init__(self, name: str, count: int, workers: int) -> None:
        super().__init__(name, count, workers, make=Countdown)


def use(_: object) -> None:
    """From now on, in this process."""
    training_run.EnvironmentPool = _ShortEpisodes  # type: ignore[misc, assignment]


class _Walker(Countdown):
    """Of the walker's sizes."""

    observation_size, action_size = 24, 6
    metric = "return"  # type: ignore[assignment]

    def _observation(self) -> NDArray[np.float32]:
        return np.full(24, self._left, np.float32)


def use_for_walker(_: object) -> None:
    """The same for ExORL's walker."""

    class OfWalker(EnvironmentPool):
        def __init__(self, name: str, count: int, workers: int) -> None:
            super().__init__(name, count, workers, make=_Walker)

    training_run.EnvironmentPool = OfWalker  # type: ignore[misc, assignment]
