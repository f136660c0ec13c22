"""What the PDM score needs of a scene: built from logs and maps or read from official caches, stored, read in bulk."""

from navsim_bridge.metric_cache.builder import build_scenes
from navsim_bridge.metric_cache.cache import MetricCache, build_metric_cache
from navsim_bridge.metric_cache.container import CacheError
from navsim_bridge.metric_cache.convert import convert_official_cache
from navsim_bridge.metric_cache.merging import merge_caches

__all__ = [
    "CacheError", "MetricCache", "build_metric_cache", "build_scenes", "convert_official_cache",
    "merge_caches",
]  # fmt: skip
