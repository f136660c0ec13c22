"""Named arrays in one memory-mapped file, in which every flipped byte and every missing one is found.

Layout: 8 bytes magic, 8 bytes length of the description, the description (JSON: free header and the place of each
array), arrays at multiples of 64 bytes, and 4 bytes CRC-32 of all before. Numbers are little-endian.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import FileError, open_regular, short, write_atomically

MAGIC = b"dpvlaSC\x02"
_ALIGNMENT = 64
_START = struct.Struct("<8sQ")
_CRC = struct.Struct("<I")
_BLOCK = 1 << 20


MOST_BYTES = 1 << 32
"""Of the largest file: the scenes of one log, some 20 kB each."""
MOST_DESCRIPTION = 1 << 26
KINDS = ("|u1", "<u2", "<u4", "<u8", "<i8", "<f8")
"""Of the arrays that are written."""


class CacheError(ValueError):
    """A metric cache that cannot be used; the message says which file or token and what to do."""


def write_arrays(path: Path | str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write ``arrays`` atomically; returns the file's CRC-32."""
    places: dict[str, Any] = {}
    position = 0
    parts: list[bytes] = []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        places[name] = [data.dtype.str, list(data.shape), position]
        parts.append(data.tobytes())
        padding = -data.nbytes % _ALIGNMENT
        parts.append(bytes(padding))
        position += data.nbytes + padding
    text = json.dumps({"header": header, "arrays": places}, allow_nan=False).encode()
    text += b" " * (-(_START.size + len(text)) % _ALIGNMENT)
    whole = b"".join([_START.pack(MAGIC, len(text)), text, *parts])
    crc = zlib.crc32(whole)
    write_atomically(path, lambda file: file.write(whole + _CRC.pack(crc)))
    return crc


Mapped = tuple[dict[str, Any], dict[str, NDArray[Any]], int]


def map_arrays(path: Path | str, expected_crc: int | None = None) -> Mapped:
    """Header, read-only memory-mapped arrays and CRC-32 of a file, all of whose bytes have been checked.

    Raises:
        CacheError: the file is missing, of another layout, damaged, or (with ``expected_crc``) another file.
    """
    path = Path(path)
    try:
        with open_regular(path, MOST_BYTES) as file:
            if file.seek(0, 2) < _START.size + _CRC.size:
                raise CacheError(f"{path} is damaged (too short); delete it and run tools/cache_metrics.py again")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing; run tools/cache_metrics.py again") from None
    except FileError as error:
        raise CacheError(f"{error}; delete it and run tools/cache_metrics.py again") from None
    magic, length = _START.unpack_from(content)
    view = memoryview(content)
    crc = 0
    for start in range(0, len(view) - _CRC.size, _BLOCK):
        crc = zlib.crc32(view[start : min(start + _BLOCK, len(view) - _CRC.size)], crc)
    (stored,) = _CRC.unpack_from(content, len(view) - _CRC.size)
    if crc != stored:
        raise CacheError(
            f"{path} is damaged (its checksum is {crc:08x}, it says {stored:08x}); delete it and run "
            "tools/cache_metrics.py again"
        )
    if magic != MAGIC:
        raise CacheError(f"{path}: not a scene file of this format ({magic!r}); make the cache again")
    if expected_crc is not None and crc != expected_crc:
        raise CacheError(f"{path} is not the file that the index lists; run tools/cache_metrics.py again")
    expect = Expect(path)
    begin = _START.size + length
    expect(length <= MOST_DESCRIPTION and begin <= len(view) - _CRC.size, "a description that is longer than the file")
    description = parsed(content[_START.size : begin])
    expect(isinstance(description, dict) and set(description) == {"header", "arrays"}, "no header and arrays")
    header, places = description["header"], description["arrays"]
    expect(isinstance(header, dict) and isinstance(places, dict), "no header and arrays")
    arrays = {}
    position = 0
    for name, place in places.items():
        kind, shape, at = place if isinstance(place, list) and len(place) == 3 else ("", [], 0)
        expect(kind in KINDS, f"arrays.{short(name)}: no plain numbers and their place")
        whole = isinstance(shape, list) and 1 <= len(shape) <= 3
        expect(
            whole and all(type(size) is int and size >= 0 for size in (*shape, at)),
            f"arrays.{short(name)}: no shape and place",
        )
        size = math.prod(shape) * int(kind[2:])
        expect(at == position, f"arrays.{short(name)}: not behind the array before it")
        position += size + -size % _ALIGNMENT
        expect(begin + at + size <= len(view) - _CRC.size, f"arrays.{short(name)}: outside of the file")
        arrays[name] = np.frombuffer(content, dtype=kind, count=math.prod(shape), offset=begin + at).reshape(shape)
    return header, arrays, crc


class Expect:
    """Raises CacheError for a file that is none of this format."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, holds: bool, problem: str) -> None:
        """``problem``: where in the file, and what, is wrong unless it ``holds``."""
        if not holds:
            raise CacheError(
                f"{self._path} is no scene file as it is written here ({problem}); delete it and run "
                "tools/cache_metrics.py again"
            )


def parsed(text: bytes) -> Any:
    """What JSON stands for; None where it is none, or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
