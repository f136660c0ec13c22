"""A metric by which plans get worse from call to call: a run that is judged by it falls."""

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
        places = torch.arange(plans.shape[1], dtype=torch.float64)
        return Fatigue((-next(self.calls) - 0.1 * places).expand(plans.shape[:2]))

    def values(self, terms: Fatigue) -> dict[str, Tensor]:
        return {"score": terms.found}


METRICS["tiring"] = Tiring
