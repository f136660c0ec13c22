"""The index of a metric cache: a JSON file that carries the hash of its own text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

from dpvla.config import Count, Range, Whole
from dpvla.files import FileError, inside, read_json, read_text, short, write_text
from dpvla.schema import checked
from navsim_bridge.metric_cache.container import CacheError
from navsim_bridge.metric_cache.store import SUFFIX

INDEX = "index.json"
_KEY, _EMPTY = "sha256_of_this_file", "0" * 64
"""The hash is that of the text with this value in its place."""


class _LogSource(TypedDict, total=False):
    """Both, or neither in caches that were converted."""

    stamp: tuple[int, int]  # size and modification time [ns]
    source_sha256: str


class _SyntheticSources(TypedDict, total=False):
    """In logs of splits with a second stage: its files, with size, modification time [ns] and SHA-256."""

    synthetic: dict[str, tuple[int, int, str]]


class _Log(_LogSource, _SyntheticSources):
    file: str  # the log's name with SUFFIX
    crc32: Annotated[int, Range(least=0)]
    source: str
    tokens: list[str]


class _Map(TypedDict):
    file: str  # below the root of the maps
    stamp: tuple[int, int]
    source_sha256: str


class _SharedSelection(TypedDict, total=False):
    """What shards of older versions lack."""

    max_scenes: Whole | None
    scenes: Whole | None
    absent: Whole
    missing_logs: Whole


class _Shard(_SharedSelection):
    index: Count
    count: Count
    selection: str
    tokens: Whole | None
    allow_missing: bool


class _About(TypedDict, total=False):
    metric: str
    reference: str
    scenes_in_split: Whole | None
    whole_split: bool
    left_out: dict[str, Count]
    unreadable: Whole
    odd: dict[str, Count]
    shard: _Shard
    synthetic_folder: str  # where the files of the second stage lie, below the data root unless it is absolute


class _Index(_About):
    format: int
    builder: int
    split: str
    data_split: str
    num_scenes: Whole
    centerlines: dict[str, Whole]
    data_fingerprint: str
    fingerprint: str
    maps: dict[str, _Map]
    logs: dict[str, _Log]


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write ``index`` atomically, with its hash."""
    text = json.dumps({_KEY: _EMPTY, **index}, indent=2, allow_nan=False) + "\n"
    write_text(folder / INDEX, text.replace(_EMPTY, _hash(text), 1))


def read_index(folder: Path, version: tuple[int, int]) -> dict[str, Any]:
    """The index of a cache of ``version`` (format, builder).

    Raises:
        CacheError: there is none, it is of another version, a byte of it has changed, or it is not as it is written
            here; names the key.
    """
    path = folder / INDEX
    if not path.exists():
        shards = sum(1 for _ in folder.glob(f"shard-*-of-*/{INDEX}"))
        run = "run tools/cache_metrics.py"
        run += f" --merge {folder} --out {folder} to join its {shards} shards" if shards else ""
        raise CacheError(f"{folder} holds no finished metric cache (no {INDEX}); {run}")
    again = f"run tools/cache_metrics.py again with --out {folder}"
    try:
        text, index = read_text(path), read_json(path)
    except FileError as error:
        raise CacheError(f"{path} is damaged ({error}); {again}") from None
    found = index.get("format"), index.get("builder")
    if not all(type(number) is int for number in found):
        raise CacheError(f"{path} is damaged (format or builder is no number); {again}")
    if found != version:
        again = f"run tools/cache_metrics.py --split {index.get('split')} --out {folder} again"
        raise CacheError(
            f"{path}: format {found[0]} of builder {found[1]}, expected {version[0]} of {version[1]}; {again}"
        )
    stored = index.pop(_KEY, None)
    if not isinstance(stored, str) or not stored or _hash(text.replace(stored, _EMPTY, 1)) != stored:
        raise CacheError(f"{path} is damaged (its checksum differs); {again}")
    try:
        checked(index, _Index, str(path))
        _require_consistent(index, path)
    except FileError as error:
        raise CacheError(f"{error}; {again}") from None
    return index


def _require_consistent(index: dict[str, Any], path: Path) -> None:
    """What the types do not say. Raises FileError."""
    logs: dict[str, _Log] = index["logs"]
    for name, entry in logs.items():
        if entry["file"] != f"{name}{SUFFIX}" or "/" in name:
            raise FileError(f"{path}: logs.{name:.80}.file: {short(entry['file'])} is not the log's name and {SUFFIX}")
        if ("stamp" in entry) != ("source_sha256" in entry):
            raise FileError(f"{path}: logs.{name:.80}: stamp and source_sha256 belong together, one of them is missing")
    tokens = [token for entry in logs.values() for token in entry["tokens"]]
    if index["num_scenes"] != len(tokens):
        raise FileError(f"{path}: num_scenes: {index['num_scenes']}, its logs have {len(tokens)}")
    if len(set(tokens)) < len(tokens):
        raise FileError(f"{path}: logs: a token stands twice")


def scene_path(folder: Path, entry: dict[str, Any]) -> Path:
    """The file of a log. Raises CacheError where it is a link that leads out of ``folder``."""
    try:
        return inside(folder, entry["file"])
    except FileError as error:
        raise CacheError(str(error)) from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
