"""Official metric caches -> the packed cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpvla.files import one_writer
from dpvla.manifest import sha256_of
from dpvla.parallel import Workers
from navsim_bridge.metric_cache import cache as packed
from navsim_bridge.metric_cache.jobs import log_entry, run_log_jobs
from navsim_bridge.metric_cache.official import REFERENCE, OfficialCache, OfficialCacheError, read_official_cache
from navsim_bridge.metric_cache.store import SUFFIX
from navsim_bridge.metrics.scene_rules import NAVSIM_V1
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.coverage import Coverage

READER = 1
"""Raise when the reader's results change: scenes read by another one are converted again."""


def convert_official_cache(
    source: Path | str, out: Path | str, workers: Workers = 1, progress: bool = True
) -> packed.MetricCache:
    """Write the scenes of an official metric cache (navsim v1.1) to ``out`` in the packed form.

    Logs that are already there and unchanged are kept. Bad files do not stop the rest: the good scenes are written
    and can be used, and then the error is raised.

    Raises:
        FileNotFoundError: ``source`` holds no cache file.
        OfficialCacheError: files that cannot be read; names the first with its token, and how many there are.
        CacheError: ``out`` holds the cache of something else.
    """
    official, out = OfficialCache(source), Path(out)
    name = f"official cache {official.folder.resolve().name}"
    with one_writer(out):
        return _convert(official, out, name, workers, progress)


def _convert(official: OfficialCache, out: Path, name: str, workers: Workers, progress: bool) -> packed.MetricCache:
    packed.refuse_other_split(out, name, "", NAVSIM_V1.name)
    jobs = [
        _OfficialJob(tuple(official.files[token] for token in tokens), out / f"{log}{SUFFIX}")
        for log, tokens in official.by_log().items()
    ]
    logs = run_log_jobs(jobs, workers, name, progress, (__name__,), reads=[official.folder])
    problems = [problem for entry in logs.values() for problem in entry.pop("problems")]
    for log in [log for log, entry in logs.items() if not entry["tokens"]]:
        (out / logs.pop(log)["file"]).unlink()
    if not logs:
        raise OfficialCacheError(f"none of {len(official)} scenes could be converted; first: {problems[0]}")
    about: dict[str, Any] = {"metric": NAVSIM_V1.name, "split": name, "data_split": "", "reference": REFERENCE}
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

    @property
    def num_scenes(self) -> int:
        return len(self.files)

    def run(self) -> dict[str, Any]:
        problems: list[str] = []

        def read() -> list[MetricScene]:
            scenes = []
            for file in self.files:
                try:
                    scenes.append(read_official_cache(file))
                except OfficialCacheError as error:
                    problems.append(str(error))
            return scenes

        source = packed.hash_of([READER, [(file.parent.name, sha256_of(file)) for file in self.files]])
        return {**log_entry(self.out, source, len(self.files), read), "problems": problems}
