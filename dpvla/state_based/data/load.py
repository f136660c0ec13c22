"""The recorded data of a task, whichever benchmark it belongs to."""

from __future__ import annotations

from pathlib import Path

from dpvla.state_based.data.exorl.load import load_exorl
from dpvla.state_based.data.offline_data import OfflineData
from dpvla.state_based.data.ogbench.load import load_ogbench


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
        return load_ogbench(name, folder, max_transitions)
    return load_exorl(name, folder, max_transitions=max_transitions)
