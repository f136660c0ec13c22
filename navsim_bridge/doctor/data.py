"""Are logs, camera files, maps and metric caches there and whole? What loads torch is imported by the check that needs
it, so that a broken one is a finding of its own."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpvla.files import read_json
from dpvla.parallel import available_cores
from navsim_bridge.doctor.finding import ERROR, OK, WARNING, Finding, verdict
from navsim_bridge.files import roots
from navsim_bridge.files.frames import MAP_LOCATIONS
from navsim_bridge.files.logs import list_logs
from navsim_bridge.files.odd import odd_lines
from navsim_bridge.splits.scene_filter import DEVKIT_ROOT, Split, devkit_splits, load_split
from navsim_bridge.splits.scenes import find_scenes
from navsim_bridge.splits.sensors import camera_names, describe_bad, image_folder, missing_images
from navsim_bridge.splits.two_stage import TwoStages, incomplete

IN_NO_LOG, UNMADE = "in no log", "no synthetic scene"


@dataclass(frozen=True)
class Missing:
    """A scene of a split that cannot be used."""

    split: str
    token: str
    synthetic: bool  # of the second stage of NAVSIM v2
    why: str  # `IN_NO_LOG`, `UNMADE`, or which camera files


def missing_csv(missing: Sequence[Missing]) -> str:
    """The scenes as a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "stage", "token", "missing"])
    stages = ("original", "synthetic")
    writer.writerows([scene.split, stages[scene.synthetic], scene.token, scene.why] for scene in missing)
    return text.getvalue()


def check_environment() -> Iterator[Finding]:
    """The devkit's environment variables."""
    for name, meaning in (
        ("OPENSCENE_DATA_ROOT", "holds navsim_logs/ and sensor_blobs/"),
        ("NUPLAN_MAPS_ROOT", f"holds {roots.MAP_INDEX}"),
        (DEVKIT_ROOT, "the devkit's checkout, for its split files"),
    ):
        value, problem = os.environ.get(name), devkit_splits()[1] if name == DEVKIT_ROOT else ""
        if problem:
            what, _, remedy = problem.partition(": ")
            yield Finding(ERROR, what, remedy)
        elif not value:
            yield Finding(OK, f"{name} is not set ({meaning}; options and the demo world serve instead)")
        elif not Path(value).is_dir():
            yield Finding(ERROR, f"{name} is {value}, which is no folder", f"point it to the folder that {meaning}")
        else:
            yield Finding(OK, f"{name} is {value}")


def check_data(
    data_root: str | None,
    maps_root: str | None,
    splits: Sequence[str] = (),
    data_split: str | None = None,
    cameras: Sequence[str] = (),
    synthetic_root: str | None = None,
    cache: str | None = None,
    lost: list[Missing] | None = None,
) -> Iterator[Finding]:
    """Folders with logs, camera files and maps; of each of ``splits`` also its logs, scenes and camera files, and
    whether the metric cache in the folder ``cache`` has its scenes.

    Scenes of these that are not there, or lack camera files, are added to ``lost``.
    """
    named = bool(data_root or maps_root or splits)
    missing = ERROR if named or os.environ.get("OPENSCENE_DATA_ROOT") or os.environ.get("NUPLAN_MAPS_ROOT") else WARNING
    try:
        root = roots.data_root(data_root)
    except FileNotFoundError as error:
        yield Finding(missing, str(error))
        return
    for folder in sorted(p for p in (root / roots.LOGS).iterdir() if p.is_dir()):
        logs = {p.stem for p in folder.glob("*.pkl")}
        sensors = root / roots.SENSORS / folder.name
        with_sensors = {p.name for p in sensors.iterdir() if p.is_dir()} & logs if sensors.is_dir() else set()
        lacking = len(logs) - len(with_sensors)
        counts = f"{folder}: {len(logs)} logs, {len(with_sensors)} with camera files"
        remedy = f"get the camera files of this split below {sensors}"
        yield verdict(counts if lacking else "", remedy, counts, WARNING)
    try:
        maps = roots.maps_root(maps_root)
    except FileNotFoundError as error:
        yield Finding(missing, str(error))
        return
    yield from check_maps(maps)
    for split in splits:
        yield from check_split(root, maps, split, data_split, cameras, synthetic_root, cache, lost)


def check_maps(maps: Path) -> Iterator[Finding]:
    """The map index and the maps that it lists."""
    index = maps / roots.MAP_INDEX
    try:
        versions = {name: str(entry["version"]) for name, entry in read_json(index).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding(ERROR, f"{index} cannot be read ({type(error).__name__}: {error})", "get nuPlan's maps again")
        return
    there = [at for at in MAP_LOCATIONS if at in versions and (maps / at / versions[at] / "map.gpkg").is_file()]
    lacking = [at for at in MAP_LOCATIONS if at not in there]
    yield verdict(
        f"{maps}: {len(there)} of {len(MAP_LOCATIONS)} maps; missing: {', '.join(lacking)}" if lacking else "",
        "get nuPlan's maps v1.1 unless your logs are elsewhere (the devkit opens all four)",
        f"{maps}: all {len(there)} maps",
        WARNING,
    )


def check_split(
    root: Path,
    maps: Path,
    split_name: str,
    data_split: str | None = None,
    cameras: Sequence[str] = (),
    synthetic_root: str | None = None,
    cache: str | None = None,
    lost: list[Missing] | None = None,
) -> Iterator[Finding]:
    """Logs, scenes, maps and camera files of one split, and what the metric cache in ``cache`` has of it; see
    ``check_data``."""
    from dpvla.sensors import DEFAULT_CAMERAS

    try:
        names = camera_names(cameras or DEFAULT_CAMERAS)
        split = load_split(split_name, root, data_split, synthetic_root)
    except (ValueError, OSError) as error:  # names the split or its file itself
        yield Finding(ERROR, str(error))
        return
    try:
        there = list_logs(root, split.data_split)
        found = find_scenes(split, root, allow_missing=True, workers=available_cores())
    except (ValueError, OSError) as error:
        yield Finding(ERROR, f"split {split.name}: {error}")
        return
    logs = root / roots.LOGS / split.data_split
    wanted = split.scene_filter.log_names
    absent = sorted(set(wanted or ()) - set(there))
    of, tokens, records = f"split {split.name}:", split.scene_filter.tokens or (), found.records
    second = frozenset(split.two_stage.tokens) if split.two_stage else frozenset()
    yield verdict(
        f"{of} {len(absent)} of {len(wanted or ())} logs are missing, first {absent[0]}" if absent else "",
        f"get them into {logs}",
        f"{of} {len(wanted or there)} logs in {logs}",
    )
    lacking = [token for token in found.absent if token not in second]
    yield verdict(
        f"{of} {len(lacking)} of {len(tokens)} scenes are in no log, first {lacking[0]}" if lacking else "",
        "get the missing logs; scores over a part of a split cannot be compared",
        f"{of} {sum(r.synthetic is None for r in records)} scenes",
    )
    if split.two_stage is not None:
        yield from _check_stages(of, split.two_stage, [r.token for r in records])
    if cache is not None:
        yield from _check_held(of, split, cache)
    for line in odd_lines(Counter(cause for r in records for cause in r.odd), len(records)):
        remedy = "nothing, or choose a split without them: they are used as the devkit uses them, and counted"
        yield Finding(WARNING, f"{of} {line}", remedy)
    locations = {r.location for r in records if r.location}  # private logs tell none
    unmapped = sorted(at for at in locations if not any((maps / at).glob("*/map.gpkg")))
    if unmapped:
        yield Finding(ERROR, f"{of} no map of {', '.join(unmapped)} in {maps}", "get nuPlan's maps")
    bad = missing_images(records, root, names)
    if lost is not None:
        lost += [Missing(split.name, token, token in second, UNMADE if token in second else IN_NO_LOG)
                 for token in found.absent]  # fmt: skip
        lost += [Missing(split.name, token, token in second, "; ".join(map(str, bad[token]))) for token in bad]
    sensors = " and ".join(sorted({str(image_folder(r, root)) for r in records if r.token in bad}))
    yield verdict(
        f"{of} {describe_bad(bad, len(records), len(names))}" if bad else "",
        f"get them into {sensors}; until then --allow-missing leaves their scenes out, and only plans without cameras "
        "(human, constant_velocity) can be made of them",
        f"{of} all {len(records) * len(names)} camera files ({', '.join(names)})",
    )


def _check_stages(of: str, stages: TwoStages, there: Sequence[str]) -> Iterator[Finding]:
    """Which synthetic scenes are missing, and which groups cannot be scored without what is missing."""
    held = frozenset(there)
    absent = [token for token in stages.tokens if token not in held]
    yield verdict(
        f"{of} {len(absent)} of {len(stages.tokens)} synthetic scenes are not in {stages.scenes}, first {absent[0]}"
        if absent
        else "",
        "get the scenes of the second stage, all of one version",
        f"{of} {len(stages.tokens)} synthetic scenes in {stages.scenes}",
    )
    if stages.groups is None:
        yield Finding(OK, f"{of} the server keeps its groups: plans can be submitted, not scored here")
        return
    broken = incomplete(stages.groups, held)
    first = next(iter(broken), None)
    yield verdict(
        f"{of} {len(broken)} of {len(stages.groups)} groups lack scenes and cannot be scored, first that of "
        f"{first.now}, which lacks {len(broken[first])}: {', '.join(broken[first][:3])}"
        if first
        else "",
        "get what is missing: without it there is no score of the split",
        f"{of} {len(stages.groups)} groups, all complete",
    )


def _check_held(of: str, split: Split, folder: str) -> Iterator[Finding]:
    """Whether a metric cache has the scenes that a split lists."""
    from navsim_bridge.metric_cache import CacheError, MetricCache

    try:
        cache = MetricCache(folder)
    except CacheError:
        return  # `check_cache` says it
    tokens = split.tokens
    if tokens is None:
        return
    lacking = [token for token in tokens if token not in cache]
    yield verdict(
        f"{of} {len(lacking)} of {len(tokens)} scenes are not in metric cache {folder} (of {cache.index['split']}), "
        f"first {lacking[0]}"
        if lacking
        else "",
        "make a cache of this split with tools/cache_metrics.py",
        f"{of} metric cache {folder} has all {len(tokens)} scenes",
    )


def check_cache(folder: str) -> Iterator[Finding]:
    """Every byte of a metric cache."""
    from navsim_bridge.metric_cache import CacheError, MetricCache

    try:
        cache = MetricCache(folder)
        cache.verify()
    except CacheError as error:
        yield Finding(ERROR, f"metric cache: {error}")
    else:
        part, shard = cache.coverage, cache.index.get("shard")
        what = f"metric cache {folder}: {part} of {cache.index['split']}, all bytes checked"
        if shard is not None:
            yield Finding(
                WARNING, f"{what}; it is shard {shard['index']}/{shard['count']} alone",
                "join the shards with tools/cache_metrics.py --merge",
            )  # fmt: skip
        else:
            yield verdict(
                "" if part.is_whole else f"{what}; NOT the whole split: {part.why}",
                "make it again when the rest is there; scores over a part of a split cannot be compared",
                what,
                WARNING,
            )


def check_checkpoint(folder: str) -> Iterator[Finding]:
    """Every byte and number of a checkpoint, a run's newest one, or a model or adapters by themselves."""
    from dpvla.manifest import MANIFEST, check_manifest
    from dpvla.tensors import load_tensors
    from dpvla.training.checkpoint import latest_checkpoint

    path = latest_checkpoint(Path(folder)) or Path(folder)
    files = sorted(path.rglob("*.safetensors"))
    if not files:
        yield Finding(ERROR, f"{path} holds no weights", "give a run, a checkpoint, a model or adapters")
        return
    try:
        inner = sorted({found.parent for found in path.rglob(MANIFEST)} | {path})
        known = [check_manifest(part) for part in inner]
        for file in files:
            load_tensors(file)
    except ValueError as error:
        yield Finding(ERROR, f"checkpoint: {error}")
    else:
        what = f"checkpoint {path}: {len(files)} files of numbers, all finite"
        yield verdict(
            "" if any(known) else f"{what}; no checksums, as of an earlier version",
            f"if you trust it, tools/doctor.py --write-manifest {path}",
            f"{what}, all bytes checked",
            WARNING,
        )
