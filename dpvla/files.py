"""Files: written so that a reader sees the old one or the whole new one, read so that a hostile one does no harm."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import reprlib
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, ClassVar

import yaml

LOCK = ".lock"
_PART = ".part"
"""End of the names of files that are being written."""
MOST_TEXT = 2**28
"""Bytes of the largest text (JSON, YAML) that is read: a list of a million tokens has a tenth of it."""
MOST_NODES = 10**7
"""Values of the largest YAML file, what its aliases repeat included."""
_held: set[Path] = set()


class FileError(ValueError):
    """A file that is not what it should be; the message names it and says what to do."""


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 200 else f"<a whole number of {x.bit_length()} bits>"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[: self.maxstring])


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxstring, _SHORT.maxother = 4, 8, 8, 200, 200
_SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 8


def short(value: Any, most: int = 200) -> str:
    """At most ``most`` characters of ``repr``, on one line, made without writing out what is long or deeply nested."""
    text = re.sub(r"\s*\n\s*", " ", _SHORT.repr(value))  # arrays have lines
    return text if len(text) <= most else text[:most] + "…"


# ---------------------------------------------------------------------- reading


def open_regular(path: Path | str, most: int | None = None) -> IO[bytes]:
    """A regular file, opened for reading; what is anything else is refused without waiting for it or reading it.

    Args:
        most: bytes it may have.

    Raises:
        FileNotFoundError, PermissionError: as ``open``.
        FileError: a folder, FIFO, socket or device (links are followed), or larger than ``most``.
    """
    _require_regular(path, os.stat(path))  # before it is opened, which by itself does something to some devices
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _require_regular(path, found)
        if most is not None and found.st_size > most:
            raise FileError(_too_large(path, most))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path | str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise FileError(f"{path} is {kind}, where a file is to be read; give a file")


def _too_large(path: Path | str, most: int) -> str:
    return f"{path} has more than {most} bytes, which no such file has: it is refused"


def read_bytes(path: Path | str, most: int) -> bytes:
    """All of a regular file of at most ``most`` bytes; errors as ``open_regular``."""
    with open_regular(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FileError(_too_large(path, most))
    return content


def read_text(path: Path | str, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a regular file; FileError where it is no UTF-8, else errors as ``open_regular``."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is no UTF-8 text (byte {error.start}): it is damaged, or no text file") from None


def inside(folder: Path | str, name: Any, follow: bool = False) -> Path:
    """The path below ``folder`` that a file names.

    Args:
        name: relative, in parts; of a stranger, so it may be anything.
        follow: whether links may lead out of the folder: those that its owner made.

    Raises:
        FileError: no text, empty, absolute, with ``..``, or a link on the way leads out of the folder.
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > 4096:
        raise FileError(f"{folder}: {short(name)} is no file name")
    if "\\" in name or ".." in PurePosixPath(name).parts or name.startswith("/") or PureWindowsPath(name).drive:
        raise FileError(f"{folder}: the name {short(name)} leads out of its folder: it is refused")
    path = folder / name
    if path == folder:
        raise FileError(f"{folder}: {short(name)} is no file name")
    if not follow and not path.resolve().is_relative_to(folder.resolve()):
        raise FileError(f"{path} is a link that leads out of {folder}: it is refused")
    return path


def read_json(path: Path | str, most: int = MOST_TEXT) -> dict[str, Any]:
    """The mapping in a JSON file.

    FileError names a file that holds something else, a key twice, or a number that is not finite; else errors are
    those of ``open_regular``.
    """
    text = read_text(path, most)
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise FileError(f"{path} must hold a JSON object, found a {type(content).__name__}")
    return content


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} stands twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_yaml(path: Path | str, most: int = MOST_TEXT) -> Any:
    """What a YAML file of plain values holds, None where it is empty.

    Raises:
        FileError: no YAML, a tag that asks for an object, a key twice in one mapping, values nested too deep, or
            aliases that repeat each other without end. Else errors as ``open_regular``.
    """
    return parse_yaml(read_text(path, most), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text of plain values says; raises FileError, led by ``where``, as `read_yaml`."""
    try:
        _refuse_deep(text)
        return yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:  # ValueError: of a date
        raise FileError(f"{where} is not valid YAML: {_reason(error)}") from None


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # navtrain's list has 103,288 tokens


MOST_DEPTH = 100
_INDENTED = re.compile(rf"^[ \t?:-]{{{MOST_DEPTH},}}", re.MULTILINE)


def _refuse_deep(text: str) -> None:
    """RecursionError for more than ``MOST_DEPTH`` values inside each other: libyaml's reader would end the process."""
    if text.count("[") + text.count("{") < MOST_DEPTH and not _INDENTED.search(text):
        return
    depth = 0
    for event in yaml.parse(text, Loader=_PlainLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise RecursionError


class _PlainLoader(_Loader):  # type: ignore[misc]
    """Refuses a key that stands twice, of which YAML would take the last, and aliases that multiply.

    What YAML 1.1 takes for numbers although nobody means them, 1:30 for 90 and 010 for 8, stays a text.
    """

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        first: [(tag, form) for tag, form in forms if not tag.endswith((":int", ":float"))]
        for first, forms in _Loader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    reason = f"the key {short(key.value)} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
                seen.add(key.value)
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|"
               r"\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)  # fmt: skip


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a node, written out in full."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (known := counted.get(id(node))) is not None:
        if not known:
            raise yaml.constructor.ConstructorError(None, None, "a value contains itself", node.start_mark)
        return known
    counted[id(node)] = 0
    parts = (part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,)))
    total = 1 + sum(_count(part, counted) for part in parts)
    if total > MOST_NODES:
        raise yaml.constructor.ConstructorError(None, None, "its aliases repeat too much", node.start_mark)
    counted[id(node)] = total
    return total


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return " ".join(str(error).split())[:300]


# ---------------------------------------------------------------------- writing


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], object]) -> Path:
    """Call ``write`` on a temporary binary file beside ``path``, flush it to disk, then rename it.

    OSError names ``path``, also where there is no room for it.
    """
    return write_together({path: write})[0]


def write_together(files: Mapping[Path | str, Callable[[IO[bytes]], object]]) -> list[Path]:
    """`write_atomically` of several files that belong together: at no time one of before stands beside one of now.

    A kill leaves all of before, or the first ones of either and none of the others.
    """
    paths = [Path(path) for path in files]
    for path in paths:
        _refuse_folder(path)
    parts: list[str] = []
    writing = paths[0]
    try:
        for writing, write in zip(paths, files.values()):
            writing.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(prefix=f".{writing.name}.", suffix=_PART, dir=writing.parent)
            parts.append(part)
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_umask())
        for path in paths[1:]:
            path.unlink(missing_ok=True)
        for writing, part in zip(paths, parts):
            os.replace(part, writing)
            flush_folder(writing.parent)
    except BaseException as error:
        for part in parts:
            Path(part).unlink(missing_ok=True)
        _name(error, writing)
        raise
    return paths


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a file is to be written; move it away")


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Around what writes ``path``: OSError names it, which that of a write, where there is no room, does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy's
            raise OSError(f"{path}: {error}") from None
        _name(error, path)
        raise


def _name(error: BaseException, path: Path | str) -> None:
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        error.filename = str(path)


def remove_parts(folder: Path | str, name: str = "*") -> None:
    """Remove what a kill has left of files that were being written to ``folder``; for its one writer alone.

    Args:
        name: of these files, a pattern.
    """
    for left in Path(folder).glob(f".{name}.????????{_PART}"):
        left.unlink(missing_ok=True)


def flush_folder(folder: Path | str) -> None:
    """Have a rename in ``folder`` on disk: without it a crash of the machine may undo it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that flush no folders
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def write_texts_together(texts: Mapping[Path | str, str]) -> list[Path]:
    """`write_together` of UTF-8 texts."""

    def writing(text: str) -> Callable[[IO[bytes]], object]:
        return lambda file: file.write(text.encode())

    return write_together({path: writing(text) for path, text in texts.items()})


def write_json(path: Path | str, data: Any) -> Path:
    """Write indented JSON atomically; NaN and infinity are refused."""
    return write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def free_bytes(path: Path | str) -> int:
    """Room for files at ``path``, which need not exist."""
    return shutil.disk_usage(
        next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.exists())
    ).free


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
def one_writer(directory: Path | str, *, lock: str = LOCK, wait: bool = False) -> Iterator[Path]:
    """Hold ``directory``, made if absent, for this process alone; nested uses in one process share the hold.

    What a killed holder left of files that it was writing is removed.

    The operating system takes the lock (``fcntl.lockf`` on the file ``lock``, which is removed in the end) back when
    its process ends, however it ends. On network file systems without locks nothing is held, which is said on stderr.

    Args:
        lock: name of the lock; another one for what may be written beside others.
        wait: until who holds it has ended, which is said on stderr, instead of raising.

    Raises:
        DirectoryInUseError: another process holds it; names that process.
        OSError: it cannot be made or written to (`check_folder`).
    """
    check_folder(directory)
    directory = Path(directory)
    key = directory.resolve() / lock
    if key in _held:
        yield directory
        return
    with _taken(directory, lock, wait):
        _held.add(key)
        try:
            if lock == LOCK:
                remove_parts(directory)
            yield directory
        finally:
            _held.discard(key)
            key.unlink(missing_ok=True)


def _taken(directory: Path, lock: str, wait: bool) -> IO[str]:
    """The lock, held until it is closed; one that its last holder removed before it was ours is made again."""
    path = directory / lock
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:  # the folder went with its last holder
            continue
        file = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        try:
            _require_regular(path, os.fstat(descriptor))
            _take(file, directory, wait)
            if os.fstat(descriptor).st_nlink:
                with naming(path):
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # who held it has removed it meanwhile


def _take(file: IO[str], directory: Path, wait: bool) -> None:
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, by POSIX
        held = f"{directory} is being written by {file.read(200).strip() or 'another process'}"
        if not wait:
            raise DirectoryInUseError(f"{held}; wait for it, or choose another --out") from None
        print(f"{held}; waiting for it", file=sys.stderr)
        fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError as error:
        print(
            f"{directory} cannot be locked ({error.strerror}): two writers in it would not be noticed", file=sys.stderr
        )
