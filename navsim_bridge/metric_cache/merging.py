"""One metric cache from the shards that several machines made, equal to the one made in one go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dpvla.files import one_writer, open_regular, write_atomically
from navsim_bridge.metric_cache.cache import BUILDER, MetricCache, finish, refuse_loss, refuse_other_split
from navsim_bridge.metric_cache.container import CacheError
from navsim_bridge.metric_cache.index import INDEX, read_index, scene_path
from navsim_bridge.metric_cache.jobs import entry_of
from navsim_bridge.metric_cache.store import FORMAT, SceneFile
from navsim_bridge.splits.coverage import Coverage, coverage_of
from navsim_bridge.splits.shard import Shard

MOST_NAMED = 20
"""Missing shards that are listed."""
_SAME = ("metric", "split", "data_split", "reference")
"""What the shards of one cache have in common, in the order of the index."""
_SOURCES = ("stamp", "source_sha256", "synthetic")
"""What a log's entry says of the files that it was made from."""


def merge_caches(folders: Sequence[Path | str], out: Path | str, allow_missing: bool = False) -> MetricCache:
    """Join the shards that `build_metric_cache` wrote into the cache that it would have written alone.

    Scene files are linked where the file system can, else copied; the shards stay as they are and can be deleted.

    Args:
        folders: shards, or folders that hold shards.
        out: folder of the cache; may be the one that holds the shards.
        allow_missing: merge what there is when shards, or scenes of the split, are missing.

    Raises:
        FileNotFoundError: no shard there.
        CacheError: a shard is missing, unfinished, damaged or of another selection, maps differ, or scenes of the
            split are in no log.
    """
    out = Path(out)
    shards = _read(_find(folders))
    with one_writer(out):
        return _merge(shards, out, allow_missing)


def _merge(shards: dict[int, tuple[Path, dict[str, Any]]], out: Path, allow_missing: bool) -> MetricCache:
    first = next(iter(shards.values()))[1]
    _check(shards, allow_missing)
    refuse_other_split(out, first["split"], first["data_split"], first["metric"])
    logs: dict[str, dict[str, Any]] = {}
    maps: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for folder, index in shards.values():
        for name, entry in index["maps"].items():
            if maps.setdefault(name, entry)["source_sha256"] != entry["source_sha256"]:
                raise CacheError(f"{folder} was made with another map of {name} than the shards before it")
        for name, entry in index["logs"].items():
            if name in logs:
                raise CacheError(f"log {name} is in {folder} and in a shard before it; make the shards again")
            file = SceneFile(scene_path(folder, entry), entry["crc32"])  # checks every byte
            if file.tokens != entry["tokens"]:
                raise CacheError(f"{file.path} holds other scenes than {folder / INDEX} says; make the shard again")
            logs[name] = entry_of(file) | {key: entry[key] for key in _SOURCES if key in entry}
            sources[name] = file.path
    _refuse_repeated(logs)
    part = _coverage(shards)
    refuse_loss(out, [token for entry in logs.values() for token in entry["tokens"]], part)
    for source in sources.values():
        _link(source, out / source.name)
    about = {key: first[key] for key in (*_SAME, "synthetic_folder") if key in first} | part.as_dict()
    finish(out, {name: logs[name] for name in sorted(logs)}, about, {name: maps[name] for name in sorted(maps)})
    return MetricCache(out)


def _find(folders: Sequence[Path | str]) -> list[Path]:
    """Folders of shards among and in ``folders``."""
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = [folder] if Shard.of_folder(folder.name) else sorted(folder.glob("shard-*-of-*"))
        inside = [path for path in inside if path.is_dir() and Shard.of_folder(path.name)]
        if not inside:
            raise FileNotFoundError(
                f"no shard of a metric cache in {folder}; tools/cache_metrics.py --shard writes them as shard-K-of-N"
            )
        found += inside
    return found


def _read(paths: Sequence[Path]) -> dict[int, tuple[Path, dict[str, Any]]]:
    """Folder and index of every shard by place, ascending."""
    shards: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in paths:
        index = read_index(path, (FORMAT, BUILDER))
        about = index.get("shard")
        if about is None:
            raise CacheError(f"{path} is a whole metric cache, not a shard")
        named = Shard.of_folder(path.name)
        if named is None or (named.index, named.count) != (about["index"], about["count"]):
            raise CacheError(f"{path} holds shard {about['index']} of {about['count']}; give it the name that it had")
        if any(key not in index for key in _SAME) or any("stamp" not in entry for entry in index["logs"].values()):
            raise CacheError(f"{path / INDEX} does not say what it was made from; make the shard again")
        if about["index"] in shards:
            raise CacheError(f"shard {about['index']} is there twice: {shards[about['index']][0]} and {path}")
        shards[about["index"]] = path, index
    return dict(sorted(shards.items()))


def _coverage(shards: dict[int, tuple[Path, dict[str, Any]]]) -> Coverage:
    """How much of the split the shards are together."""
    about = next(iter(shards.values()))[1]["shard"]
    used, missing = sum(index["num_scenes"] for _, index in shards.values()), about["count"] - len(shards)
    found, absent, tokens = about["scenes"], about["absent"], about["tokens"]
    if found is None and not missing:  # no shard knew the others' scenes
        found, absent = used, max(0, (tokens or 0) - used)
    return coverage_of(used, found, tokens, about["max_scenes"], absent, about["missing_logs"], missing)


def _check(shards: dict[int, tuple[Path, dict[str, Any]]], allow_missing: bool) -> None:
    """That the shards belong together and are all there."""
    (first_path, first), *others = shards.values()
    about = first["shard"]
    for path, index in shards.values():
        if not {"scenes", "absent", "max_scenes", "missing_logs"} <= set(index["shard"]):
            raise CacheError(
                f"{path} was made by an older version, which did not note all that is now said of a cache; make it "
                "again with the same command: scenes that are there are kept"
            )
    for path, index in others:
        for key in _SAME:
            if index[key] != first[key]:
                raise CacheError(f"{path} is of {key} {index[key]}, {first_path} of {first[key]}")
        for key, what in (("count", "count of shards"), ("selection", "selection of logs and scenes")):
            if index["shard"][key] != about[key]:
                raise CacheError(f"{path} was made with another {what} than {first_path}; make its shards again")
    missing = about["count"] - len(shards)
    if missing and not allow_missing:
        named = islice((str(number) for number in range(1, about["count"] + 1) if number not in shards), MOST_NAMED)
        raise CacheError(
            f"{missing} of {about['count']} shards are missing: {', '.join(named)}. Make or copy them, or ask "
            "for the rest with --allow-missing."
        )
    part = _coverage(shards)
    if not part.used:
        where = " that are there" if missing else ""
        raise CacheError(f"split {first['split']}: the shards{where} hold no scene; there is nothing to merge")
    if "missing_scenes" in part.left_out and not (allow_missing or about["allow_missing"]):
        raise CacheError(
            f"split {first['split']}: {part} are in the shards; the others are in no log (or no window of the split "
            "starts there). Get the missing logs, or ask for the rest with --allow-missing."
        )


def _refuse_repeated(logs: dict[str, dict[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for name, entry in logs.items():
        for token in entry["tokens"]:
            if seen.setdefault(token, name) != name:
                raise CacheError(f"token {token} names two scenes, in {seen[token]} and {name}")


def _link(source: Path, target: Path) -> None:
    """Put a file's content at ``target``, at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.merging")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system, or one without links
        with open_regular(source) as content:
            write_atomically(target, lambda file: shutil.copyfileobj(content, file))
        return
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # two names of one file are not replaced
