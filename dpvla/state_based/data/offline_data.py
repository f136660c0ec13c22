"""What the loaders of both benchmarks give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.state_based.data.transitions import Transitions


@dataclass(frozen=True)
class OfflineData:
    """Transitions with the task's rewards, and what must stand beside every number made from them."""

    train: Transitions
    validation: Transitions | None  # OGBench has its own; ExORL has none
    about: dict[str, Any]  # benchmark, origin, files' checksums, package versions, settings


def episodes_needed(lengths: Sequence[int] | NDArray[Any], max_transitions: int | None) -> int:
    """How many of the first episodes hold ``max_transitions`` rows (all of them when together they hold fewer)."""
    if max_transitions is None:
        return len(lengths)
    if max_transitions < 1:
        raise ValueError(f"max_transitions must be at least 1, found {max_transitions}")
    return min(int(np.searchsorted(np.cumsum(lengths), max_transitions)) + 1, len(lengths))
