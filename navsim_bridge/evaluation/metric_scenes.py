"""Where the scenes come from that plans are scored in: a metric cache, the logs, or the recordings themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navsim_bridge.metric_cache.builder import scene_builder
from navsim_bridge.metric_cache.cache import MetricCache
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, SceneRules
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scenes import SceneRecord, by_log

LoadScenes = Callable[[Sequence[SceneRecord]], Sequence[Any]]
"""From records to scenes as the metric takes them."""


@dataclass(frozen=True)
class _FromCache:
    cache: MetricCache

    def __call__(self, records: Sequence[SceneRecord]) -> list[MetricScene]:
        return self.cache.load([r.token for r in records])


def scenes_from_cache(cache: MetricCache) -> LoadScenes:
    """Metric scenes from a cache; a missing token raises CacheError."""
    return _FromCache(cache)


def recorded_scenes(records: Sequence[SceneRecord]) -> Sequence[SceneRecord]:
    """The records themselves: what a metric without scene rules is scored in."""
    return records


class ScenesFromLogs:
    """Metric scenes built on the way, a log at a time; records of one log should come together."""

    def __init__(
        self,
        records: Sequence[SceneRecord],
        data_root: Path | str,
        maps_root: Path | str,
        rules: SceneRules = NAVSIM_V1,
    ) -> None:
        """``records``: all scenes of the split, since scenes depend on the ones before them in their log."""
        self._of_log, self._roots, self._rules = by_log(records), (data_root, maps_root), rules
        self._log: tuple[str, str] | None = None
        self._built: dict[str, MetricScene] = {}
        self._failed: dict[str, ValueError] = {}

    def __call__(self, records: Sequence[SceneRecord]) -> list[MetricScene]:
        """The scenes of ``records``; raises the ValueError of the first that cannot be built."""
        scenes: dict[str, MetricScene] = {}
        for log, wanted in by_log(records).items():
            self._build(log)
            for record in wanted:
                if record.token in self._failed:
                    raise self._failed[record.token]
                scenes[record.token] = self._built[record.token]
        return [scenes[r.token] for r in records]

    def _build(self, log: tuple[str, str]) -> None:
        if log != self._log:
            of_log = self._of_log[log]
            builder = scene_builder(of_log, *self._roots, self._rules)
            self._failed = {}
            self._built = {scene.token: scene for scene in builder.build(of_log, failed=self._failed)}
            self._log = log
