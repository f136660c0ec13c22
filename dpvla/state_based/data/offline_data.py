"""The recorded data of a task, whichever benchmark it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


def load_data(name: str, folder: Path | str | None = None, max_transitions: int | None = None) -> OfflineData:
    """Data of an OGBench single-task name (ends in -v0) or an ExORL task name.

    Args:
        folder: where the files lie; None: the ``ogbench`` package's own folder, or data/exorl.
        max_transitions: use at most about as many rows, whole episodes, the first ones.

    Raises:
        ValueError: unknown name, or files that do not fit the task (the message names them).
        FileNotFoundError: no files; says where they were looked for and how to get or make them.
    """
    if name.endswith("-v0"):
        from dpvla.state_based.data.ogbench_data import load_ogbench

        return load_ogbench(name, folder, max_transitions)
    from dpvla.state_based.data.exorl_data import load_exorl

    return load_exorl(name, folder, max_transitions=max_transitions)
