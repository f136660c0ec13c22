"""Make the whole demo world: maps, logs, images, split files; parallel over logs, resumable, repeatable."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from navsim_bridge.demo_world.config import LOCATIONS, DemoWorldConfig
from navsim_bridge.demo_world.drive import record_drive
from navsim_bridge.demo_world.log_writer import LogName, make_frames, write_log
from navsim_bridge.demo_world.map_writer import assign_ids
from navsim_bridge.demo_world.roads import RoadNetwork, build_network

MARKER = "world.json"
STARTED = "world.started.json"
FOLDERS = ("trainval", "test")


@lru_cache(maxsize=8)
def _network(location: int, seed: int) -> RoadNetwork:
    return build_network(LOCATIONS[location], seed)


def log_names(config: DemoWorldConfig) -> list[LogName]:
    """Every log of the world, train before test; locations take turns."""
    return [
        LogName(folder, number, config.seed, LOCATIONS[number % len(LOCATIONS)])
        for folder, count in zip(FOLDERS, (config.num_train_logs, config.num_test_logs))
        for number in range(count)
    ]


def make_log(config: DemoWorldConfig, log: LogName) -> dict[str, Any]:
    """Simulate, render and write one log; returns its counts. The pickle is written last and marks it done."""
    network = _network(log.location.index, config.seed)
    drive = record_drive(
        network, [config.seed, FOLDERS.index(log.folder), log.number], config.num_frames, config.traffic
    )
    frames = make_frames(log, drive, assign_ids(network), (config.image_width, config.image_height))
    root = Path(config.root)
    path = root / "navsim_logs" / log.folder / f"{log.name(config.num_frames)}.pkl"
    write_log(path, frames)
    return {"log": path.stem, "folder": log.folder, "frames": len(frames)}
