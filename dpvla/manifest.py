"""Checksums of a folder's files, written last: what is missing, of another origin or damaged is named when it is read.

They tell damage and mix-ups, not forgery: who can change a file can change its checksum.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypedDict

from dpvla.config import Range
from dpvla.files import FileError, inside, open_regular, write_json
from dpvla.schema import read_as

MANIFEST = "manifest.json"
_BLOCK = 2**20
_said: list[Path] = []


class _Entry(TypedDict):
    bytes: Annotated[int, Range(least=0)]
    sha256: str


class _Manifest(TypedDict):
    files: dict[str, _Entry]


class ManifestError(FileError):
    """A file is not the one that its folder's manifest lists; the message names it."""


def write_manifest(
    folder: Path | str, known: Mapping[str, str] | None = None, names: Iterable[str] | None = None
) -> Path:
    """List size and SHA-256 of files below ``folder``; the last thing that is written there.

    Args:
        known: SHA-256 of files, by name relative to ``folder``, that need not be read for it.
        names: of the files to list, where others may lie beside them: what is listed of those already stays. All but
            hidden ones by default.
    """
    folder, known = Path(folder), known or {}
    files: dict[str, _Entry] = {}
    if names is None:
        below = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        names = [path.as_posix() for path in below if not any(part.startswith(".") for part in path.parts)]
    elif (folder / MANIFEST).exists():
        with suppress(FileError):  # what is not to be read now could not be read before
            files = read_manifest(folder)
    names = [name for name in names if name != MANIFEST]
    found = dict(known) | _hashes({name: folder / name for name in names if name not in known})
    for name in names:
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": found[name]}
    return write_json(folder / MANIFEST, {"files": dict(sorted(files.items()))})


def read_manifest(folder: Path | str) -> dict[str, _Entry]:
    """What a folder's manifest lists; FileError where it is damaged."""
    return read_as(Path(folder) / MANIFEST, _Manifest)["files"]


def renew_manifests(folder: Path | str, parts: Iterable[str] = ()) -> list[Path]:
    """Write the manifest of ``folder`` anew, after a change on purpose.

    Args:
        parts: folders in it that have one of their own, which is written before, where they are there.
    """
    inner = (Path(folder) / part for part in parts)
    return [write_manifest(path) for path in (*inner, Path(folder)) if path.is_dir()]


def require_manifest(
    folder: Path | str, expected: bool, names: Iterable[str] | None = None, but: str | None = None
) -> None:
    """``check_manifest``, and where there is none, say so once a process on stderr.

    Raises ManifestError also where there is none, but is ``expected``: a file beside it says so.
    """
    folder = Path(folder)
    if check_manifest(folder, names, but):
        return
    if expected:
        raise ManifestError(f"{folder / MANIFEST} is missing, with the checksums of the files there{_remedy(folder)}")
    if os.environ.get("RANK", "0") == "0" and not _said:
        _said.append(folder)
        print(f"{folder} is of an earlier version, without checksums: damage may go unnoticed", file=sys.stderr)


def check_manifest(folder: Path | str, names: Iterable[str] | None = None, but: str | None = None) -> bool:
    """Compare ``folder`` with its manifest; False where it has none, as folders of earlier versions.

    Files that the manifest does not list are let be, as nothing reads them.

    Args:
        names: the files that are going to be read, relative to ``folder``; all that the manifest lists by default.
        but: a folder inside of which only its own manifest is compared: what that lists has been already.

    Raises:
        ManifestError: one is missing, not listed, of another size, or has another checksum.
        FileError: the manifest itself is damaged.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        return False
    listed, whole = read_manifest(folder), {}
    for name in listed if names is None else names:
        if but is not None and name.startswith(f"{but}/") and name != f"{but}/{MANIFEST}":
            continue
        file = inside(folder, name, follow=True)  # a hub's cache is made of links
        if (entry := listed.get(name)) is None:
            raise ManifestError(f"{file} is of another origin: {MANIFEST} does not list it{_remedy(folder)}")
        try:
            with open_regular(file) as opened:
                size = opened.seek(0, 2)
        except FileNotFoundError:
            raise ManifestError(f"{file} is missing, {MANIFEST} lists it{_remedy(folder)}") from None
        if size != entry["bytes"]:
            reason = f"it has {size} bytes, {MANIFEST} lists {entry['bytes']}"
            raise ManifestError(f"{file} is damaged, {reason}{_remedy(folder)}")
        whole[name] = file
    for name, found in _hashes(whole).items():
        if found != listed[name]["sha256"]:
            reason = f"or of another origin: {MANIFEST} lists another checksum"
            raise ManifestError(f"{whole[name]} is damaged, {reason}{_remedy(folder)}")
    return True


def _remedy(folder: Path) -> str:
    return f"; use another copy, or, after a change on purpose, run tools/doctor.py --write-manifest {folder}"


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of files, several at a time: one core does some 1 GB/s."""
    with ThreadPoolExecutor(8) as readers:
        return dict(zip(files, readers.map(sha256_of, files.values())))


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a regular file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
