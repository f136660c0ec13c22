"""What an RL run is watched with: further metrics over its roll-outs, and scenes that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dpvla.batch import RewardFunction
from dpvla.config import ConfigError
from dpvla.parallel import available_cores
from dpvla.registry import RegistryError
from dpvla.rl.config import HeldoutConfig, WatchConfig
from dpvla.rl.watching import Watched
from dpvla.sensors import Sensors
from navsim_bridge.data.config import DataConfig
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.data.image_store import ImageStore
from navsim_bridge.data.training_data import TrainingData, own_cache_place, own_metric_cache
from navsim_bridge.files.roots import data_root, maps_root
from navsim_bridge.metric_cache import CacheError, MetricCache
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.metrics.reward import MetricReward
from navsim_bridge.metrics.scenes import RecordedScenes, ScoredScenes
from navsim_bridge.splits.coverage import usable_scenes
from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names

BUILT_IN = ("pdms", "epdms")
"""Watched where nothing is said and their scenes are cached."""
GUARDED = ("comfort", "history_comfort")
"""Sub-scores that count little and that rewards are therefore known to be gained at the cost of."""
KEEP_BYTES = 1 << 30
"""Of packed scenes, for each metric that is only watched."""


@dataclass(frozen=True)
class HeldOutScenes:
    """Scenes that a run does not learn from, and what scores plans there."""

    what: str  # they are, in words that change when they do
    source: NavsimDataset
    metrics: Mapping[str, RewardFunction]  # by name; the reward's metric under ""


def refuse_vain_heldout(config: DataConfig, heldout: HeldoutConfig) -> None:
    """Raise ConfigError for a bound on the score of held-out scenes where there are none."""
    if heldout.stop_below is not None and heldout.split is None and not config.validation_logs:
        raise ConfigError(
            "heldout.stop_below needs held-out scenes: give heldout.split, or validation_logs, which holds back logs"
        )


def watched_metrics(config: DataConfig, watch: WatchConfig) -> dict[str, Metric[Any]]:
    """The metrics beside the reward's, by name; raises ConfigError for one that is not known."""
    names = BUILT_IN if watch.metrics is None else watch.metrics
    try:
        return {name: make_metric(name) for name in names if name != config.metric.name}
    except RegistryError as error:
        raise ConfigError(f"watch.metrics: {error}") from None


def open_watching(
    config: DataConfig,
    watch: WatchConfig,
    heldout: HeldoutConfig,
    data: TrainingData,
    sensors: Sensors,
    accelerator: Accelerator,
) -> tuple[Watched, HeldOutScenes | None]:
    """Find what the run on ``data`` is watched with, and say it in a line each.

    Raises:
        ConfigError: a metric that is not known, held-out scenes that are learned from, a cache that is of no use.
        FileNotFoundError, ValueError: missing or bad data.
    """
    metrics = watched_metrics(config, watch)
    with accelerator.main_process_first():
        finder = _Finder(config, watch, accelerator)
        split = load_split(config.split, finder.root, config.data_split, config.synthetic_root)
        found = {
            name: scorer
            for name, metric in metrics.items()
            if (scorer := finder.scorer(metric, split, data.source, watch.metrics is not None)) is not None
        }
        if watch.metrics is None:  # what cannot be had of the roll-outs is not asked for again
            metrics = {name: metrics[name] for name in found}
        held_out = _held_out(config, heldout, data, split, metrics, finder, sensors, watch.metrics is not None)
        finder.refuse_idle()
    if found:
        accelerator.print(f"watched beside the reward: {', '.join(found)}")
    if held_out is not None:
        accelerator.print(f"held out: {held_out.what}")
    return Watched(found, GUARDED), held_out


class _Finder:
    """Scorers of metrics over scenes, from the caches there are."""

    def __init__(self, config: DataConfig, watch: WatchConfig, accelerator: Accelerator) -> None:
        self.root, self.maps = data_root(config.data_root), maps_root(config.maps_root)
        self.workers, self.accelerator = config.workers or available_cores(), accelerator
        self.allow_missing = config.allow_missing
        self.given = [MetricCache(path) for path in watch.metric_caches]
        self.own = MetricCache(config.metric_cache) if config.metric_cache is not None else None
        self._used: set[Path] = set()

    def scorer(
        self, metric: Metric[Any], split: Split, scenes: NavsimDataset, make: bool, keep_bytes: int = KEEP_BYTES
    ) -> MetricReward | None:
        """What scores plans in ``scenes`` of a split; None, which is said, where there is no cache and none is to be
        made."""
        found = self._scenes(metric, split, scenes, make)
        if found is None:
            return None
        return MetricReward(metric, found, self.accelerator.device, scenes.tokens, keep_bytes)

    def refuse_idle(self) -> None:
        """Raise ConfigError for a cache that was given and serves nothing."""
        for cache in self.given:
            if cache.path not in self._used:
                raise ConfigError(
                    f"watch.metric_caches: {cache.path} serves nothing here: it holds scenes of {cache.metric}, of "
                    f"split {cache.index.get('split')}"
                )

    def _scenes(self, metric: Metric[Any], split: Split, scenes: NavsimDataset, make: bool) -> ScoredScenes | None:
        rules, name = metric.scene_rules, metric.config.name
        if rules is None:
            return RecordedScenes(scenes.records)
        for cache in (*self.given, *([self.own] if self.own is not None else [])):
            if cache.metric == rules.name and all(token in cache for token in scenes.tokens):
                self._used.add(cache.path)
                return cache
        if make:
            made = not self.accelerator.is_main_process
            return own_metric_cache(split, self.root, self.maps, self.workers, self.allow_missing, rules, made)
        path, _ = own_cache_place(split, self.root, rules)
        try:
            own = MetricCache(path)
            own.check_sources(self.root, self.maps)
            own.require(scenes.tokens)
        except CacheError as error:
            why = str(error) if path.exists() else f"its scenes are not cached at {path}"
            self.accelerator.print(
                f"{name} is not watched on {split.name}: {why}; --watch.metrics {name} has them made, --watch.metrics "
                "with no name after it asks for none"
            )
            return None
        return own


def _held_out(
    config: DataConfig,
    heldout: HeldoutConfig,
    data: TrainingData,
    split: Split,
    metrics: Mapping[str, Metric[Any]],
    finder: _Finder,
    sensors: Sensors,
    make: bool,
) -> HeldOutScenes | None:
    if heldout.split is not None:
        split = load_split(heldout.split, finder.root)
        cameras = camera_names(sensors.cameras)
        records, _ = usable_scenes(split, finder.root, cameras, config.allow_missing, finder.workers, (__name__,))
        _refuse_learned(split, records, data)
    elif data.validation is not None:
        records = data.validation.records
        if finder.own is not None:  # as for the reward: a cache that was given is the one that is meant
            records, _ = finder.own.usable(records, data.coverage, config.allow_missing)
    else:
        return None
    if heldout.scenes and len(records) > heldout.scenes:
        records = [records[i * len(records) // heldout.scenes] for i in range(heldout.scenes)]
    if not records:
        raise ConfigError(f"heldout.split {heldout.split} has no scenes")
    source = NavsimDataset(records, finder.root, sensors)
    if config.image_store is not None:
        source.use_store(ImageStore(config.image_store))
    elif config.image_cache is not None:
        source.cache_images(config.image_cache, progress=finder.accelerator.is_main_process)
    own = make_metric(config.metric)
    scorers = {"": finder.scorer(own, split, source, make=True)}
    scorers |= {name: finder.scorer(metric, split, source, make) for name, metric in metrics.items()}
    tokens = hashlib.sha256(" ".join(source.tokens).encode()).hexdigest()[:8]
    logs = len({r.log_name for r in records})
    what = f"{len(records)} scenes of {logs} log{'s' * (logs > 1)} of {split.name} ({tokens}), by {own.title}"
    return HeldOutScenes(what, source, {name: scorer for name, scorer in scorers.items() if scorer is not None})


def _refuse_learned(split: Split, records: Sequence[SceneRecord], data: TrainingData) -> None:
    """Raise ConfigError where a scene is learned from; scenes of its log that are not are as good as learned from."""
    learned = {r.token for r in data.source.records}
    if both := [r.token for r in records if r.token in learned]:
        raise ConfigError(
            f"heldout.split {split.name}: {len(both)} of its {len(records)} scenes are learned from, first {both[0]}; "
            "choose a split without them, or hold back logs with validation_logs"
        )
    logs = {r.log_name for r in data.source.records}
    if same := sorted({r.log_name for r in records} & logs):
        raise ConfigError(
            f"heldout.split {split.name}: {len(same)} of its logs are learned from in other scenes, first {same[0]}; "
            "choose a split of other logs, or hold back logs with validation_logs"
        )
