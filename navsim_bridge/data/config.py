"""Options of what is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpvla.config import Whole, Workers
from navsim_bridge.files.roots import DataAndMapOptions
from navsim_bridge.metrics.config import PDMSConfig
from navsim_bridge.metrics.registry import AnyMetric


@dataclass(frozen=True)
class DataConfig(DataAndMapOptions):
    """Scenes to train on."""

    split: str = "navtrain"  # name, or a YAML, CSV or Parquet file that lists its scenes
    metric: AnyMetric = field(default_factory=PDMSConfig)  # what plans are scored by: reward and validation
    # what tools/cache_metrics.py wrote (default: one below DATA_ROOT/metric_cache, made if absent)
    metric_cache: str | None = None
    image_cache: str | None = None  # folder for images decoded once at the model's size (default: decode every time)
    image_store: str | None = None  # what tools/pack_images.py wrote, instead of image_cache
    validation_logs: Whole = 0  # the last so many logs of the split are held out
    workers: Workers = 0  # processes for reading and caching (0: one per core)
    allow_missing: bool = False  # train on what there is, and say so, when something is missing
    plugin: tuple[str, ...] = ()  # your modules (or .py files) that add algorithms, encoders, metrics, strategies
