"""What a training stage needs of NAVSIM's files, opened from one config: scenes, held-out scenes, reward."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from dpvla.batch import RewardFunction
from dpvla.parallel import available_cores
from dpvla.sensors import Sensors
from dpvla.training.run_directory import TrainedOn
from navsim_bridge.data.config import DataConfig
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.data.image_store import ImageStore
from navsim_bridge.files.roots import LOGS, data_root, maps_root
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.metrics.reward import MetricReward
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, SceneRules
from navsim_bridge.metrics.scenes import RecordedScenes, ScoredScenes
from navsim_bridge.splits.coverage import Coverage, usable_scenes
from navsim_bridge.splits.scene_filter import Split, is_named, load_split
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names, image_path, image_sizes

LOOKED_INTO = 64
"""Scenes whose camera files are read for a fingerprint: all of them would take hours."""


@dataclass(frozen=True)
class TrainingData:
    """Opened scenes of a split."""

    split: str
    source: NavsimDataset
    validation: NavsimDataset | None
    reward: RewardFunction | None
    coverage: Coverage  # how much of the split source and validation are together
    learns_from: str | None = None  # hash of what the metric scenes whose scores are learned from were made of, if any

    def trained_on(self, stage: str, reward: str | None = None) -> TrainedOn:
        """What to keep with weights that learn from ``source``; ``reward``: of what they learn from."""
        logs = self.logs_of(range(len(self.source)))
        of = None if self.coverage.is_whole else self.coverage.in_split
        return TrainedOn(stage, self.split, len(self.source), logs, of, reward=reward)

    def logs_of(self, rows: Iterable[int]) -> tuple[str, ...]:
        """Names of the logs of some scenes of ``source``."""
        return tuple(sorted({self.source.records[row].log_name for row in rows}))

    @cached_property
    def about(self) -> dict[str, Any]:
        """What ``run.yaml`` says of the data; a run that goes on must have the same ``fingerprint``."""
        return {
            "split": self.split,
            "data_split": self.source.records[0].data_split,
            "scenes": len(self.source),
            "validation_scenes": len(self.validation) if self.validation is not None else 0,
            **self.coverage.as_dict(),
            "metric_scenes": self.learns_from,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what training reads: the scenes in order, their poses, speeds, commands and routes, the names and
        sizes of their camera files, the content of those of some scenes (`LOOKED_INTO`, evenly through the split), and
        what the reward's metric scenes were made from.

        Where the data lies and when files were written is no part of it: a moved or copied data root keeps it.
        """
        digest = hashlib.sha256()
        for part in (self.source, self.validation):
            digest.update(_content(part) if part is not None else b"none")
        digest.update(str(self.learns_from).encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        """'SPLIT (ROOT/navsim_logs/FOLDER): 32 scenes; 24 of 3 logs to train on, 8 of 1 log to validate with'."""
        uses = [(self.source, "to train on"), (self.validation, "to validate with")]
        parts = [f"{len(data)} of {_logs(data)} {use}" for data, use in uses if data is not None]
        folder = self.source.data_root / LOGS / self.source.records[0].data_split
        return f"{self.split} ({folder}): {self.coverage}; {', '.join(parts)}"


def _logs(data: NavsimDataset) -> str:
    count = len({r.log_name for r in data.records})
    return f"{count} log{'s' * (count != 1)}"


def _content(data: NavsimDataset) -> bytes:
    """Hash of the scenes of a data set, of their camera files' names and sizes, and of the content of some."""
    digest = hashlib.sha256()
    for row in range(0, len(data), -(-len(data) // LOOKED_INTO)):
        for path in data.image_paths(row):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    sizes = image_sizes(data.records, data.data_root, data.cameras)
    for r in data.records:
        images = [(r.cameras[c], sizes[image_path(r, c)]) for c in data.cameras if c in r.cameras]
        digest.update(
            repr((r.token, r.log_name, r.location, r.num_history, len(r.poses), r.command, r.route, images)).encode()
        )
        for array in (r.times_us, r.poses, r.velocity, r.acceleration):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def open_training_data(
    config: DataConfig, sensors: Sensors, accelerator: Accelerator, *, reward_on: str
) -> TrainingData:
    """Find the scenes of ``config.split``, making image cache and metric cache where asked for; says in one line which
    they are.

    Args:
        sensors: what the policy looks at.
        reward_on: 'source', 'validation' or 'nothing': the scenes whose plans will be scored.

    Raises:
        FileNotFoundError, ValueError: missing or bad data; the message says which and what to do.
    """
    cameras = camera_names(sensors.cameras)
    with accelerator.main_process_first():
        root, maps = data_root(config.data_root), maps_root(config.maps_root)
        workers = config.workers or available_cores()
        store = ImageStore(config.image_store) if config.image_store is not None else None
        if store is not None:
            store.require(sensors)
        split = load_split(config.split, root, config.data_split, config.synthetic_root)
        records, part = usable_scenes(split, root, cameras, config.allow_missing, workers, (__name__,))
        train, held_out = hold_out(records, config.validation_logs)
        metric = make_metric(config.metric).on(split)
        given = MetricCache(config.metric_cache) if config.metric_cache is not None else None
        if given is not None:
            given.require_metric(metric)
        if given is not None and reward_on == "source":
            train, part = given.usable(train, part, config.allow_missing)
        elif given is not None and held_out:
            held_out, part = given.usable(held_out, part, config.allow_missing)
        source = NavsimDataset(train, root, sensors)
        validation = NavsimDataset(held_out, root, sensors) if held_out else None
        data = TrainingData(split.name, source, validation, None, part)
        accelerator.print(f"data: {data}")
        if not part.is_whole:
            accelerator.print(f"NOT the whole split {split.name}: {part.why}")
        for dataset in (source, validation):
            if store is not None and dataset is not None:
                dataset.use_store(store)
            elif config.image_cache is not None and cameras and dataset is not None:
                dataset.cache_images(config.image_cache, progress=accelerator.is_main_process)
        scored = {"source": source, "validation": validation, "nothing": None}[reward_on]
        if scored is not None:
            scenes: ScoredScenes
            if metric.scene_rules is None:
                scenes, made_from = RecordedScenes(scored.records), None
            else:
                scenes = given or own_metric_cache(
                    split,
                    root,
                    maps,
                    workers,
                    config.allow_missing,
                    metric.scene_rules,
                    not accelerator.is_main_process,
                )
                scenes.require_metric(metric)
                made_from = str(scenes.index["data_fingerprint"]) if scored is source else None
            data = replace(
                data, reward=MetricReward(metric, scenes, accelerator.device, scored.tokens), learns_from=made_from
            )
    return data


def own_metric_cache(
    split: Split,
    root: Path,
    maps: Path,
    workers: int,
    allow_missing: bool = False,
    rules: SceneRules = NAVSIM_V1,
    made: bool = False,
) -> MetricCache:
    """The cache of the split's scenes of ``rules`` below ``root``, which is made or completed first; another process
    that makes it is waited for.

    Args:
        made: that has just been done by another process of this run: it need not be looked at again.
    """
    path, of = own_cache_place(split, root, rules)
    if of is not split or made:
        try:
            cache = MetricCache(path)
            if not made:
                cache.check_sources(root, maps)
            return cache
        except CacheError as error:
            print(f"making {path} again: {error}")
    return build_metric_cache(root, maps, of, path, workers, allow_missing, rules=rules, wait=True)


def own_cache_place(split: Split, root: Path, rules: SceneRules) -> tuple[Path, Split]:
    """Where the cache of a split's scenes lies below ``root``, there or not, and of which split that one is."""
    own = root / "metric_cache"
    path = own / f"{split.name}{rules.suffix}"
    whole = own / f"{split.name}_all{rules.suffix}"
    if not is_named(split, root):  # lists of the same name, such as scores.csv, must not replace each other's
        stages = (split.two_stage.tokens,) if split.two_stage else ()
        content = hashlib.sha256(repr((split.data_split, split.scene_filter, *stages)).encode()).hexdigest()[:12]
        return own / f"{split.name}-{content}{rules.suffix}", split
    if (whole / "index.json").is_file():  # the demo world keeps one cache for a filtered and its unfiltered split
        return whole, load_split(f"{split.name}_all", root)
    return path, split


def hold_out(records: list[SceneRecord], logs: int) -> tuple[list[SceneRecord], list[SceneRecord]]:
    """Scenes of all but the last ``logs`` logs, and those of the last ones."""
    names = sorted({r.log_name for r in records})
    if not 0 <= logs < len(names):
        raise ValueError(
            f"validation_logs is {logs}, but the scenes lie in {len(names)} logs and one must remain to train on: ask "
            f"for fewer, such as --validation-logs {min(1, len(names) - 1)}"
        )
    last = set(names[len(names) - logs :])
    return [r for r in records if r.log_name not in last], [r for r in records if r.log_name in last]
