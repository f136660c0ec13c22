"""Make the whole demo world: maps, logs, images, split files; parallel over logs, resumable, repeatable."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from tqdm import tqdm

from dpvla.files import FileError, check_folder, one_writer, read_json, remove_parts, short, write_json
from dpvla.parallel import available_cores, run_jobs
from dpvla.schema import read_as
from navsim_bridge.demo_world.config import LOCATIONS, DemoWorldConfig
from navsim_bridge.demo_world.files.log_writer import make_frames, write_log
from navsim_bridge.demo_world.files.map_writer import assign_ids, write_map, write_map_index
from navsim_bridge.demo_world.log_name import PARTS, LogName
from navsim_bridge.demo_world.pictures.render import paint_log
from navsim_bridge.demo_world.roads.network import network_of
from navsim_bridge.demo_world.traffic.drive import record_drive
from navsim_bridge.files.roots import DEMO_WORLD, MAP_INDEX

FINISHED, STARTED, REMOVED = "world.json", "world.started.json", "world.removed.json"
CONTENTS = ("maps", "navsim_logs", "sensor_blobs", "splits", "metric_cache")
SPLITS = tuple(part.split for part in PARTS.values())
"""Filtered splits; the unfiltered one has ``_all`` behind its name."""
VALIDATION_LOGS = "num_validation_logs"
"""The setting that may grow: its logs change no other file."""


class OtherWorldError(ValueError):
    """The folder holds something else than the world asked for."""


def make_demo_world(config: DemoWorldConfig) -> dict[str, Any]:
    """Generate the world at ``config.root``, or finish one that was interrupted; does nothing if it is there already.

    Returns the content of ``world.json``, which is written last: settings, number of logs, images and scenes, and the
    mean score of the recorded driver.

    Raises:
        OtherWorldError: the folder holds a world made with other settings, or something that is not a demo world.
    """
    check_folder(config.root)
    with one_writer(config.root) as root:
        return _make(config, root)


def _make(config: DemoWorldConfig, root: Path) -> dict[str, Any]:
    finished = _prepare_root(config, root)
    if finished is not None:
        if not config.quiet:
            print(f"demo world is already complete: {root}")
        return finished
    for folder, _, _ in os.walk(root):  # what a killed run was writing
        remove_parts(folder)
    workers = config.workers or available_cores()
    former = _splits_to_keep(config, root)
    write_json(root / STARTED, config.identity())
    if not (root / "maps" / MAP_INDEX).exists():
        write_map_index(root / "maps")
    logs = log_names(config)
    counts = {"images": 0}
    with tqdm(total=len(logs), desc="demo world", unit="log", disable=config.quiet, smoothing=0.1) as bar:
        for images in _run(config, logs, min(workers, len(logs))):
            counts["images"] += images
            bar.update()
    summary: dict[str, Any] = {"settings": config.identity(), "logs": len(logs), **counts}
    summary["splits"] = _write_splits(config, root, logs, workers, former)
    write_json(root / FINISHED, summary)
    (root / STARTED).unlink()
    return summary


def make_demo_world_if_needed(data_root: str | None, maps_root: str | None) -> None:
    """Generate the default demo world when neither options nor environment name other data and there is none."""
    if data_root or maps_root or os.environ.get("OPENSCENE_DATA_ROOT") or (DEMO_WORLD / FINISHED).exists():
        return
    print(f"no data named and no demo world in {DEMO_WORLD}: making one")
    make_demo_world(DemoWorldConfig(root=str(DEMO_WORLD)))


def log_names(config: DemoWorldConfig) -> list[LogName]:
    """Every log of the world, train before test before validation; locations take turns."""
    counts = (config.num_train_logs, config.num_test_logs, config.validation_logs)
    return [
        LogName(part, number, config.seed, LOCATIONS[number % len(LOCATIONS)])
        for part, count in zip(PARTS, counts)
        for number in range(count)
    ]


def make_log(config: DemoWorldConfig, log: LogName) -> int:
    """Simulate, paint and write one log; returns its number of images. The pickle comes last and marks it done."""
    root = Path(config.root)
    expected = len(config.cameras) * len(config.rendered_frames())
    path = _log_path(config, log)
    if path.exists():
        return expected
    network = network_of(log.location.index, config.seed)
    seed = [config.seed, list(PARTS).index(log.part), log.number]
    drive = record_drive(network, seed, config.num_frames, config.traffic)
    paint_log(config, log, drive, root / "sensor_blobs" / log.folder)
    write_log(path, make_frames(log, drive, assign_ids(network), (config.image_width, config.image_height)))
    return expected


def _log_path(config: DemoWorldConfig, log: LogName) -> Path:
    return Path(config.root) / "navsim_logs" / log.folder / f"{log.name(config.num_frames)}.pkl"


def _make_map(config: DemoWorldConfig, location: int) -> None:
    if not _has_map(config, location):
        write_map(network_of(location, config.seed), Path(config.root) / "maps")


def _has_map(config: DemoWorldConfig, location: int) -> bool:
    return any((Path(config.root) / "maps" / LOCATIONS[location].name).glob("*/map.gpkg"))


def _is_whole(config: DemoWorldConfig, splits: Iterable[str]) -> bool:
    """Whether maps, logs and splits of a finished world are still there; else what is missing is made again."""
    return (
        all(_has_map(config, location) for location in range(len(LOCATIONS)))
        and all(_log_path(config, log).exists() for log in log_names(config))
        and _has_splits(Path(config.root), splits)
    )


def _run(config: DemoWorldConfig, logs: list[LogName], workers: int) -> Iterator[int]:
    """Maps, then logs; yields the images of each finished log in any order."""
    for _ in run_jobs(_make_map, [(config, location) for location in range(len(LOCATIONS))], workers):
        pass
    yield from run_jobs(make_log, [(config, log) for log in logs], workers)


def _splits_to_keep(config: DemoWorldConfig, root: Path) -> dict[str, Any]:
    """What ``world.json`` says of the splits that stay as they are; nothing before a world was finished."""
    if not (root / FINISHED).exists():
        return {}
    before = read_as(root / FINISHED, _World)
    grown = before["settings"].get(VALIDATION_LOGS, 0) != config.validation_logs
    changed = PARTS["validation"].split if grown else None
    return {name: count for name, count in before["splits"].items() if name.partition("_")[0] != changed}


def _has_splits(root: Path, names: Iterable[str]) -> bool:
    return all((root / "splits" / f"{name}.yaml").exists() for name in names)


def _write_splits(
    config: DemoWorldConfig, root: Path, logs: list[LogName], workers: int, former: Mapping[str, Any]
) -> dict[str, Any]:
    """Number of scenes by split; those that the finished world had before, ``former``, keep their files."""
    # imported here: it brings in torch, which the workers that only draw and simulate can do without
    from navsim_bridge.demo_world import selection

    counts: dict[str, Any] = {}
    for kind, (name, folder, _) in PARTS.items():
        names = [log.name(config.num_frames) for log in logs if log.part == kind]
        if not names:
            continue
        keys = [f"{name}_all", name, f"{name}_all_human_pdms"][: 3 if config.metric_cache else 1]
        if all(key in former for key in keys) and _has_splits(root, keys[:2]):
            counts |= {key: former[key] for key in keys}
            continue
        selection.write_split(root, f"{name}_all", folder, names, config.frame_interval, None)
        counts[f"{name}_all"] = len(names) * len(config.scene_frames())
        if config.metric_cache:
            chosen = selection.select(root, name, workers, progress=not config.quiet)
            selection.write_split(root, name, folder, names, config.frame_interval, chosen.kept)
            counts[name] = len(chosen.kept)
            counts[f"{name}_all_human_pdms"] = round(float(chosen.human.mean()), 6)
    return counts


class _World(TypedDict):
    settings: dict[str, Any]
    logs: int
    images: int
    splits: dict[str, Any]


def _prepare_root(config: DemoWorldConfig, root: Path) -> dict[str, Any] | None:
    """The summary of an equal, complete world; None when there is work to do. Refuses or removes another world."""
    if (root / REMOVED).exists():  # a run that was replacing a world has been killed
        _remove(root)
    found = next((root / name for name in (FINISHED, STARTED) if (root / name).exists()), None)
    if found is None:
        present = [name for name in CONTENTS if (root / name).exists()]
        if present:
            raise OtherWorldError(
                f"{root} holds {', '.join(present)} but no {FINISHED}: it is not a demo world, so it is left alone; "
                "choose another root"
            )
        return None
    try:
        content: dict[str, Any] = dict(read_as(found, _World)) if found.name == FINISHED else read_json(found)
    except FileError as error:
        if not config.overwrite:
            raise OtherWorldError(f"{error}; choose another root or pass --overwrite") from None
        content = {"settings": {}}
    settings = content["settings"] if found.name == FINISHED else content
    wanted = json.loads(json.dumps(config.identity()))
    there = settings.setdefault(VALIDATION_LOGS, 0)  # a world of an earlier version has none
    grows = isinstance(there, int) and there < config.validation_logs
    different = sorted(k for k in {*settings, *wanted} if settings.get(k) != wanted.get(k))
    if different != [VALIDATION_LOGS] * grows:
        if not config.overwrite:
            listed = ", ".join(
                f"{k:.40} {short(settings.get(k), 80)} there, {short(wanted.get(k), 80)} asked for"
                for k in different[:20]
            )
            raise OtherWorldError(
                f"{root} holds a demo world with other settings ({listed}); choose another root or pass --overwrite"
            )
        os.replace(found, root / REMOVED)
        _remove(root)
        return None
    if grows or found.name != FINISHED or (config.metric_cache and "navtrain" not in content["splits"]):
        return None
    splits = [name for name in content["splits"] if name.removesuffix("_all") in SPLITS]
    if not _is_whole(config, splits):
        return None
    (root / STARTED).unlink(missing_ok=True)  # a kill may have come between both
    return content


def _remove(root: Path) -> None:
    """Remove a world that another is to replace; its mark goes last, so that nobody takes the rest for a world."""
    for name in CONTENTS:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in (FINISHED, STARTED, REMOVED):
        (root / name).unlink(missing_ok=True)
