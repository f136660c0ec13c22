"""Lists of rows of several scenes as one padded table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.float64, np.int64)


def table(parts: Sequence[NDArray[Number]], *shape: int) -> tuple[NDArray[Number], NDArray[np.bool_]]:
    """Rows (scene, row, *shape) of at least one scene, zeros behind them, and where there are any (scene, row).

    ``shape`` is that of a row.
    """
    counts = np.array([len(part) for part in parts], dtype=np.int64)
    there: NDArray[np.bool_] = np.arange(int(counts.max())) < counts[:, None]
    found = np.zeros((*there.shape, *shape), dtype=parts[0].dtype)
    if there.any():
        found[there] = np.concatenate([part.reshape(-1, *shape) for part in parts])
    return found, there
