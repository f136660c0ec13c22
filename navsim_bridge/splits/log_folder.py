"""Which folder below navsim_logs/ a split means that does not say so: the one whose logs hold its scenes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.files.roots import LOGS


class LogFolderError(ValueError):
    """The folder of a split cannot be told; the message says what was found and what to do."""


def find_folder(data_root: Path | None, log_names: Sequence[str] | None, tokens: Sequence[str] | None) -> str:
    """Name of the folder that has the logs and the scenes of a split.

    A single folder is taken as it is, and so is the only one with any of ``log_names``. Between several the tokens
    decide: logs are opened, those of small folders first, until one folder is known to hold every token.

    Args:
        data_root: folder with `navsim_logs/`.
        log_names: the only logs that the scenes lie in; None: not known.
        tokens: of the scenes; None: the split names none.

    Raises:
        LogFolderError: no folder has any of them, several have the same ones, or each has a part (with counts).
    """
    folders = {path.name: _logs(path, log_names) for path in _folders(data_root)}
    if len(folders) == 1:
        return next(iter(folders))
    counts: dict[str, int] = {name: len(logs) for name, logs in folders.items() if logs}
    if tokens is None and log_names is None:
        raise LogFolderError(f"any folder below {LOGS}/ could be meant ({_listed(folders)}); {REMEDY}")
    if log_names is not None and (tokens is None or len(counts) <= 1):
        whole = [name for name, count in counts.items() if count == len(log_names)]
        return whole[0] if len(whole) == 1 else _only(counts, "its logs", len(log_names), folders)
    assert tokens is not None
    holders: dict[str, int] = {}
    wanted = frozenset(tokens)
    for name in sorted(folders, key=lambda folder: len(folders[folder])):
        found = _search(folders[name], wanted)
        count = sum(map(len, found.values()))
        if count == len(wanted):
            return _not_twice(name, list(found), wanted, folders)
        if count:
            holders[name] = count
    return _only(holders, "its scenes", len(wanted), folders)


REMEDY = f"name the folder below {LOGS}/ with --data-split, as data_split in a YAML file, or in a list as a column"


def _folders(data_root: Path | None) -> list[Path]:
    return sorted(p for p in (data_root / LOGS).glob("*") if p.is_dir()) if data_root else []


def _logs(folder: Path, names: Sequence[str] | None) -> list[Path]:
    if names is None:
        return sorted(folder.glob("*.pkl"))
    return [path for name in names if (path := folder / f"{name}.pkl").is_file()]


def _search(logs: Iterable[Path], wanted: Collection[str]) -> dict[str, set[str]]:
    """Log name -> tokens among ``wanted`` that it holds; stops when each has been found."""
    found: dict[str, set[str]] = {}
    left = set(wanted)
    for path in logs:
        try:
            frames = load_plain_pickle(path)
        except ValueError as error:
            raise LogFolderError(f"looking for its scenes: {error}; to look in one folder alone, {REMEDY}") from None
        found_here = [f.get("token") for f in frames if isinstance(f, dict)] if isinstance(frames, list) else []
        here = {token for token in found_here if isinstance(token, str)}
        if here & left:
            found[path.stem] = here & left
            left -= here
            if not left:
                break
    return found


def _not_twice(name: str, logs: Sequence[str], wanted: frozenset[str], folders: dict[str, list[Path]]) -> str:
    """``name``, whose ``logs`` hold all of ``wanted``, unless another folder has equally named logs with them, too."""
    for other, paths in folders.items():
        same = [path for path in paths if path.stem in logs]
        if other != name and len(same) == len(logs) and not wanted.difference(*_search(same, wanted).values()):
            raise LogFolderError(f"all of its {len(wanted)} scenes are in {name} and in {other}; {REMEDY}")
    return name


def _only(counts: dict[str, int], what: str, wanted: int, folders: Collection[str]) -> str:
    """The one folder of ``counts``, which says how many of ``wanted`` logs or scenes are in which."""
    if len(counts) == 1:
        return next(iter(counts))
    if not counts:
        raise LogFolderError(
            f"none of {what} ({wanted}) is in any folder below {LOGS}/ ({_listed(folders)}); get the logs, or {REMEDY}"
        )
    parts = ", ".join(f"{count} in {name}" for name, count in sorted(counts.items()))
    raise LogFolderError(f"{what} ({wanted}) lie in several folders: {parts}; {REMEDY}")


def _listed(folders: Collection[str]) -> str:
    return ", ".join(sorted(folders)) or "there is none"
