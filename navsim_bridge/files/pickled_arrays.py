"""numpy arrays from what a pickle holds of them: kind, byte order, shape and bytes, each checked.

numpy's own functions believe what a pickle says of a dtype and of references in it, and so take bytes for addresses.
Here nothing of a file reaches numpy but the name of a plain kind, a byte order, a shape that fits, and bytes: truth
values, whole numbers, floats and texts of a fixed length. Arrays of objects are made from a list of numbers, texts, and
objects that stand for others (`StandIn`).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.files.stand_in import StandIn

_KINDS = re.compile(r"b1|[iu][1248]|f[248]|[SU](0|[1-9][0-9]{0,4})|O8?")
"""What a dtype may be called: numpy writes no other names for these kinds."""
MOST_DIMENSIONS = 32
MOST_EMPTY = 2**16
"""Rows, or whatever an empty array has none of; others have no more than the file has bytes."""
SCALARS = frozenset({type(None), bool, int, float, str, bytes})
NUMPY_SCALARS = frozenset(np.dtype(code).type for code in ("?", *"bhilBHILefdSU"))
"""Types of single values, numpy's among them."""


class Dtype:
    """What a pickle says of a dtype: its kind at first, then its byte order."""

    __slots__ = ("_kind", "dtype")

    def __init__(self, kind: Any, *flags: Any) -> None:
        """Raises ValueError for any kind but plain ones. The flags, whether to align and to copy, mean nothing here."""
        if type(kind) is not str or not _KINDS.fullmatch(kind):
            raise ValueError(f"values of numpy's type {kind[:20] if type(kind) is str else '?'!r}, which are not read")
        self._kind = kind
        self.dtype: np.dtype[Any] | None = None

    def build(self, state: Any) -> None:
        """Take the byte order. Raises ValueError for a state that tells of anything else, such as fields."""
        if type(state) is not tuple or len(state) != 8 or self.dtype is not None:
            raise ValueError("a dtype whose state is not as numpy writes it")
        version, order, subarray, names, fields, size, _alignment, _flags = state
        dtype = np.dtype(self._kind)
        plain = subarray is None and names is None and fields is None and type(size) is int
        if not plain or version != 3 or size not in (-1, dtype.itemsize) or order not in ("<", ">", "|"):
            raise ValueError("a dtype whose state tells of more than a byte order")
        self.dtype = np.dtype(order + self._kind)


class UnbuiltArray:
    """Stands for an array from where a pickle first names it to where it gives its content."""

    __slots__ = ("memo_key",)

    def __init__(self, memo_key: int) -> None:
        self.memo_key = memo_key


def array_from_state(state: Any) -> NDArray[Any]:
    """The array given as a tuple of a version, shape, dtype, whether by columns, and content."""
    if type(state) is not tuple or len(state) != 5:
        raise ValueError("an array whose state is not as numpy writes it")
    _version, shape, dtype, by_columns, content = state
    if type(by_columns) not in (bool, int):
        raise ValueError("an array that is neither by rows nor by columns")
    return _array(content, dtype, shape, "F" if by_columns else "C")


def array_from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> NDArray[Any]:
    """The array given as bytes, dtype, shape, order and, where the order is K, its axes."""
    if type(content) is bytes and order == "K" and type(axes) is tuple and all(type(axis) is int for axis in axes):
        array = _array(content, dtype, shape, "C")
        if sorted(axes) == list(range(array.ndim)):
            return array.transpose(axes)
    elif type(content) is bytes and axes is None and type(order) is str and order in ("C", "F"):
        return _array(content, dtype, shape, order)
    raise ValueError("an array that is not given as numpy writes it")


def scalar(dtype: Any, content: Any) -> np.generic:
    """The numpy scalar given as dtype and bytes."""
    if type(content) is not bytes:
        raise ValueError("a numpy number that is not given as numpy writes it")
    if type(dtype) is Dtype and dtype.dtype is not None and dtype.dtype.itemsize == 0 and not content:
        empty: np.generic = dtype.dtype.type()  # of text
        return empty
    value = _array(content, dtype, (), "C")[()]
    assert isinstance(value, np.generic)
    return value


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    kind = dtype.dtype if type(dtype) is Dtype else None
    if kind is None:
        raise ValueError("an array without a dtype")
    if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"an array whose shape is no tuple of at most {MOST_DIMENSIONS} numbers")
    items = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError("an array whose shape holds more than whole numbers from 0 on")
        items *= size
    if items == 0 and math.prod(size or 1 for size in shape) > MOST_EMPTY:
        raise ValueError("an empty array of an impossible shape")
    if kind.kind == "O":
        return _objects(content, shape, order)
    if kind.itemsize == 0:
        raise ValueError("an array of texts without length")
    if type(content) is not bytes or len(content) != items * kind.itemsize:
        raise ValueError(f"an array whose content is not as long as its shape and type {kind} say")
    if kind.kind == "b" and content.translate(None, b"\0\1"):
        raise ValueError("an array of truth values that are neither 0 nor 1")
    if kind.kind == "U":
        codes = np.frombuffer(content, f"{kind.str[0]}u4")
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError("an array of text that is not Unicode")
    return np.ndarray(shape, kind, bytearray(content), order=order)


def _objects(content: Any, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    if type(content) is not list or len(content) != math.prod(shape):
        raise ValueError("an array of objects that is not given as a list as long as its shape says")
    if not all(type(v) in SCALARS or type(v) in NUMPY_SCALARS or isinstance(v, StandIn) for v in content):
        raise ValueError("an array of objects that are not all numbers and texts")
    array = np.empty(len(content), dtype=object)
    array[:] = content
    return array.reshape(shape, order=order)
