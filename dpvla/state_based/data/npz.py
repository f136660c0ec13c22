"""Arrays of npz files, read without trusting them: plain numbers, of sizes known before memory is asked for.

``numpy.load`` asks for whatever memory an array's header claims, unpacks what a few bytes inflate to, waits on a pipe
and takes the last of two arrays of one name. Here every header is checked against the file before anything is read.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import FileError, open_regular

ACTION_TOLERANCE = 1.0 + 1e-3
"""Recorded actions lie in [-1, 1]; what is further out was not rounded there."""
STATE_LIMIT = 1e5
"""No position, speed or acceleration of these robots is larger [m, rad, s]; recorded ones reach about 1e2."""

MOST_ARRAYS = 1000
"""In a file."""
MOST_HEADER = 1000
"""Characters of an array's header; of plain numbers it has about 100."""
MOST_INFLATION = 100
"""Recorded numbers are noisy: they take no hundredth of their size, as zeros would."""
FREE_BYTES = 2**26
"""Files that unpack to less are not measured."""
PORTION = 2**20
"""Bytes unpacked at a time."""

_HEADER = re.compile(
    r"\{'descr': '(?P<type>[<>|=](?:b1|[iu][1248]|f[248]))', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:[0-9]{1,15}(?:, ?|(?=\))))*)\),? ?\}\s*"
)
"""As every numpy writes it for plain numbers."""

_UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What zipfile and numpy raise for files that are cut off, damaged, encrypted or no npz files at all."""


@dataclass(frozen=True)
class Header:
    """What an array is, by its header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool  # the first axis runs fastest
    offset: int  # bytes before the numbers
    item: zipfile.ZipInfo

    @property
    def checksum(self) -> str:
        """Of its bytes, as the file's directory has it."""
        return f"{self.item.CRC:08x}"


class Npz:
    """An open npz file: ``arrays`` says what it holds, ``read`` gives one of them."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self.arrays: Mapping[str, Header] = dict(self._headers())

    def read(self, name: str) -> NDArray[Any]:
        """An array that there is; raises FileError when its bytes are not those its checksum is of."""
        header = self.arrays[name]
        array = np.empty(math.prod(header.shape), header.dtype)
        room = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
        with _naming(self.path, name), self._archive.open(header.item) as stream:
            stream.read(header.offset)
            for start in range(0, len(room), PORTION):
                piece = stream.read(min(PORTION, len(room) - start))
                room[start : start + len(piece)] = piece  # a ValueError where it ends too early
        array = array.astype(header.dtype.newbyteorder("="), copy=False)
        return array.reshape(header.shape[::-1]).T if header.fortran else array.reshape(header.shape)

    def _headers(self) -> Iterator[tuple[str, Header]]:
        with _naming(self.path):
            items = self._archive.infolist()
            if len(items) > MOST_ARRAYS:
                raise ValueError(f"it holds {len(items)} arrays")
            packed, unpacked = self.path.stat().st_size, sum(item.file_size for item in items)
            if unpacked > max(FREE_BYTES, MOST_INFLATION * packed):
                raise ValueError(f"{packed} bytes that unpack to {unpacked}")
        seen: set[str] = set()
        for item in items:
            name = item.filename.removesuffix(".npy")
            with _naming(self.path, name):
                if name in seen:
                    raise ValueError("it stands there twice")
                seen.add(name)
                if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is packed as numpy packs nothing")
                with self._archive.open(item) as stream:
                    header = _header(stream, item)
                size = header.offset + math.prod(header.shape) * header.dtype.itemsize
                if size != item.file_size:
                    raise ValueError(f"its header tells of {size} bytes, there are {item.file_size}")
            yield name, header


@contextmanager
def open_npz(path: Path | str) -> Iterator[Npz]:
    """An npz file, open for reading.

    Raises:
        FileError: it is no regular file, damaged, or holds something else than plain numbers; names it and the array.
    """
    path = Path(path)
    with open_regular(path) as file:
        with _naming(path):
            archive = zipfile.ZipFile(file)
        with archive:
            yield Npz(path, archive)


def fingerprint(path: Path | str) -> str:
    """Checksums of the arrays in an npz file, from its directory: tells contents apart without reading them."""
    with open_npz(path) as file:
        return " ".join(f"{name}:{header.checksum}" for name, header in file.arrays.items())


def read_npz(path: Path | str) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file; raises as `open_npz`."""
    with open_npz(path) as file:
        return {name: file.read(name) for name in file.arrays}


@dataclass(frozen=True)
class Column:
    """What an array of recorded rows must be."""

    shape: tuple[int, ...]  # of a row
    limit: float  # largest size of a number that can be right
    kinds: str = "f"  # numpy's kinds of types
    flags: bool = False  # only 0 and 1
    or_shape: tuple[int, ...] | None = None  # another one that a row may have


def check_columns(file: Npz, columns: Mapping[str, Column], rows: int | None = None) -> int:
    """The rows of an npz file whose arrays are, by their headers, what ``columns`` says; some may be absent.

    Args:
        rows: how many there must be; None: as many in one array as in the others.

    Raises:
        FileError: an array of another type, width or number of rows; names file and array.
    """
    for name, column in columns.items():
        if (header := file.arrays.get(name)) is None:
            continue
        if header.dtype.kind not in column.kinds:
            raise FileError(f"{file.path}: {name} is of type {header.dtype}, which is not what is recorded there")
        if not header.shape or header.shape[1:] not in (column.shape, column.or_shape):
            raise FileError(
                f"{file.path}: {name} rows have shape {header.shape[1:]}, this environment gives {column.shape}: the "
                "file belongs to another one, or was recorded from another version of it"
            )
        if rows is None:
            rows = header.shape[0]
        if header.shape[0] != rows:
            raise FileError(f"{file.path}: {name} has {header.shape[0]} rows, where {rows} belong")
    return rows or 0


def read_column(file: Npz, name: str, column: Column) -> NDArray[Any]:
    """An array whose header `check_columns` has seen, and its numbers; FileError names the first that cannot be."""
    array = file.read(name)
    if not array.size:
        return array
    low, high = float(array.min()), float(array.max())  # NaN spreads to both
    if not (-column.limit <= low and high <= column.limit):
        fine = (array >= -column.limit) & (array <= column.limit)
        raise FileError(_impossible(file.path, name, array, fine, f"expected at most ±{column.limit:g}"))
    if column.flags:
        fine = (array == 0) | (array == 1)
        if not fine.all():
            raise FileError(_impossible(file.path, name, array, fine, "expected 0 or 1"))
    return array


def _impossible(path: Path, name: str, array: NDArray[Any], fine: NDArray[np.bool_], expected: str) -> str:
    first = np.unravel_index(int(np.argmin(fine)), fine.shape)
    more = fine.size - int(np.count_nonzero(fine)) - 1
    others = f", and {more} more are wrong" if more else ""
    where = ", ".join(map(str, first))
    return f"{path}: {name}[{where}] is {array[first]:g}{others}; {expected}: the file is damaged, get or make it again"


def _header(stream: IO[bytes], item: zipfile.ZipInfo) -> Header:
    """By our own reading: numpy evaluates the text as Python, in which more can go wrong."""
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\1\0", b"\2\0"):
        raise ValueError("it is no array")
    length = int.from_bytes(stream.read(2 * start[6]), "little")
    text = stream.read(min(length, MOST_HEADER + 1)).decode("latin-1")
    found = _HEADER.fullmatch(text)
    if found is None or len(text) < length:
        raise ValueError("its header tells of no plain numbers")
    shape = tuple(int(size) for size in found["shape"].split(",") if size.strip())
    return Header(shape, np.dtype(found["type"]), found["fortran"] == "True", stream.tell(), item)


@contextmanager
def _naming(path: Path, array: str = "") -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except _UNREADABLE as error:
        inside = f"{array[:40]}: " if array else ""
        why = " ".join(str(error)[:200].split()) or type(error).__name__
        raise FileError(
            f"{path} is not a readable npz file ({inside}{why}); delete it, and get or make it again"
        ) from error
