"""ExORL's episode files: where they lie, what they hold, and their checks.

``<folder>/<domain>/<collector>/buffer/episode_<index>_<length>.npz`` with ``length + 1`` rows: row 0 is the start
(zero action, reward 0, discount 1); row i holds action i, what it led to, and the physics state then.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import write_atomically

DEFAULT_FOLDER = Path("data/exorl")
URL = "https://dl.fbaipublicfiles.com/exorl"
_NAME = re.compile(r".*_(?P<index>\d+)_(?P<length>\d+)\.npz")


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
    return episodes


def read_episode(episode: EpisodeFile, sizes: Sizes, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays of one file, checked against the environment's sizes.

    Raises:
        ValueError: corrupt file, missing array, wrong number of rows or wrong sizes; names the file.
    """
    path = episode.path
    try:
        with np.load(path, allow_pickle=False) as file:
            lacking = [key for key in keys if key not in file.files]
            if lacking:
                raise ValueError(f"it lacks {', '.join(lacking)}")
            arrays = {key: file[key] for key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(_unreadable(path, str(error))) from error
    expected = {"observation": sizes.observation, "action": sizes.action, "physics": sizes.physics}
    for key, rows in arrays.items():
        if len(rows) != episode.length + 1:
            raise ValueError(f"{path}: {key} has {len(rows)} rows, its name promises {episode.length} + 1")
        if key in expected and rows.shape[1:] != (expected[key],):
            raise ValueError(
                f"{path}: {key} rows have shape {rows.shape[1:]}, the environment of this domain gives "
                f"({expected[key]},): another domain's file, or data recorded from another version of the model"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{path}: {key} holds NaN or infinity")
    return arrays


def write_episode(buffer: Path, index: int, arrays: dict[str, NDArray[Any]]) -> Path:
    """Write one episode in the official layout."""
    path = buffer / f"episode_{index:06d}_{len(arrays['action']) - 1}.npz"
    return write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def fingerprint(episodes: list[EpisodeFile], arrays: Sequence[str] = ("physics",)) -> str:
    """Hash over names and the checksums of ``arrays`` (rewards follow from physics) in the files; reads none of them.

    Raises:
        ValueError: a file is corrupt; names it.
    """
    digest = hashlib.sha256()
    for episode in episodes:
        try:
            with zipfile.ZipFile(episode.path) as archive:
                found = {item.filename.removesuffix(".npy"): item.CRC for item in archive.infolist()}
        except zipfile.BadZipFile as error:
            raise ValueError(_unreadable(episode.path, str(error))) from error
        if lacking := [name for name in arrays if name not in found]:
            raise ValueError(_unreadable(episode.path, f"it lacks {', '.join(lacking)}"))
        digest.update(" ".join([episode.path.name, *(f"{found[name]:08x}" for name in arrays)]).encode() + b"\n")
    return digest.hexdigest()


def _unreadable(path: Path, why: str) -> str:
    return f"{path} is not a readable ExORL episode ({why}); delete it or get it again"
