"""Checksums of a folder's files, written last: what is missing, of another origin or damaged is named when it is read.

They tell damage and mix-ups, not forgery: who can change a file can change its checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypedDict

from dpvla.config import Range
from dpvla.files import FileError, inside, open_regular, write_json
from dpvla.schema import read_as

MANIFEST = "manifest.json"
_BLOCK = 2**20


class _Entry(TypedDict):
    bytes: Annotated[int, Range(least=0)]
    sha256: str


class _Manifest(TypedDict):
    files: dict[str, _Entry]


class ManifestError(FileError):
    """A file is not the one that its folder's manifest lists; the message names it."""


def write_manifest(folder: Path | str, known: Mapping[str, str] | None = None) -> Path:
    """List size and SHA-256 of every file below ``folder``; the last thing that is written there.

    Args:
        known: SHA-256 of files, by name relative to ``folder``, that need not be read for it.
    """
    folder, known = Path(folder), known or {}
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            files[name] = {"bytes": path.stat().st_size, "sha256": known.get(name) or sha256_of(path)}
    return write_json(folder / MANIFEST, {"files": files})


def check_manifest(folder: Path | str, names: Iterable[str] | None = None) -> bool:
    """Compare ``folder`` with its manifest; False where it has none, as folders of earlier versions.

    Files that the manifest does not list are let be, as nothing reads them.

    Args:
        names: the files that are going to be read, relative to ``folder``; all that the manifest lists by default.

    Raises:
        ManifestError: one is missing, not listed, of another size, or has another checksum.
        FileError: the manifest itself is damaged.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        return False
    listed = read_as(path, _Manifest)["files"]
    for name in listed if names is None else names:
        if name not in listed:
            raise ManifestError(f"{folder / name} is not of {folder}: {path} does not list it")
        file, entry = inside(folder, name, follow=True), listed[name]  # a hub's cache is made of links
        try:
            with open_regular(file) as opened:
                size = opened.seek(0, 2)
        except FileNotFoundError:
            raise ManifestError(f"{file} is missing, {path} lists it; use another copy of {folder}") from None
        if size != entry["bytes"]:
            raise ManifestError(f"{file} is damaged: {size} bytes, {path} lists {entry['bytes']}; use another copy")
        if sha256_of(file) != entry["sha256"]:
            raise ManifestError(f"{file} is damaged, or of another {folder.name}: {path} lists another checksum")
    return True


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a regular file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
