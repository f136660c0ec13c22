"""Official metric caches -> the packed cache."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpvla.files import one_writer
from dpvla.manifest import sha256_of
from dpvla.parallel import Workers
from navsim_bridge.files.frames import MAP_LOCATIONS
from navsim_bridge.files.map_tables import MapError
from navsim_bridge.files.maps import map_path
from navsim_bridge.files.roots import MAP_INDEX
from navsim_bridge.metric_cache import cache as packed
from navsim_bridge.metric_cache.jobs import log_entry, run_log_jobs
from navsim_bridge.metric_cache.official import (
    VERSION_1,
    VERSION_2,
    OfficialCache,
    OfficialCacheError,
    read_official_cache,
    written_by,
)
from navsim_bridge.metric_cache.official_parts import REFERENCE
from navsim_bridge.metric_cache.store import SUFFIX
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, NAVSIM_V2
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.coverage import Coverage

READERS = {VERSION_1: 1, VERSION_2: 1}
"""Raise when a reader's results change: scenes read by another one are converted again."""
RULES = {VERSION_1: NAVSIM_V1, VERSION_2: NAVSIM_V2}


def convert_official_cache(
    source: Path | str,
    out: Path | str,
    workers: Workers = 1,
    progress: bool = True,
    maps_root: Path | str | None = None,
) -> packed.MetricCache:
    """Write the scenes of an official metric cache (navsim v1.1 or v2) to ``out`` in the packed form.

    Logs that are already there and unchanged are kept. Bad files do not stop the rest: the good scenes are written
    and can be used, and then the error is raised.

    Args:
        source: folder that the devkit's metric caching wrote.
        out: folder of the cache.
        workers: processes, or an executor.
        progress: show a progress bar.
        maps_root: folder of the maps, from which vehicles of v2 have their lanes; by default what the files say.

    Raises:
        FileNotFoundError: ``source`` holds no cache file, or the maps that caches of v2 need are not there.
        OfficialCacheError: files that cannot be read; names the first with its token, and how many there are.
        CacheError: ``out`` holds the cache of something else.
    """
    official, out = OfficialCache(source), Path(out)
    name = f"official cache {official.folder.resolve().name}"
    with one_writer(out):
        return _convert(official, out, name, workers, progress, Path(maps_root) if maps_root else None)


def _convert(
    official: OfficialCache, out: Path, name: str, workers: Workers, progress: bool, maps_root: Path | None
) -> packed.MetricCache:
    version, map_root = next(filter(None, map(written_by, official.files.values())), (VERSION_1, None))
    maps_root = maps_root or (Path(map_root) if map_root else None)
    if version == VERSION_2 and (maps_root is None or not (maps_root / MAP_INDEX).is_file()):
        raise FileNotFoundError(
            f"{official.folder}: caches of navsim {version} need the maps, and there is no {maps_root}/{MAP_INDEX}: "
            "say with --maps-root where they are"
        )
    rules = RULES[version].name
    packed.refuse_other_split(out, name, "", rules)
    jobs = [
        _OfficialJob(tuple(official.files[token] for token in tokens), out / f"{log}{SUFFIX}", version, maps_root)
        for log, tokens in official.by_log().items()
    ]
    logs = run_log_jobs(jobs, workers, name, progress, (__name__,), reads=[official.folder])
    problems = [problem for entry in logs.values() for problem in entry.pop("problems")]
    for log in [log for log, entry in logs.items() if not entry["tokens"]]:
        (out / logs.pop(log)["file"]).unlink()
    if not logs:
        raise OfficialCacheError(f"none of {len(official)} scenes could be converted; first: {problems[0]}")
    about: dict[str, Any] = {"metric": rules, "split": name, "data_split": "", "reference": REFERENCE}
    about |= {"unreadable": len(problems)}
    about |= Coverage.whole(len(official)).without("failed", len(problems)).as_dict()
    packed.finish(out, logs, about, maps={})
    if problems:
        raise OfficialCacheError(
            f"{len(problems)} of {len(official)} scenes could not be converted; first: {problems[0]} (the other "
            f"{len(official) - len(problems)} are in {out})"
        )
    return packed.MetricCache(out)


@dataclass(frozen=True)
class _OfficialJob:
    files: tuple[Path, ...]  # one log's
    out: Path
    version: str
    maps_root: Path | None  # of `VERSION_2`

    @property
    def num_scenes(self) -> int:
        return len(self.files)

    def run(self) -> dict[str, Any]:
        problems: list[str] = []

        def read() -> list[MetricScene]:
            scenes = []
            for file in self.files:
                try:
                    scenes.append(read_official_cache(file, self.version, self.maps_root))
                except OfficialCacheError as error:
                    problems.append(str(error))
            return scenes

        parts = [READERS[self.version], [(file.parent.name, sha256_of(file)) for file in self.files]]
        if self.maps_root is not None and self.version == VERSION_2:
            parts += [self.version, maps_hash(self.maps_root)]
        source = packed.hash_of(parts)
        return {**log_entry(self.out, source, len(self.files), read), "problems": problems}


def maps_hash(root: Path) -> str:
    """Hash of the maps below ``root``."""
    hashes = {}
    for location in MAP_LOCATIONS:
        with suppress(FileNotFoundError, MapError):  # a scene that needs it says so
            hashes[location] = packed.map_hash(map_path(root, location))
    return packed.hash_of(hashes)
