"""ExORL's episode files: where they lie, what they hold, and their checks.

``<folder>/<domain>/<collector>/buffer/episode_<index>_<length>.npz`` with ``length + 1`` rows: row 0 is the start
(zero action, reward 0, discount 1); row i holds action i, what it led to, and the physics state then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import FileError, write_atomically
from dpvla.state_based.data.npz import (
    ACTION_TOLERANCE,
    STATE_LIMIT,
    Column,
    Npz,
    check_columns,
    open_npz,
    read_column,
)

DEFAULT_FOLDER = Path("data/exorl")
URL = "https://dl.fbaipublicfiles.com/exorl"
USED = ("observation", "action", "physics")
"""Arrays that an episode must have; the others are checked where there are some."""
_NAME = re.compile(r".*_(?P<index>\d{1,12})_(?P<length>\d{1,12})\.npz")


@dataclass(frozen=True)
class EpisodeFile:
    """One file of a buffer, as its name describes it."""

    path: Path
    index: int
    length: int  # transitions


@dataclass(frozen=True)
class Sizes:
    """Row sizes that an environment gives and its files must have."""

    observation: int
    action: int
    physics: int


def buffer_folder(folder: Path | str, domain: str, collector: str) -> Path:
    """Where the episodes of a domain and a collector lie."""
    return Path(folder) / domain / collector / "buffer"


def list_episodes(folder: Path | str, domain: str, collector: str) -> list[EpisodeFile]:
    """The episodes of a buffer in the order of their names, which is also the official order.

    Raises:
        FileNotFoundError: there are none; says how to get or make them.
    """
    buffer = buffer_folder(folder, domain, collector)
    found = sorted(path for path in buffer.glob("*.npz") if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"no episode_<index>_<length>.npz in {buffer}. Unpack the official {URL}/{domain}/{collector}.zip into "
            f"{Path(folder)}, or make a small set of the same layout with `python tools/collect_exorl.py "
            f"--domain {domain} --out {Path(folder)}`"
        )
    episodes = []
    for path in found:
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: expected a name like episode_000000_1000.npz (index, transitions)")
        episodes.append(EpisodeFile(path, int(match["index"]), int(match["length"])))
        if episodes[-1].length == 0:
            raise FileError(f"{path}: an episode without a transition, by its name; delete it or get it again")
    return episodes


def check_episode(file: Npz, episode: EpisodeFile, sizes: Sizes) -> None:
    """Raise FileError where a file lacks an array, or by its arrays' headers is no episode of this environment."""
    if lacking := [key for key in USED if key not in file.arrays]:
        raise FileError(f"{episode.path} lacks {', '.join(lacking)}: not ExORL's format")
    check_columns(file, _columns(sizes), episode.length + 1)


def read_episode(
    episode: EpisodeFile, sizes: Sizes, keys: Iterable[str], also: Iterable[str] = ()
) -> dict[str, NDArray[Any]]:
    """Arrays of one file, checked against the environment's sizes.

    Args:
        also: arrays that are looked at where there are some, and not given.

    Raises:
        FileError: corrupt file, missing array, wrong number of rows, wrong sizes, or numbers that cannot be right;
            names the file.
    """
    columns = _columns(sizes)
    with open_npz(episode.path) as file:
        check_episode(file, episode, sizes)
        for key in file.arrays.keys() & {*also}:
            read_column(file, key, columns[key])
        return {key: read_column(file, key, columns[key]) for key in keys}


def _columns(sizes: Sizes) -> dict[str, Column]:
    return {
        "observation": Column((sizes.observation,), STATE_LIMIT),
        "action": Column((sizes.action,), ACTION_TOLERANCE),
        "physics": Column((sizes.physics,), STATE_LIMIT),
        "reward": Column((1,), STATE_LIMIT, or_shape=()),
        "discount": Column((1,), 1.0, or_shape=()),
    }


def write_episode(buffer: Path, index: int, arrays: dict[str, NDArray[Any]]) -> EpisodeFile:
    """Write one episode in the official layout."""
    length = len(arrays["action"]) - 1
    path = buffer / f"episode_{index:06d}_{length}.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    return EpisodeFile(path, index, length)


Checksums = Mapping[str, str]
"""Of a file's arrays, by name."""


def look_at(episodes: Sequence[EpisodeFile], sizes: Sizes) -> list[Checksums]:
    """Check every file by its arrays' headers, without reading its numbers; raises as `read_episode`."""
    found: list[Checksums] = []
    for episode in episodes:
        with open_npz(episode.path) as file:
            check_episode(file, episode, sizes)
            found.append({name: header.checksum for name, header in file.arrays.items()})
    return found


def fingerprint(episodes: Sequence[EpisodeFile], found: Sequence[Checksums], arrays: Sequence[str]) -> str:
    """Hash over the files' names and what `look_at` found of ``arrays``."""
    digest = hashlib.sha256()
    for episode, checksums in zip(episodes, found, strict=True):
        digest.update(" ".join([episode.path.name, *(checksums[name] for name in arrays)]).encode() + b"\n")
    return digest.hexdigest()
