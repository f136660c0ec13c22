"""Objects that are made when they are first asked for, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Made = TypeVar("Made")


class ById(Mapping[str, Made]):
    """Objects by id (digits, as the devkit writes ids). Order: that of the rows."""

    def __init__(self, ids: NDArray[np.int64], make: Callable[[int], Made]) -> None:
        """``make`` gets the row in ``ids`` (object,)."""
        self._ids, self._make = ids, make
        self._made: dict[str, Made] = {}
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def __getitem__(self, key: str) -> Made:
        if key not in self._made:
            self._made[key] = self._make(self._row(key))
        return self._made[key]

    def __contains__(self, key: object) -> bool:
        try:
            self._row(key)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return map(str, self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)

    def _row(self, key: object) -> int:
        if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 19:
            at = int(np.searchsorted(self._sorted, int(key)))
            if at < len(self._sorted) and str(self._sorted[at]) == key:
                return int(self._order[at])
        raise KeyError(key)


class ByRow(Sequence[Made]):
    """Objects by row."""

    def __init__(self, count: int, make: Callable[[int], Made]) -> None:
        """``make`` gets the row, from 0 to ``count`` - 1."""
        self._rows, self._make = range(count), make
        self._made: dict[int, Made] = {}

    @overload
    def __getitem__(self, row: int) -> Made: ...
    @overload
    def __getitem__(self, row: slice) -> list[Made]: ...
    def __getitem__(self, row: int | slice) -> Made | list[Made]:
        if isinstance(row, slice):
            return [self[i] for i in self._rows[row]]
        row = self._rows[row]
        if row not in self._made:
            self._made[row] = self._make(row)
        return self._made[row]

    def __len__(self) -> int:
        return len(self._rows)
