"""What a training stage needs of NAVSIM's files, opened from one config: scenes, held-out scenes, reward."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dpvla.batch import RewardFunction
from dpvla.parallel import available_cores
from dpvla.training.run_directory import TrainedOn
from navsim_bridge.dataset import CAMERAS, NavsimDataset
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache
from navsim_bridge.reward import PDMReward
from navsim_bridge.roots import DEMO_WORLD, data_root, maps_root
from navsim_bridge.scene_filter import Split, load_split
from navsim_bridge.scenes import SceneRecord, select_scenes
from navsim_bridge.sensors import with_images


@dataclass(frozen=True)
class DataConfig:
    """Scenes to train on."""

    split: str = "navtrain"  # name, or a YAML, CSV or Parquet file that lists its scenes
    data_root: str | None = None  # holds navsim_logs/ (default: OPENSCENE_DATA_ROOT, then the demo world)
    maps_root: str | None = None  # holds the maps (default: NUPLAN_MAPS_ROOT, then the demo world's)
    metric_cache: str | None = (
        None  # from tools/cache_metrics.py (default: DATA_ROOT/metric_cache/SPLIT, made if absent)
    )
    image_cache: str | None = None  # folder for images decoded once at the model's size (default: decode every time)
    validation_logs: int = 0  # the last so many logs of the split are held out
    workers: int = 0  # processes for reading and caching (0: one per core)
    allow_missing: bool = False  # train on what there is when logs, scenes or images of the split are missing


@dataclass(frozen=True)
class TrainingData:
    """Opened scenes of a split."""

    split: str
    source: NavsimDataset
    validation: NavsimDataset | None
    reward: RewardFunction | None

    def trained_on(self, stage: str) -> TrainedOn:
        """What to keep with weights that learn from ``source``."""
        logs = tuple(sorted({r.log_name for r in self.source.records}))
        return TrainedOn(stage, self.split, len(self.source), logs)

    @property
    def about(self) -> dict[str, Any]:
        """What ``run.yaml`` says of the data."""
        return {"split": self.split, "scenes": len(self.source)}


def open_training_data(
    config: DataConfig, image_size: tuple[int, int], accelerator: Accelerator, *, reward_on: str
) -> TrainingData:
    """Find the scenes of ``config.split``, making the demo world, image cache and metric cache where asked for.

    Args:
        image_size: (width, height) the model reads.
        reward_on: 'source' or 'validation': the scenes whose plans will be scored.

    Raises:
        FileNotFoundError, ValueError: missing or bad data; the message says which and what to do.
    """
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            make_demo_world_if_needed(config)
        root, maps = data_root(config.data_root), maps_root(config.maps_root)
        workers = config.workers or available_cores()
        split = load_split(config.split, root)
        records = select_scenes(split, root, config.allow_missing, workers)
        records = with_images(records, root, CAMERAS, split.name, config.allow_missing)
        train, held_out = hold_out(records, config.validation_logs)
        source = NavsimDataset(train, root, image_size)
        validation = NavsimDataset(held_out, root, image_size) if held_out else None
        for dataset in (source, validation):
            if config.image_cache is not None and dataset is not None:
                dataset.cache_images(config.image_cache, progress=accelerator.is_main_process)
        scored = source if reward_on == "source" else validation
        reward = None
        if scored is not None:
            cache = open_metric_cache(config.metric_cache, split, root, maps, workers, config.allow_missing)
            reward = PDMReward(cache, accelerator.device, scored.tokens)
    return TrainingData(split.name, source, validation, reward)


def make_demo_world_if_needed(config: DataConfig) -> None:
    """Generate the default demo world when neither options nor environment name other data and there is none."""
    named = config.data_root or config.maps_root or os.environ.get("OPENSCENE_DATA_ROOT")
    if named or (DEMO_WORLD / "world.json").exists():
        return
    from navsim_bridge.demo_world import DemoWorldConfig, make_demo_world

    print(f"no data named and no demo world in {DEMO_WORLD}: making one")
    make_demo_world(DemoWorldConfig(root=str(DEMO_WORLD)))


def open_metric_cache(
    path: str | None, split: Split, root: Path, maps: Path, workers: int, allow_missing: bool = False
) -> MetricCache:
    """The given cache as it is, or the split's own below ``root``, which is made or completed first."""
    if path is not None:
        return MetricCache(path)
    own = root / "metric_cache"
    whole = own / f"{split.name}_all"
    if (whole / "index.json").is_file():  # the demo world keeps one cache for a filtered and its unfiltered split
        return up_to_date_cache(whole, load_split(whole.name, root), root, maps, workers)
    return build_metric_cache(root, maps, split, own / split.name, workers, allow_missing)


def up_to_date_cache(path: Path, split: Split, root: Path, maps: Path, workers: int) -> MetricCache:
    """The cache at ``path`` when it is whole and its logs and maps are unchanged, else made again."""
    try:
        cache = MetricCache(path)
        cache.check_sources(root, maps)
        return cache
    except CacheError as error:
        print(f"making {path} again: {error}")
        return build_metric_cache(root, maps, split, path, workers)


def hold_out(records: list[SceneRecord], logs: int) -> tuple[list[SceneRecord], list[SceneRecord]]:
    """Scenes of all but the last ``logs`` logs, and those of the last ones."""
    names = sorted({r.log_name for r in records})
    if not 0 <= logs < len(names):
        raise ValueError(f"validation_logs is {logs}, but the split has {len(names)} logs and one must remain")
    last = set(names[len(names) - logs :])
    return [r for r in records if r.log_name not in last], [r for r in records if r.log_name in last]
