"""The metric cache of a split: one file of scenes per log and an index, built in parallel and resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from dpvla.files import FileError, inside, one_writer, read_json, short, write_json
from dpvla.kept_open import KeptOpen
from dpvla.manifest import sha256_of
from dpvla.parallel import Workers
from navsim_bridge.files.logs import log_path
from navsim_bridge.files.maps import map_path, share_maps, use_shared_maps
from navsim_bridge.files.odd import odd_lines
from navsim_bridge.files.roots import LOGS
from navsim_bridge.metric_cache.builder import require_scorable, scene_builder
from navsim_bridge.metric_cache.container import CacheError
from navsim_bridge.metric_cache.index import INDEX, read_index, scene_path, write_index
from navsim_bridge.metric_cache.jobs import executor_for, in_parts, log_entry, run_log_jobs
from navsim_bridge.metric_cache.store import FORMAT, SUFFIX, SceneFile
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, SceneRules
from navsim_bridge.metrics.scenes import refuse_text
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.coverage import Coverage, coverage, missing_logs
from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, Selection, by_log, find_scenes
from navsim_bridge.splits.shard import Shard

SUPERSEDED = "superseded.json"
"""Beside an index that is about to replace another: scene files that it does not list, which are removed then."""
SHARED_MAPS = ".maps"
"""Folder in the cache in which worker processes find the maps while they run."""
BUILDER = 3
"""Raise when the builder's results change: caches of another builder are made again."""


class MetricCache:
    """Reads the metric scenes that `build_metric_cache` or `convert_official_cache` wrote.

    A log's file is checked byte by byte when it is opened; the last opened ones stay mapped, up to ``keep_bytes`` of
    what has to be unpacked and a quarter of the file descriptors that the process may have.
    """

    def __init__(self, path: Path | str, keep_bytes: int = 2 << 30) -> None:
        """Open the index; raises CacheError when ``path`` holds no whole cache of this format."""
        self.path = Path(path)
        self.index = read_index(self.path, (FORMAT, BUILDER))
        self._place = {
            token: (log, row) for log, entry in self.index["logs"].items() for row, token in enumerate(entry["tokens"])
        }
        self._keep_bytes = keep_bytes
        self._files: KeptOpen[str, SceneFile] = KeptOpen(lambda file: file.num_bytes, keep_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it by itself."""
        return _opened_again, (self.path, self._keep_bytes, self.fingerprint)

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
        """What the scenes are for: the name of their `SceneRules`."""
        return str(self.index.get("metric", "a metric that is not named"))

    def require_metric(self, metric: Metric[Any]) -> None:
        """Raise CacheError when ``metric`` is not scored in scenes such as these."""
        name, rules = metric.config.name, metric.scene_rules
        if rules is None:
            raise CacheError(f"--metric {name} needs no metric scenes: leave out --metric-cache ({self.path})")
        if self.metric != rules.name:
            raise CacheError(
                f"{self.path} holds scenes of {self.metric}, not of {rules.name}, which --metric {name} scores in; "
                f"make another cache with tools/cache_metrics.py --metric {name}, or choose another --metric"
            )
        if metric.needs_traffic and any(s.v2 is None or s.v2.traffic is None for s in self.load(self.tokens[:1])):
            raise CacheError(
                f"{self.path} is of an earlier version and holds nothing of what vehicles need to react, as they are "
                f"asked to; make it anew: tools/cache_metrics.py --metric {name} --split {self.index.get('split')} "
                f"--out {self.path}"
            )

    @property
    def coverage(self) -> Coverage:
        """How much of its split the cache holds; all of it where the index does not say."""
        in_split, left_out = self.index.get("scenes_in_split", len(self)), self.index.get("left_out", {})
        return Coverage(len(self), in_split, left_out)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the cache was made from and how: split, metric, reference plan, centerlines, hashes."""
        return {key: value for key, value in self.index.items() if key not in ("logs", "maps")}

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, token: object) -> bool:
        return token in self._place

    def require(self, tokens: Sequence[str]) -> None:
        """Raise CacheError naming the first of ``tokens`` that the cache does not hold, with their count."""
        refuse_text(tokens)
        missing = [token for token in tokens if token not in self._place]
        if missing:
            raise CacheError(self._lack(missing, len(tokens)))

    def _lack(self, missing: Sequence[str], of: int) -> str:
        """What to say when the cache lacks scenes."""
        part = "" if self.coverage.is_whole else f", of which it holds {self.coverage}: {self.coverage.why}"
        return (
            f"{self.path}: {len(missing)} of {of} scenes are not in the metric cache (split "
            f"{self.index.get('split')}{part}), first {missing[0]}; make a cache of this split with "
            "tools/cache_metrics.py"
        )

    def usable(
        self, records: Sequence[SceneRecord], part: Coverage, allow_missing: bool = False
    ) -> tuple[list[SceneRecord], Coverage]:
        """Those of ``records`` whose metric scenes the cache holds, and ``part``, how much of their split they are,
        without the others; raises as `require` unless ``allow_missing``, and where none is left."""
        held = [r for r in records if r.token in self]
        lacking = [r.token for r in records if r.token not in self]
        if lacking and not (allow_missing and held):
            other = ", or ask for the rest (--allow-missing)" if held else ""
            raise CacheError(self._lack(lacking, len(records)) + other)
        if lacking:
            print(
                f"{self.path}: {len(lacking)} of {len(records)} scenes are not in the metric cache, first "
                f"{lacking[0]}; they are left out",
                file=sys.stderr,
            )
        return held, part.without("missing_cached", len(lacking))

    def load(self, tokens: Sequence[str]) -> list[MetricScene]:
        """The scenes of ``tokens``, in their order; a missing token or damaged file raises CacheError naming it."""
        self.require(tokens)
        scenes: dict[str, MetricScene] = {}
        for token in sorted(set(tokens), key=self._place.__getitem__):  # file by file
            log, row = self._place[token]
            scenes[token] = self._file(log).scene(row)
        return [scenes[token] for token in tokens]

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
                    path = inside(Path(data_root) / LOGS, f"{self.index['data_split']}/{name}.pkl", follow=True)
                else:
                    path = inside(maps_root, entry["file"], follow=True)
                if _has_changed(path, stamp, entry["source_sha256"]):
                    changed.append(f"{kind} {path}")
        folder = Path(data_root) / self.index.get("synthetic_folder", "")
        for entry in self.index["logs"].values():
            for name, (size, modified, sha256) in entry.get("synthetic", {}).items():
                path = inside(folder, name, follow=True)
                if _has_changed(path, [size, modified], sha256):
                    changed.append(f"synthetic scene {path}")
        if changed:
            raise CacheError(
                f"{self.path} is older than its sources: {len(changed)} changed or missing, first {changed[0]}; run "
                f"tools/cache_metrics.py --split {self.index['split']} --out {self.path} again"
            )

    def _file(self, log: str) -> SceneFile:
        entry = self.index["logs"][log]
        return self._files.get(log, lambda: self._opened(entry))

    def _opened(self, entry: dict[str, Any]) -> SceneFile:
        opened = SceneFile(scene_path(self.path, entry), entry["crc32"])
        if opened.tokens != entry["tokens"]:
            raise CacheError(f"{opened.path} holds other scenes than {INDEX} says; delete both and make them again")
        return opened


def _has_changed(path: Path, stamp: list[int], sha256: str) -> bool:
    return not path.is_file() or (_stamp(path) != stamp and sha256_of(path) != sha256)


def _opened_again(path: Path, keep_bytes: int, fingerprint: str) -> MetricCache:
    cache = MetricCache(path, keep_bytes)
    if cache.fingerprint != fingerprint:
        raise CacheError(f"{path} has changed since this was started; start again")
    return cache


def build_metric_cache(
    data_root: Path | str,
    maps_root: Path | str,
    split: Split | str,
    out: Path | str,
    workers: Workers = 1,
    allow_missing: bool = False,
    progress: bool = True,
    rules: SceneRules = NAVSIM_V1,
    shard: Shard | None = None,
    wait: bool = False,
) -> MetricCache:
    """Write the metric scenes of a split to ``out``; logs that are already there and unchanged are kept.

    Args:
        data_root, maps_root: folders with `navsim_logs/` and with the map index.
        split: the split, or its name or file.
        out: folder of the cache; one split each.
        workers: processes, or an executor.
        allow_missing: cache what there is when logs or tokens of the split are missing.
        progress: show a progress bar.
        rules: how the scenes are made: ``scene_rules`` of the metric that they are for.
        shard: build this part alone, in the folder `Shard.folder` of ``out``; `merge_caches` joins the parts.
        wait: for another process that is writing there, instead of raising.

    Raises:
        CacheError: ``out`` holds the cache of another split, or of other rules, or scenes that are missing now.
        DirectoryInUseError: another process is writing there.
        FileNotFoundError, ValueError: see `require_scorable`, `find_scenes`, `open_map` and `SceneBuilder.build`.
    """
    split = load_split(split, data_root) if isinstance(split, str) else split
    require_scorable(split, rules)
    out = Path(out) if shard is None else Path(out) / shard.folder
    with one_writer(out, wait=wait):
        return _build(Path(data_root), Path(maps_root), split, out, workers, allow_missing, progress, rules, shard)


def _build(
    data_root: Path,
    maps_root: Path,
    split: Split,
    out: Path,
    workers: Workers,
    allow_missing: bool,
    progress: bool,
    rules: SceneRules,
    shard: Shard | None,
) -> MetricCache:
    about: dict[str, Any] = {
        "metric": rules.name,
        "split": split.name,
        "data_split": split.data_split,
        "reference": rules.reference,
    }
    refuse_other_split(out, split.name, split.data_split, rules.name)
    if split.two_stage is not None:
        about["synthetic_folder"] = _named_folder(split.two_stage.scenes, data_root)
    found = find_scenes(split, data_root, allow_missing, workers, shard, (__name__,))
    records, gone = found.records, missing_logs(split, data_root)
    part = coverage(split, found, gone)
    refuse_loss(out, [r.token for r in records], part)
    if shard is None:
        about |= part.as_dict()
    else:
        about["shard"] = describe_shard(shard, split, found, gone, allow_missing)
    maps = _map_entries(maps_root, sorted({r.location for r in records}))
    hashes = {location: entry["source_sha256"] for location, entry in maps.items()}
    jobs = [
        _LogJob(data_root, maps_root, tuple(of_log), out / f"{log_name}{SUFFIX}", rules, hashes)
        for (_, log_name), of_log in by_log(records).items()
    ]
    title = f"metric cache of {split.name}" + (f", shard {shard}" if shard else "")
    reads = [log_path(data_root, split.data_split, "*").parent, maps_root]
    reads += [split.two_stage.scenes] if split.two_stage else []
    with _shared_maps(jobs, workers, out / SHARED_MAPS) as opener:
        entries = run_log_jobs(jobs, workers, title, progress, (__name__,), opener, reads)
    finish(out, entries, about, maps)
    return MetricCache(out)


@contextmanager
def _shared_maps(jobs: Sequence[_LogJob], workers: Workers, folder: Path) -> Iterator[Callable[[], None] | None]:
    """What makes worker processes share the maps of the logs that are not there yet; nothing for one process."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    missing = [job for job in jobs if not job.out.exists()]
    if executor_for(jobs, workers).is_alone or not missing:
        yield None
        return
    maps_root = missing[0].maps_root
    try:
        share_maps(maps_root, sorted({r.location for job in missing for r in job.records}), folder)
        yield partial(use_shared_maps, maps_root, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _map_entries(maps_root: Path, locations: Sequence[str]) -> dict[str, Any]:
    entries = {}
    for location in locations:
        path = map_path(maps_root, location)
        entries[location] = {
            "file": path.relative_to(maps_root.resolve()).as_posix(),
            "stamp": _stamp(path),
            "source_sha256": map_hash(path),
        }
    return entries


@dataclass(frozen=True)
class _LogJob:
    data_root: Path
    maps_root: Path
    records: tuple[SceneRecord, ...]
    out: Path
    rules: SceneRules
    map_hashes: dict[str, str]  # location -> SHA-256

    @property
    def num_scenes(self) -> int:
        return len(self.records)

    @property
    def _has_traffic(self) -> bool:
        return self.rules.inputs is not None

    def run(self) -> dict[str, Any]:
        first = self.records[0]
        path = log_path(self.data_root, first.data_split, first.log_name)
        sha256 = sha256_of(path)
        files = [r.synthetic.file for r in self.records if r.synthetic]
        hashes = {file.name: sha256_of(file) for file in files}
        scenes = {file.name: [*_stamp(file), hashes[file.name]] for file in files}
        source = self._source(sha256, hashes)
        entry = log_entry(
            self.out,
            source,
            len(self.records),
            lambda: in_parts(self.out, source, len(self.records), self._build(), self._has_traffic),
            self._has_traffic,
        )
        return {**entry, "stamp": _stamp(path), "source_sha256": sha256, **({"synthetic": scenes} if scenes else {})}

    def _build(self) -> Callable[[slice], list[MetricScene]]:
        builder = scene_builder(self.records, self.data_root, self.maps_root, self.rules)
        return lambda part: builder.build(self.records[part], self.records[: part.start])

    def _source(self, log_hash: str, synthetic: Mapping[str, str]) -> str:
        """Hash of all that a log's scenes depend on."""
        maps = {at: self.map_hashes[at] for at in {r.location for r in self.records}}
        parts = {
            "builder": BUILDER,
            "metric": self.rules.key,
            "log": log_hash,
            "maps": dict(sorted(maps.items())),
            "windows": [(r.token, r.first_frame, r.num_history, len(r.poses)) for r in self.records],
            **({"synthetic": sorted(synthetic.items())} if synthetic else {}),
        }
        return hash_of(parts)


def finish(out: Path, logs: dict[str, dict[str, Any]], about: dict[str, Any], maps: dict[str, Any]) -> None:
    """Write the index, which makes the scene files in ``out`` a cache; remove files of an earlier index or a killed
    run.

    ``about`` says at least ``metric`` (what the scenes are for: the name of their rules), ``split`` and ``data_split``.
    """
    centerlines: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    for entry in logs.values():
        centerlines.update(entry.pop("centerlines"))
        odd.update(entry.pop("odd"))
    num_scenes = sum(len(entry["tokens"]) for entry in logs.values())
    for line in odd_lines(odd, num_scenes):
        print(f"{out}: {line}; they are scored nevertheless, and counted", file=sys.stderr)
    before = _listed_files(out / INDEX) | _listed_files(out / SUPERSEDED)
    index = {
        "format": FORMAT,
        "builder": BUILDER,
        **about,
        "num_scenes": num_scenes,
        "odd": dict(odd),
        "centerlines": dict(centerlines),
        "data_fingerprint": hash_of(sorted((name, entry["source"]) for name, entry in logs.items())),
        "fingerprint": hash_of(sorted((name, entry["crc32"], entry["source"]) for name, entry in logs.items())),
        "maps": maps,
        "logs": logs,
    }
    superseded = before - {entry["file"] for entry in logs.values()}
    if superseded:
        write_json(out / SUPERSEDED, {"logs": {name: {"file": name} for name in sorted(superseded)}})
    write_index(out, index)
    for name in superseded:
        (out / name).unlink(missing_ok=True)
    for pattern in (f".*{SUFFIX}.*", f".{INDEX}.*", f".{SUPERSEDED}.*", SUPERSEDED):  # what a killed run was writing
        for unfinished in out.glob(pattern):
            unfinished.unlink(missing_ok=True)


def _listed_files(index: Path) -> set[str]:
    """Names of scene files that an index lists, whatever its version."""
    try:
        content = read_json(index)
    except (OSError, FileError):
        return set()
    logs = content.get("logs")
    entries = logs.values() if isinstance(logs, dict) else ()
    names = {entry.get("file") for entry in entries if isinstance(entry, dict)}
    texts = {name for name in names if isinstance(name, str)}
    return {name for name in texts if Path(name).name == name and name.endswith((SUFFIX, ".npz"))}


def describe_shard(shard: Shard, split: Split, found: Selection, missing: int, allow_missing: bool) -> dict[str, Any]:
    """What merging must know of a shard: its place, a hash that the shards of one selection have in common, and what
    `coverage_of` takes."""
    rules, tokens = dataclasses.asdict(split.scene_filter), split.tokens
    second = [split.two_stage.tokens] if split.two_stage else []
    return {
        "index": shard.index,
        "count": shard.count,
        "selection": hash_of([rules, found.logs, *second]),
        "tokens": None if tokens is None else len(tokens),
        "max_scenes": split.scene_filter.max_scenes,
        "scenes": found.scenes,
        "absent": len(found.absent),
        "missing_logs": missing,
        "allow_missing": allow_missing,
    }


def refuse_other_split(out: Path, split: str, data_split: str, scenes_of: str) -> None:
    """Raise CacheError when ``out`` holds the cache of another split, or one whose rules have another name than
    ``scenes_of``; a damaged index is no cache."""
    try:
        found = read_json(out / INDEX)
    except (OSError, FileError):
        return
    metric, there = found.get("metric", scenes_of), (found.get("split"), found.get("data_split"))
    if None in there:
        return
    if metric != scenes_of:
        raise CacheError(f"{out} holds scenes of {_named(metric)}; choose another folder for {scenes_of}")
    if there != (split, data_split):
        raise CacheError(f"{out} holds the metric cache of split {_named(there[0])}; choose another folder for {split}")


def _named(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 200 else short(value)


def refuse_loss(out: Path, tokens: Collection[str], part: Coverage) -> None:
    """Raise CacheError when ``out`` holds scenes that are not among ``tokens``, which are but a part of the split."""
    if part.is_whole:
        return
    try:
        held = MetricCache(out)
    except CacheError:
        return
    lost = set(held.tokens).difference(tokens)
    if lost:
        raise CacheError(
            f"{out} holds {held.coverage} of {held.index['split']}, {len(lost)} of which would be lost: now it would "
            f"be {part} ({part.why}). Get what is missing, or choose another folder."
        )


def hash_of(parts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    """Size and modification time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _named_folder(folder: Path, data_root: Path) -> str:
    """``folder`` as the index has it: below ``data_root`` where it lies there."""
    folder, root = folder.absolute(), data_root.absolute()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


@lru_cache(maxsize=8)
def map_hash(path: Path) -> str:
    return sha256_of(path)
