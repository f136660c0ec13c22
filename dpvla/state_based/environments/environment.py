"""One small interface to every simulator of the state-based track."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TaskMetric = Literal["success", "return"]
"""What a benchmark reports: success of an episode's last step, or the undiscounted sum of its rewards."""


@dataclass(frozen=True)
class Step:
    """What one action led to."""

    observation: Array  # (observation_size,)
    reward: float
    mask: float  # 0 where the task ended with this step (no bootstrapping), else 1; a time limit leaves it at 1
    finished: bool  # the episode is over, by the task's end or the time limit: call `reset`
    success: float | None  # 1 or 0 by the benchmark's own judgement; None where it has none


class Environment(ABC):
    """A single-task environment with float32 observations and actions in [-1, 1]."""

    name: str  # as given to `make_environment`
    observation_size: int
    action_size: int
    max_steps: int  # time limit [control steps]
    metric: TaskMetric

    @abstractmethod
    def reset(self, seed: int | None = None) -> Array:
        """Start an episode. A seed fixes everything random in it, whatever happened before in this or any process;
        without one the environment's own stream goes on."""

    @abstractmethod
    def step(self, action: NDArray[Any]) -> Step:
        """Apply ``action`` (action_size,), clipped to [-1, 1].

        Raises:
            ValueError: the action has another shape or is not finite.
        """

    def _checked(self, action: NDArray[Any]) -> Array:
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (self.action_size,):
            raise ValueError(f"{self.name}: action has shape {action.shape}, expected ({self.action_size},)")
        if not np.isfinite(action).all():
            raise ValueError(f"{self.name}: action is not finite: {action}")
        return np.clip(action, -1.0, 1.0)
