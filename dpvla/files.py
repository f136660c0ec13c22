"""Writing files so that a reader sees the old one or the whole new one, and one process at a time."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
_held: set[Path] = set()


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], object]) -> Path:
    """Call ``write`` on a temporary binary file beside ``path``, flush it to disk, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path | str, data: Any) -> Path:
    """Write indented JSON atomically; NaN and infinity are refused."""
    return write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The mapping in a JSON file; ValueError names a file that holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, found a {type(content).__name__}")
    return content


def check_folder(path: Path | str) -> None:
    """Raise OSError when ``path`` cannot become, or is not, a folder to write to. Makes nothing."""
    _refuse_no_name(path, "folder")
    _check(Path(path), "a file, where a folder is to be written", Path.is_dir)


def check_file(path: Path | str) -> None:
    """Raise OSError when ``path`` cannot become, or is not, a file to write. Makes nothing."""
    _refuse_no_name(path, "file")
    path = Path(path)
    _check(path, "a folder, where a file is to be written", lambda p: not p.is_dir())
    check_folder(path.parent)


def _refuse_no_name(path: Path | str, kind: str) -> None:
    """``Path("")`` would be the working directory."""
    if not os.fspath(path):
        raise FileNotFoundError(f"the {kind} to write has an empty name: give one (is a shell variable unset?)")


def _check(path: Path, wrong: str, fits: Callable[[Path], bool]) -> None:
    if os.path.lexists(path):
        if not fits(path):
            raise FileExistsError(f"{path} is {wrong}; choose another name")
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable for this user")
        return
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir():
        raise NotADirectoryError(f"{path}: {parent} is no folder; choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be made: {parent} is not writable for this user")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class DirectoryInUseError(ValueError):
    """Another process is writing into the directory."""


@contextmanager
def one_writer(directory: Path | str) -> Iterator[Path]:
    """Hold ``directory``, made if absent, for this process alone; nested uses in one process share the hold.

    The operating system takes the lock (``fcntl.lockf`` on the file ``.lock``) back when its process ends, however it
    ends. On network file systems without locks nothing is held, which is said on stderr.

    Raises:
        DirectoryInUseError: another process holds it; names that process.
        OSError: it cannot be made or written to (`check_folder`).
    """
    check_folder(directory)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    key = directory.resolve()
    if key in _held:
        yield directory
        return
    with (directory / LOCK).open("a+", encoding="utf-8") as file:
        _take(file, directory)
        _held.add(key)
        try:
            yield directory
        finally:
            _held.discard(key)


def _take(file: IO[str], directory: Path) -> None:
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, by POSIX
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        raise DirectoryInUseError(
            f"{directory} is being written by {holder}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        print(
            f"{directory} cannot be locked ({error.strerror}): two writers in it would not be noticed", file=sys.stderr
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
