"""The metric cache of a split: one file of scenes per log and an index, built in parallel and resumable."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpvla.files import write_json
from navsim_bridge.logs import log_path
from navsim_bridge.maps import open_map
from navsim_bridge.metric_cache.builder import REFERENCE, build_scenes
from navsim_bridge.metric_cache.store import FORMAT, CacheError, SceneFile, file_hash, stored_source, write_scenes
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.scene_filter import Split, load_split
from navsim_bridge.scenes import SceneRecord, by_log, process_context, select_scenes

INDEX = "index.json"
BUILDER = 1
"""Raise when the builder's results change: caches of another builder are made again."""
SCENES_PER_PROCESS = 1000
"""A process takes seconds to start and builds hundreds of scenes a second: fewer are not worth another one."""
METRIC = "PDMS v1 (navsim 1.1)"


class MetricCache:
    """Reads the metric scenes that `build_metric_cache` wrote.

    Log files are read whole and the last ones kept, up to ``keep_bytes``.
    """

    def __init__(self, path: Path | str, keep_bytes: int = 2 << 30) -> None:
        """Open the index; raises CacheError when ``path`` holds no whole cache of this format."""
        self.path = Path(path)
        index = self.path / INDEX
        if not index.is_file():
            raise CacheError(f"{self.path} holds no finished metric cache (no {INDEX}); run tools/cache_metrics.py")
        try:
            self.index: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
            if (self.index["format"], self.index["builder"]) != (FORMAT, BUILDER):
                raise CacheError(
                    f"{index}: format {self.index['format']} of builder {self.index['builder']}, expected "
                    f"{FORMAT} of {BUILDER}; delete {self.path} and make the cache again"
                )
            self._place = {
                token: (entry["file"], row)
                for entry in self.index["logs"].values()
                for row, token in enumerate(entry["tokens"])
            }
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(
                f"{index} is damaged ({type(error).__name__}: {error}); delete it and make it again"
            ) from error
        self._keep_bytes = keep_bytes
        self._open: OrderedDict[str, SceneFile] = OrderedDict()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of every scene, by log and time."""
        return tuple(self._place)

    @property
    def fingerprint(self) -> str:
        """Hash over the content of all files."""
        return str(self.index["fingerprint"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What the cache was made from and how: split, metric, reference plan, centrelines, hashes."""
        return {key: value for key, value in self.index.items() if key != "logs"}

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, token: object) -> bool:
        return token in self._place

    def require(self, tokens: Sequence[str]) -> None:
        """Raise CacheError naming the first of ``tokens`` that the cache does not hold, with their count."""
        missing = [token for token in tokens if token not in self._place]
        if missing:
            raise CacheError(
                f"{self.path}: {len(missing)} of {len(tokens)} scenes are not in the metric cache (split "
                f"{self.index.get('split')}), first {missing[0]}; make a cache of this split with "
                "tools/cache_metrics.py"
            )

    def load(self, tokens: Sequence[str]) -> list[MetricScene]:
        """The scenes of ``tokens``, in their order; a missing token or damaged file raises CacheError naming it."""
        self.require(tokens)
        scenes: dict[str, MetricScene] = {}
        for token in sorted(set(tokens), key=self._place.__getitem__):  # file by file
            file, row = self._place[token]
            scene = self._file(file).scene(row)
            if scene.token != token:
                raise CacheError(f"{self.path / file} holds {scene.token} where {INDEX} says {token}; make it again")
            scenes[token] = scene
        return [scenes[token] for token in tokens]

    def _file(self, name: str) -> SceneFile:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        opened = self._open[name] = SceneFile(self.path / name)
        while len(self._open) > 1 and sum(f.num_bytes for f in self._open.values()) > self._keep_bytes:
            self._open.popitem(last=False)
        return opened


def build_metric_cache(
    data_root: Path | str,
    maps_root: Path | str,
    split: Split | str,
    out: Path | str,
    workers: int = 1,
    allow_missing: bool = False,
    progress: bool = True,
) -> MetricCache:
    """Write the metric scenes of a split to ``out``; logs that are already there and unchanged are kept.

    Args:
        data_root, maps_root: folders with `navsim_logs/` and with the map index.
        split: the split, or its name or file.
        out: folder of the cache; one split each.
        workers: processes.
        allow_missing: cache what there is when logs or tokens of the split are missing.
        progress: show a progress bar.

    Raises:
        CacheError: ``out`` holds the cache of another split.
        FileNotFoundError, ValueError: see `select_scenes`, `open_map` and `SceneBuilder.build`.
    """
    split = load_split(split, data_root) if isinstance(split, str) else split
    out = Path(out)
    _refuse_other_split(out, split)
    records = select_scenes(split, data_root, allow_missing, workers)
    jobs = [
        _Job(Path(data_root), Path(maps_root), tuple(of_log), out / f"{log_name}.npz")
        for (_, log_name), of_log in by_log(records).items()
    ]
    done: dict[str, dict[str, Any]] = {}
    bar = tqdm(total=len(records), desc=f"metric cache of {split.name}", unit="scene", disable=not progress)
    with bar:
        for job, entry in _run(jobs, workers):
            done[job.out.stem] = entry
            bar.update(len(job.records))
    logs = {name: done[name] for name in sorted(done)}
    centerlines: Counter[str] = Counter()
    for entry in logs.values():
        centerlines.update(entry.pop("centerlines"))
    index = {
        "format": FORMAT,
        "builder": BUILDER,
        "metric": METRIC,
        "split": split.name,
        "data_split": split.data_split,
        "num_scenes": len(records),
        "reference": REFERENCE,
        "centerlines": dict(centerlines),
        "data_fingerprint": _fingerprint((name, entry["source"]) for name, entry in logs.items()),
        "fingerprint": _fingerprint((name, entry["sha256"]) for name, entry in logs.items()),
        "logs": logs,
    }
    write_json(out / INDEX, index)
    return MetricCache(out)


@dataclass(frozen=True)
class _Job:
    data_root: Path
    maps_root: Path
    records: tuple[SceneRecord, ...]
    out: Path


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, dict[str, Any]]]:
    num_scenes = sum(len(job.records) for job in jobs)
    workers = min(workers, len(jobs), num_scenes // SCENES_PER_PROCESS)
    if workers <= 1:
        for job in jobs:
            yield job, _cache_log(job)
        return
    with ProcessPoolExecutor(workers, mp_context=process_context()) as pool:
        running = {pool.submit(_cache_log, job): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cache_log(job: _Job) -> dict[str, Any]:
    """Write one log's scenes unless an unchanged file is there; returns its entry of the index."""
    source = _source(job)
    kept = stored_source(job.out) == source
    sha256 = file_hash(job.out) if kept else ""
    if kept:
        try:  # whole and readable?
            file = SceneFile(job.out)
            scenes = [file.scene(row) for row in range(len(file.tokens))]
        except CacheError:
            kept = False
    if not kept:
        scenes = list(build_scenes(job.records, job.data_root, job.maps_root))
        sha256 = write_scenes(job.out, scenes, source)
    return {
        "file": job.out.name,
        "sha256": sha256,
        "source": source,
        "tokens": [s.token for s in scenes],
        "centerlines": dict(Counter(s.provenance["centerline"] for s in scenes)),
    }


def _source(job: _Job) -> str:
    """Hash of all that a log's scenes depend on."""
    first = job.records[0]
    maps = {at: _map_hash(open_map(job.maps_root, at).path) for at in {r.location for r in job.records}}
    parts = {
        "builder": BUILDER,
        "log": file_hash(log_path(job.data_root, first.data_split, first.log_name)),
        "maps": dict(sorted(maps.items())),
        "windows": [(r.token, r.first_frame, r.num_history, len(r.poses)) for r in job.records],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _refuse_other_split(out: Path, split: Split) -> None:
    if (out / INDEX).is_file():
        found = MetricCache(out).index
        if (found["split"], found["data_split"]) != (split.name, split.data_split):
            raise CacheError(
                f"{out} holds the metric cache of split {found['split']}; choose another folder for {split.name}"
            )


def _fingerprint(parts: Iterator[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()


@lru_cache(maxsize=8)
def _map_hash(path: Path) -> str:
    return file_hash(path)
