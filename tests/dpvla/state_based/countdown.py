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

    A file named by the environment variable makes one process, the first to take it, end or fail at a step, as the
    file says.
    """

    name, observation_size, action_size, max_steps, metric = "countdown", 2, 2, 9, "success"

    def __init__(self, name: str) -> None:
        self._left = 0

    def reset(self, seed: int | None = None) -> NDArray[np.float32]:
        self._left = int(np.random.RandomState(seed).randint(2, 9))
        return self._observation()

    def step(self, action: NDArray[Any]) -> Step:
        action = self._checked(action)
        how = _took(Path(path)) if (path := os.environ.get("COUNTDOWN_DIES")) else None
        if how == "":
            os._exit(3)
        if how == "memory":
            raise MemoryError
        if how is not None:
            raise RuntimeError(how)
        self._left -= 1
        return Step(self._observation(), float(action[0]), 1.0, self._left == 0, float(action[0] > 0))

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self._left, 1], np.float32)


def _took(path: Path) -> str | None:
    """What a file says, to one of several processes that try: renaming is atomic."""
    try:
        mine = path.rename(path.with_name(f"{path.name}-{os.getpid()}"))
    except FileNotFoundError:
        return None
    return mine.read_text()
