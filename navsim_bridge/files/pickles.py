"""Pickles of plain values, read without running anything that they ask for, written so that numpy 1 can load them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ARRAY = np.zeros(1)
_PICKLE_NAMES: dict[str, dict[str, Any]] = {
    "multiarray": {"_reconstruct": _ARRAY.__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]},
    "numeric": {"_frombuffer": _ARRAY.__reduce_ex__(5)[0]},
}
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    **{
        (f"numpy.{core}.{module}", name): value
        for core in ("core", "_core")  # numpy 1 and numpy 2
        for module, names in _PICKLE_NAMES.items()
        for name, value in names.items()
    },
}
"""Everything that may be named in a file: what numpy arrays, scalars, dtypes are rebuilt with, and plain containers."""


class UnsafePickleError(ValueError):
    """A pickle names a class or function that is not on the list of allowed ones."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, extra: dict[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._path, self._allowed = path, {**ALLOWED, **extra}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"{self._path}: refused to load {module}.{name}. Only plain containers, numbers, strings and "
                "numpy arrays are read. If you trust the file, rewrite it with plain values where it was made."
            ) from None


def load_plain_pickle(path: Path | str, extra: dict[tuple[str, str], Any] | None = None) -> Any:
    """Content of a pickle of plain containers, numbers, strings and numpy arrays.

    Args:
        path: the file.
        extra: further allowed names, ``(module, name) -> stand-in``; never anything that runs foreign code.

    Raises:
        FileNotFoundError: no such file.
        UnsafePickleError: the pickle names any other class or function (nothing of it has run).
        ValueError: the file is not a whole pickle.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    return unpickle_plain(data, path, extra)


def unpickle_plain(data: bytes, path: Path, extra: dict[tuple[str, str], Any] | None = None) -> Any:
    """`load_plain_pickle` of the pickle ``data`` that was read from ``path``."""
    try:
        return _Unpickler(io.BytesIO(data), path, extra or {}).load()
    except UnsafePickleError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable pickle ({type(error).__name__}: {error})") from error


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
