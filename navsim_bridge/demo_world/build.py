"""Make the whole demo world: maps, logs, images, split files; parallel over logs, resumable, repeatable."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpvla.files import write_json
from navsim_bridge.demo_world.config import LOCATIONS, DemoWorldConfig
from navsim_bridge.demo_world.drive import record_drive
from navsim_bridge.demo_world.log_writer import LogName, image_path, make_frames, write_log
from navsim_bridge.demo_world.map_writer import assign_ids, write_map, write_map_index
from navsim_bridge.demo_world.roads import RoadNetwork, build_network
from navsim_bridge.demo_world.selection import SPLITS, select, write_split

MARKER = "world.json"
STARTED = "world.started.json"
PARTS = ("maps", "navsim_logs", "sensor_blobs", "splits", "metric_cache")
FOLDERS = ("trainval", "test")


@lru_cache(maxsize=8)
def network_of(location: int, seed: int) -> RoadNetwork:
    """The road network of a location, kept for the logs that share it."""
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
    root = Path(config.root)
    network = network_of(log.location.index, config.seed)
    drive = record_drive(
        network, [config.seed, FOLDERS.index(log.folder), log.number], config.num_frames, config.traffic
    )
    frames = make_frames(log, drive, assign_ids(network), (config.image_width, config.image_height))
    write_log(log_path(config, log), frames)
    return {"log": log.name(config.num_frames), "images": 0}


def log_path(config: DemoWorldConfig, log: LogName) -> Path:
    return Path(config.root) / "navsim_logs" / log.folder / f"{log.name(config.num_frames)}.pkl"
