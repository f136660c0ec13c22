"""What marks data that was made here, and keeps data of different makings apart."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypedDict

from dpvla.config import Range
from dpvla.files import LOCK, FileError, one_writer, short
from dpvla.schema import read_as

ORIGIN = "locally generated"


class Counts(TypedDict):
    """Episodes or rows of each part of a data set."""

    train: Annotated[int, Range(least=1)]
    val: Annotated[int, Range(least=1)]


class _MadeHere(TypedDict, total=False):
    generator: int
    env: str
    seed: int
    rows_per_episode: int
    episodes: Counts
    rows: Counts
    packages: dict[str, str]


class Sidecar(_MadeHere):
    """What stands beside OGBench files, in ``<stem>.json``: where they are from, and how they were made if here."""

    origin: str
    files: dict[str, str]  # fingerprints by name


def read_sidecar(path: Path) -> Sidecar | None:
    """None where there is none; FileError names a key that is missing or wrong."""
    try:
        return read_as(path, Sidecar)
    except FileNotFoundError:
        return None


def refuse_replaced(sidecar: Path, known: Sidecar, found: Mapping[str, str]) -> None:
    """Raise FileError where a file beside ``sidecar``, by its fingerprint, is not the one it describes."""
    for name, fingerprint in found.items():
        if known["files"].get(name) != fingerprint:
            raise FileError(
                f"{sidecar.parent / name} is not the file that {sidecar} describes; delete the sidecar if you replaced "
                "the file on purpose, or else the file, and get or make it again"
            )


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A folder that one process at a time makes something in, and that is gone when it is done without an error."""
    try:
        with one_writer(folder):
            yield folder
            for path in folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        with suppress(OSError):  # it holds something, or somebody else has begun
            folder.rmdir()


class OtherDataError(ValueError):
    """The folder holds data that this run would have to overwrite or mix with."""


def refuse_other(identity: Mapping[str, Any], found: Mapping[str, Any], where: Path) -> None:
    """Raise OtherDataError naming the first setting in which the data that ``where`` describes is not ``identity``."""
    for key, mine in identity.items():
        if found.get(key) != mine:
            raise OtherDataError(
                f"{where} belongs to data with {key} {short(found.get(key), 80)}, this run has {mine!r}: choose "
                "another --out or delete that data"
            )
