"""Columns of coordinates in fewer bytes, without losing a bit.

Map coordinates in float64 are whole multiples of a small power of two (2^-34 m for eastings, 2^-30 m for northings),
and neighbors in a column are meters apart: their differences, counted in that unit, fit in about five bytes. Single
larger steps are listed apart. A column for which this does not hold is kept as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = 2.0**62
_EXPONENTS = range(0, 53)
_WIDTHS = range(1, 8)
_EXCEPTION_BYTES = 12


def pack_column(values: NDArray[np.float64]) -> tuple[int, dict[str, NDArray[Any]]] | None:
    """Exponent of the unit and the arrays to store for ``values`` (n,); None if they cannot be stored this way."""
    counted = _counted(np.asarray(values, dtype=np.float64))
    if counted is None:
        return None
    exponent, whole = counted
    steps = np.diff(whole, prepend=np.int64(0))
    sizes = [(int((~_fits(steps, width)).sum()) * _EXCEPTION_BYTES + len(steps) * width, width) for width in _WIDTHS]
    width = min(sizes)[1]
    large = ~_fits(steps, width)
    data = np.where(large, 0, steps).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    return exponent, {
        "steps": data,
        "large_at": np.flatnonzero(large).astype(np.uint32),
        "large": steps[large],
    }


def unpack_column(exponent: int, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """What `pack_column` was given."""
    data = arrays["steps"]
    width = data.shape[1]
    raw = np.zeros((len(data), 8), dtype=np.uint8)
    raw[:, 8 - width :] = data
    steps = raw.view("<i8")[:, 0] >> (8 * (8 - width))
    steps[arrays["large_at"]] = arrays["large"]
    return np.ldexp(np.cumsum(steps).astype(np.float64), -exponent)


def _counted(values: NDArray[np.float64]) -> tuple[int, NDArray[np.int64]] | None:
    """The coarsest power of two that divides all ``values``, and how often; None if there is none of use."""
    if len(values) == 0 or not np.isfinite(values).all() or (np.signbit(values) & (values == 0)).any():
        return None
    mantissa, exponent = np.frexp(values)
    digits = np.ldexp(mantissa, 53).astype(np.int64)
    digits, exponent = digits[digits != 0], exponent[digits != 0]
    lowest = np.frexp((digits & -digits).astype(np.float64))[1] - 1 + exponent - 53  # binary place of the last digit
    unit = max(0, -int(lowest.min(initial=0)))
    if unit not in _EXPONENTS:
        return None
    scaled = np.ldexp(values, unit)
    if np.abs(scaled).max() >= _LARGEST:
        return None
    return unit, scaled.astype(np.int64)


def _fits(steps: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    limit = np.int64(1) << (8 * width - 1)
    return (steps >= -limit) & (steps < limit)
