"""numba, kept in order: kernels are compiled once for a machine, by one process, and loaded from then on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

# no fast-math: comparisons see the numbers the tensor code sees
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_PACKAGE = Path(__file__).resolve().parents[2]
_COMPILED_IN = ("pdm/compiled/*.py", "pdm/parameters.py", "ego.py")
"""Files whose text or constants end up in kernels; numba itself looks at a kernel's own file alone."""
_COMPLETE = "complete"
_keep = False
_config: Any = numba.config


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    return numba.njit(function, **_OPTIONS)


def kernel(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A compiled function for arguments of just these types, or what an earlier process compiled."""

    def build(function: Callable[..., Any]) -> Any:
        return numba.njit(signature, cache=_keep, **_OPTIONS)(function)

    return build


@contextmanager
def compiling() -> Iterator[None]:
    """Around the import of kernels: where they are kept, and that one process compiles while others wait for it.

    Without a folder to keep them in, each process compiles its own and says so.
    """
    global _keep
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(folder())
    try:
        with _turn():
            _keep = _writable(folder())
            if not _keep:
                warnings.warn(
                    f"no kernels can be kept in {folder()}: every process compiles them again, which takes it half a "
                    "minute; set NUMBA_CACHE_DIR to a folder that can be written to, or DPVLA_SCORER=torch",
                    stacklevel=2,
                )
            elif not (folder() / _COMPLETE).exists():
                print(f"compiling the score's kernels, once, into {folder()}", file=sys.stderr, flush=True)
            yield
            if _keep:
                (folder() / _COMPLETE).touch()
    finally:
        _config.CACHE_DIR = before


def folder() -> Path:
    """Where compiled kernels are kept: another one for other sources, compilers and processors."""
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_by = (numba.__version__, llvmlite.__version__, sys.version_info[:2], llvmlite.binding.get_host_cpu_name())
    digest = hashlib.sha256(repr(made_by).encode())
    for path in sorted(path for pattern in _COMPILED_IN for path in _PACKAGE.glob(pattern)):
        digest.update(path.read_bytes())
    return Path(base) / "dpvla" / f"kernels-{digest.hexdigest()[:16]}"


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f".{os.getpid()}").touch()
        (directory / f".{os.getpid()}").unlink()
    except OSError:
        return False
    return True


@contextmanager
def _turn() -> Iterator[None]:
    """Waits until no other process compiles; where there are no locks they compile side by side."""
    with ExitStack() as held:
        with suppress(OSError):  # of the lock, not of what is compiled
            folder().mkdir(parents=True, exist_ok=True)
            fcntl.lockf(held.enter_context(open(folder() / ".lock", "a")), fcntl.LOCK_EX)
        yield
