"""Pickles of plain values, read without running anything that they ask for, written so that numpy 1 can load them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpvla.files import read_bytes
from navsim_bridge.files.pickle_reader import Names, UnsafePickleError, unpickle_plain

__all__ = ["UnsafePickleError", "dump_plain_pickle", "load_plain_pickle"]
MOST_BYTES = 2**29
"""Size of a file: OpenScene's logs have 10 MB on average, a submission of ten seeds has 20."""


def load_plain_pickle(path: Path | str, names: Names | None = None, most_bytes: int = MOST_BYTES) -> Any:
    """Content of a pickle of plain containers, numbers, strings and numpy arrays.

    Args:
        path: the file.
        names: classes of which the file may hold objects, and what stands for them.
        most_bytes: of the file.

    Raises:
        FileNotFoundError: no such file.
        FileError: no regular file, or a larger one than is read.
        UnsafePickleError, ValueError: see `unpickle_plain`.
    """
    try:
        data = read_bytes(path, most_bytes)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    return unpickle_plain(data, path, names)


def dump_plain_pickle(content: Any, names: Mapping[type, tuple[str, str]] | None = None) -> bytes:
    """A pickle (protocol 4) of containers, numbers, strings and numpy arrays that numpy 1 and numpy 2 can load.

    Args:
        content: what to write.
        names: classes of this project -> (module, name) that they are to have in the file.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, names or {}).dump(content)
    return buffer.getvalue()


class _Pickler(pickle._Pickler):
    """Python's own pickler, which writes other names for some classes and for numpy's functions.

    The C pickler would try to import what it names.
    """

    def __init__(self, file: io.BytesIO, names: Mapping[type, tuple[str, str]]) -> None:
        super().__init__(file, protocol=4)
        self._names = names

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, type) and obj in self._names:
            module, name = self._names[obj]
        else:
            module, name = getattr(obj, "__module__", "") or "", name or obj.__qualname__
            if not module.startswith("numpy._core"):
                super().save_global(obj, name)  # type: ignore[misc]
                return
            module = module.replace("numpy._core", "numpy.core", 1)  # numpy 1 has no numpy._core
        self.save(module)  # type: ignore[attr-defined]
        self.save(name)  # type: ignore[attr-defined]
        self.write(pickle.STACK_GLOBAL)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]
