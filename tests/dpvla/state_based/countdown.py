"""An environment for tests; in a file of its own, so that worker processes need not load torch for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.state_based.environments.environment import Environment, Step


class Countdown(Environment):
    """Starts at a number drawn from the seed and ends after as many steps; success when the last action was positive.

    A file named by the environment variable makes one process, the first to take it, end at a step.
    """

    name, observation_size, action_size, max_steps, metric = "countdown", 2, 2, 9, "success"

    def __init__(self, name: str) -> None:
        self._left = 0

    def reset(self, seed: int | None = None) -> NDArray[np.float32]:
        self._left = int(np.random.RandomState(seed).randint(2, 9))
        return self._observation()

    def step(self, action: NDArray[Any]) -> Step:
        action = self._checked(action)
        if (path := os.environ.get("COUNTDOWN_DIES")) and _took(Path(path)):
            os._exit(3)
        self._left -= 1
        return Step(self._observation(), float(action[0]), 1.0, self._left == 0, float(action[0] > 0))

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self._left, 1], np.float32)


def _took(path: Path) -> bool:
    """Removing is atomic: of several processes that try, one succeeds."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
