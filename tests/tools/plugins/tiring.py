"""A metric by which every plan is worse than all before it: a run that learns from it falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from navsim_bridge.metrics.config import MetricConfig
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.registry import METRICS
from navsim_bridge.metrics.scenes import RecordedPlans
from navsim_bridge.pdm.formula import Column
from navsim_bridge.splits.scenes import SceneRecord


@dataclass(frozen=True)
class TiringConfig(MetricConfig):
    name: str = "tiring"  # the name in the registry


@dataclass(frozen=True)
class Fatigue:
    found: Tensor  # (scene, candidate)


class Tiring(Metric[TiringConfig]):
    Config = TiringConfig
    version = "tiring"
    columns = (Column("score", "tiring", "less with every call"),)

    def __init__(self, config: TiringConfig | None = None) -> None:
        super().__init__(config)
        self.calls = count(1)

    def pack(self, scenes: Sequence[SceneRecord]) -> RecordedPlans:
        return RecordedPlans.of(scenes)

    def terms(self, scenes: RecordedPlans, plans: Tensor) -> Fatigue:
        return Fatigue(torch.full(plans.shape[:2], -float(next(self.calls)), dtype=torch.float64))

    def values(self, terms: Fatigue) -> dict[str, Tensor]:
        return {"score": terms.found}


METRICS["tiring"] = Tiring
