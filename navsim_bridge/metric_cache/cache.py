"""The metric cache of a split: one file of scenes per log and an index, built in parallel and resumable."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from tqdm import tqdm

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from navsim_bridge.logs import log_path
from navsim_bridge.maps import open_map
from navsim_bridge.metric_cache.builder import REFERENCE, build_scenes
from navsim_bridge.metric_cache.container import CacheError
from navsim_bridge.metric_cache.epdms_inputs import build_epdms_scenes
from navsim_bridge.metric_cache.index import INDEX, read_index, write_index
from navsim_bridge.metric_cache.store import FORMAT, SUFFIX, SceneFile, file_hash, write_scenes
from navsim_bridge.pdm.epdms import METRIC_V2
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.scene_filter import Split, load_split
from navsim_bridge.scenes import SceneRecord, by_log, process_context, select_scenes

BUILDER = 1
"""Raise when the builder's results change: caches of another builder are made again."""
SCENES_PER_PROCESS = 1000
"""A process takes seconds to start and builds hundreds of scenes a second: fewer are not worth another one."""
METRIC = "PDMS v1 (navsim 1.1)"
MetricName = Literal["pdms", "epdms"]
METRICS: dict[MetricName, str] = {"pdms": METRIC, "epdms": METRIC_V2}
"""What a cache says its scenes are for."""


class MetricCache:
    """Reads the metric scenes that `build_metric_cache` or `convert_official_cache` wrote.

    A log's file is checked byte by byte when it is opened; the last opened ones stay mapped, up to ``keep_bytes`` of
    what has to be unpacked and half of the file descriptors that the process may have.
    """

    def __init__(self, path: Path | str, keep_bytes: int = 2 << 30) -> None:
        """Open the index; raises CacheError when ``path`` holds no whole cache of this format."""
        self.path = Path(path)
        self.index = read_index(self.path, (FORMAT, BUILDER))
        self._place = {
            token: (log, row) for log, entry in self.index["logs"].items() for row, token in enumerate(entry["tokens"])
        }
        self._keep_bytes, self._keep_files = keep_bytes, _most_open_files()
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
    def metric(self) -> str:
        """What the scenes are for, one of `METRICS`."""
        return str(self.index["metric"])

    def require_metric(self, metric: MetricName) -> None:
        """Raise CacheError when the scenes are for the other metric."""
        if self.metric != METRICS[metric]:
            raise CacheError(
                f"{self.path} holds scenes of {self.metric}, not of {METRICS[metric]}; make another cache with "
                f"tools/cache_metrics.py --metric {metric}"
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """What the cache was made from and how: split, metric, reference plan, centrelines, hashes."""
        return {key: value for key, value in self.index.items() if key not in ("logs", "maps")}

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
            log, row = self._place[token]
            file = self._file(log)
            scene = file.scene(row)
            if scene.token != token:
                raise CacheError(f"{file.path} holds {scene.token} where {INDEX} says {token}; make it again")
            scenes[token] = scene
        return [scenes[token] for token in tokens]

    def batch(self, tokens: Sequence[str]) -> SceneBatch:
        """The scenes of ``tokens``, packed for scoring."""
        return SceneBatch.from_scenes(self.load(tokens))

    def verify(self) -> None:
        """Check every byte of every file; raises CacheError naming the first that is damaged or missing."""
        for log in self.index["logs"]:
            self._file(log)

    def check_sources(self, data_root: Path | str, maps_root: Path | str) -> None:
        """Raise CacheError when a log or map that the cache was made from is gone or has changed.

        Cheap: sizes and modification times decide, and a file is hashed only where they differ. Converted official
        caches name no sources and pass.
        """
        changed = []
        for kind, entries in (("log", self.index["logs"]), ("map", self.index["maps"])):
            for name, entry in entries.items():
                stamp = entry.get("stamp")
                if stamp is None:
                    continue
                if kind == "log":
                    path = log_path(data_root, self.index["data_split"], name)
                else:
                    path = Path(maps_root) / entry["file"]
                if not path.is_file() or (_stamp(path) != stamp and file_hash(path) != entry["source_sha256"]):
                    changed.append(f"{kind} {path}")
        if changed:
            raise CacheError(
                f"{self.path} is older than its sources: {len(changed)} changed or missing, first {changed[0]}; run "
                f"tools/cache_metrics.py --split {self.index['split']} --out {self.path} again"
            )

    def _file(self, log: str) -> SceneFile:
        if log in self._open:
            self._open.move_to_end(log)
            return self._open[log]
        entry = self.index["logs"][log]
        opened = self._open[log] = SceneFile(self.path / entry["file"], entry["crc32"])
        while len(self._open) > 1 and (
            len(self._open) > self._keep_files or sum(f.num_bytes for f in self._open.values()) > self._keep_bytes
        ):
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
    metric: MetricName = "pdms",
) -> MetricCache:
    """Write the metric scenes of a split to ``out``; logs that are already there and unchanged are kept.

    Args:
        data_root, maps_root: folders with `navsim_logs/` and with the map index.
        split: the split, or its name or file.
        out: folder of the cache; one split each.
        workers: processes.
        allow_missing: cache what there is when logs or tokens of the split are missing.
        progress: show a progress bar.
        metric: what the scenes are for: "pdms" (NAVSIM v1) or "epdms" (v2).

    Raises:
        CacheError: ``out`` holds the cache of another split or metric.
        FileNotFoundError, ValueError: see `select_scenes`, `open_map` and `SceneBuilder.build`.
    """
    split = load_split(split, data_root) if isinstance(split, str) else split
    out = Path(out)
    refuse_other_split(out, split.name, split.data_split, metric)
    records = select_scenes(split, data_root, allow_missing, workers)
    jobs = [
        _LogJob(Path(data_root), Path(maps_root), tuple(of_log), out / f"{log_name}{SUFFIX}", metric)
        for (_, log_name), of_log in by_log(records).items()
    ]
    logs = run_jobs(jobs, workers, f"metric cache of {split.name}", progress)
    maps: dict[str, Any] = {}
    for location in sorted({r.location for r in records}):
        path = open_map(maps_root, location).path
        maps[location] = {
            "file": path.relative_to(Path(maps_root).resolve()).as_posix(),
            "stamp": _stamp(path),
            "source_sha256": _map_hash(path),
        }
    about = {"metric": METRICS[metric], "split": split.name, "data_split": split.data_split, "reference": REFERENCE}
    finish(out, logs, about, maps)
    return MetricCache(out)


class Job(Protocol):
    """The scenes of one log, to be written to ``out``."""

    @property
    def out(self) -> Path: ...

    @property
    def num_scenes(self) -> int: ...

    def run(self) -> dict[str, Any]:
        """Write the file unless an unchanged one is there; returns its entry of the index, see `log_entry`."""


@dataclass(frozen=True)
class _LogJob:
    data_root: Path
    maps_root: Path
    records: tuple[SceneRecord, ...]
    out: Path
    metric: MetricName

    @property
    def num_scenes(self) -> int:
        return len(self.records)

    def run(self) -> dict[str, Any]:
        first = self.records[0]
        path = log_path(self.data_root, first.data_split, first.log_name)
        sha256 = file_hash(path)
        build = build_epdms_scenes if self.metric == "epdms" else build_scenes
        entry = log_entry(
            self.out,
            self._source(sha256),
            len(self.records),
            lambda: list(build(self.records, self.data_root, self.maps_root)),
        )
        return {**entry, "stamp": _stamp(path), "source_sha256": sha256}

    def _source(self, log_hash: str) -> str:
        """Hash of all that a log's scenes depend on."""
        maps = {at: _map_hash(open_map(self.maps_root, at).path) for at in {r.location for r in self.records}}
        parts = {
            "builder": BUILDER,
            "metric": self.metric,
            "log": log_hash,
            "maps": dict(sorted(maps.items())),
            "windows": [(r.token, r.first_frame, r.num_history, len(r.poses)) for r in self.records],
        }
        return hash_of(parts)


def log_entry(out: Path, source: str, count: int, scenes_of: Callable[[], list[MetricScene]]) -> dict[str, Any]:
    """The index entry of one log, whose scenes are written to ``out`` unless a whole file of ``count`` scenes from the
    same ``source`` is there."""
    try:
        file = SceneFile(out)
        kept = file.source == source and len(file.tokens) == count
    except CacheError:
        kept = False
    if not kept:
        write_scenes(out, scenes_of(), source)
        file = SceneFile(out)
    return {
        "file": out.name,
        "crc32": file.crc,
        "source": source,
        "tokens": file.tokens,
        "centerlines": dict(Counter(p.get("centerline", "unknown") for p in file.provenances)),
    }


AnyJob = TypeVar("AnyJob", bound=Job)


def run_jobs(jobs: Sequence[AnyJob], workers: int, title: str, progress: bool) -> dict[str, dict[str, Any]]:
    """Index entries of all jobs by log name, sorted."""
    done: dict[str, dict[str, Any]] = {}
    total = sum(job.num_scenes for job in jobs)
    with tqdm(total=total, desc=title, unit="scene", disable=None if progress else True) as bar:
        for job, entry in _run(jobs, workers):
            done[job.out.name.removesuffix(SUFFIX)] = entry
            bar.update(job.num_scenes)
    return {name: done[name] for name in sorted(done)}


def _run(jobs: Sequence[AnyJob], workers: int) -> Iterator[tuple[AnyJob, dict[str, Any]]]:
    num_scenes = sum(job.num_scenes for job in jobs)
    workers = min(workers, len(jobs), num_scenes // SCENES_PER_PROCESS)
    if workers <= 1:
        for job in jobs:
            yield job, job.run()
        return
    with ProcessPoolExecutor(workers, mp_context=process_context()) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def finish(out: Path, logs: dict[str, dict[str, Any]], about: dict[str, Any], maps: dict[str, Any]) -> None:
    """Write the index, which makes the scene files in ``out`` a cache; remove files of an earlier index or a killed
    run."""
    centerlines: Counter[str] = Counter()
    for entry in logs.values():
        centerlines.update(entry.pop("centerlines"))
    before = _listed_files(out)
    index = {
        "format": FORMAT,
        "builder": BUILDER,
        "metric": METRIC,  # unless ``about`` says another
        **about,
        "num_scenes": sum(len(entry["tokens"]) for entry in logs.values()),
        "centerlines": dict(centerlines),
        "data_fingerprint": hash_of(sorted((name, entry["source"]) for name, entry in logs.items())),
        "fingerprint": hash_of(sorted((name, entry["crc32"], entry["source"]) for name, entry in logs.items())),
        "maps": maps,
        "logs": logs,
    }
    write_index(out, index)
    for name in before - {entry["file"] for entry in logs.values()}:
        (out / name).unlink(missing_ok=True)
    for unfinished in out.glob(f".*{SUFFIX}.*"):  # what a killed run was writing
        unfinished.unlink(missing_ok=True)


def _listed_files(out: Path) -> set[str]:
    """Names of scene files that the index in ``out`` lists, whatever its version."""
    try:
        logs = json.loads((out / INDEX).read_text(encoding="utf-8"))["logs"]
        names = {str(entry["file"]) for entry in logs.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {name for name in names if Path(name).name == name and name.endswith((SUFFIX, ".npz"))}


def refuse_other_split(out: Path, split: str, data_split: str, metric: MetricName = "pdms") -> None:
    """Raise CacheError when ``out`` holds the cache of another split or metric; a damaged index is no cache."""
    try:
        found = json.loads((out / INDEX).read_text(encoding="utf-8"))
        there = found["split"], found["data_split"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found.get("metric", METRIC) != METRICS[metric]:
        raise CacheError(f"{out} holds scenes of {found['metric']}; choose another folder for {METRICS[metric]}")
    if there != (split, data_split):
        raise CacheError(f"{out} holds the metric cache of split {there[0]}; choose another folder for {split}")


def _most_open_files() -> int:
    """Files to keep mapped: each takes a descriptor, and opening one again costs a check of all its bytes."""
    if resource is None:
        return 256
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if limit == resource.RLIM_INFINITY else max(1, min(4096, limit // 2))


def hash_of(parts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    """Size and modification time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


@lru_cache(maxsize=8)
def _map_hash(path: Path) -> str:
    return file_hash(path)
