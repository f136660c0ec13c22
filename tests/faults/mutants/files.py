"""What can befall any file, whatever it holds."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

Change = Callable[[Path], object]

SPARSE = 8 << 30
"""Length [bytes] of a file that is a hole."""


def befallen(seed: int, flips: int, other: Path | None = None) -> Iterator[tuple[str, Change]]:
    """Names and changes of a file.

    Args:
        seed: of the places of flipped bytes.
        flips: how many cases flip a byte; 0 for formats without checksum, in which another byte is another value.
        other: another file of the same kind to put in its place, relative to the samples' copy.
    """
    for name, part in (("none", 0.0), ("a_quarter", 0.25), ("half", 0.5), ("nearly_all", 0.98)):
        yield f"cut_to_{name}", _cut(part)
    yield "cut_by_one_byte", lambda path: _write(path, path.read_bytes()[:-1])
    yield "cut_to_one_byte", lambda path: _write(path, path.read_bytes()[:1])
    yield "doubled", lambda path: _write(path, path.read_bytes() * 2)
    yield "text", lambda path: _write(path, b"this is not the file you are looking for\n" * 20)
    yield "zeros", lambda path: _write(path, bytes(path.stat().st_size))
    yield "noise", lambda path: _write(path, random.Random(seed).randbytes(path.stat().st_size))
    yield "sparse", _sparse
    yield "deleted", _away
    yield "directory", _directory
    yield "fifo", _fifo
    yield "link_to_zeros", lambda path: _link(path, "/dev/zero")
    yield "link_to_nothing", lambda path: _link(path, "nothing")
    yield "link_to_itself", lambda path: _link(path, path.name)
    yield "link_to_a_directory", lambda path: _link(path, "/proc")
    draw = random.Random(seed)
    for number in range(flips):
        yield f"byte_{number}", _flip(draw.random(), draw.randrange(8))
    if other is not None:
        yield "another_of_its_kind", lambda path: shutil.copyfile(_beside(path, other), path)


def _write(path: Path, content: bytes) -> None:
    """As a new file: what it was linked to elsewhere stays."""
    path.unlink()
    path.write_bytes(content)


def _cut(part: float) -> Change:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        _write(path, content[: int(len(content) * part)])

    return cut


def _flip(where: float, bit: int) -> Change:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 1 << bit
        _write(path, bytes(content))

    return flip


def _away(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _directory(path: Path) -> None:
    _away(path)
    path.mkdir()


def _fifo(path: Path) -> None:
    _away(path)
    os.mkfifo(path)


def _link(path: Path, target: str) -> None:
    _away(path)
    path.symlink_to(target)


def _sparse(path: Path) -> None:
    """As it is, and then a hole."""
    _write(path, path.read_bytes())
    os.truncate(path, SPARSE)


def _beside(path: Path, other: Path) -> Path:
    """``other`` in the same copy of the samples as ``path``."""
    return next(parent / other for parent in path.parents if (parent / other).exists())
