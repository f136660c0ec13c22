"""The index of a metric cache: a JSON file that carries the hash of its own text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dpvla.files import write_text
from navsim_bridge.metric_cache.container import CacheError

INDEX = "index.json"
_KEY, _EMPTY = "sha256_of_this_file", "0" * 64
"""The hash is that of the text with this value in its place."""


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write ``index`` atomically, with its hash."""
    text = json.dumps({_KEY: _EMPTY, **index}, indent=2, allow_nan=False) + "\n"
    write_text(folder / INDEX, text.replace(_EMPTY, _hash(text), 1))


def read_index(folder: Path, version: tuple[int, int]) -> dict[str, Any]:
    """The index of a cache of ``version`` (format, builder).

    Raises:
        CacheError: there is none, it is of another version, or a byte of it has changed.
    """
    path = folder / INDEX
    if not path.is_file():
        shards = sum(1 for _ in folder.glob(f"shard-*-of-*/{INDEX}"))
        run = "run tools/cache_metrics.py"
        run += f" --merge {folder} --out {folder} to join its {shards} shards" if shards else ""
        raise CacheError(f"{folder} holds no finished metric cache (no {INDEX}); {run}")
    again = f"run tools/cache_metrics.py again with --out {folder}"
    try:
        text = path.read_bytes().decode()
        index: dict[str, Any] = json.loads(text)
        found = index["format"], index["builder"]
        if found == version:
            stored = index.pop(_KEY)
            if _hash(text.replace(stored, _EMPTY, 1)) != stored:
                raise CacheError(f"{path} is damaged (its checksum differs); {again}")
    except CacheError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from error
    if found != version:
        again = f"run tools/cache_metrics.py --split {index.get('split')} --out {folder} again"
        raise CacheError(
            f"{path}: format {found[0]} of builder {found[1]}, expected {version[0]} of {version[1]}; {again}"
        )
    return index


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
