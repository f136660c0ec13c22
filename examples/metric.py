"""A metric to copy: how far plans end up from where the recorded driver was. What each part is for stands in
navsim_bridge/metrics/metric.py.

python tools/evaluate.py --plugin examples/metric.py --metric ade --agent stand_still --split navtest --out runs/ade
python tools/rl_finetune.py --plugin examples/metric.py --metric ade --split navtest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dpvla.config import Positive
from navsim_bridge.metrics.config import MetricConfig
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.registry import METRICS
from navsim_bridge.metrics.scenes import RecordedPlans
from navsim_bridge.pdm.formula import Column
from navsim_bridge.splits.scenes import SceneRecord


@dataclass(frozen=True)
class DisplacementConfig(MetricConfig):
    """Options of the metric: --metric.scale."""

    name: str = "ade"  # the name in the registry
    scale: Positive = 2.0  # [m] of average displacement that leave a score of 1/e


@dataclass(frozen=True)
class Displacements:
    """What is found of every plan."""

    meters: Tensor  # (scene, candidate, 8) from the recorded position at each pose


class Displacement(Metric[DisplacementConfig]):
    """Average and final displacement; a reward, because its ``score`` falls as they grow."""

    Config = DisplacementConfig
    version = "displacement from the recorded driver"
    columns = (
        Column("ade", "ADE", "average displacement from the recorded driver", unit="m"),
        Column("fde", "FDE", "displacement at 4 s", unit="m"),
        Column("score", "exp(-ADE)", "closeness to the recorded driver"),
    )

    def pack(self, scenes: Sequence[SceneRecord]) -> RecordedPlans:
        """The recorded plans alone: without ``scene_rules`` a scene is its record."""
        return RecordedPlans.of(scenes)

    def terms(self, scenes: RecordedPlans, plans: Tensor) -> Displacements:
        """Compare plans (scene, candidate, 8, 3) with the recorded one."""
        return Displacements((plans[..., :2] - scenes.plans[:, None, :, :2]).norm(dim=-1))

    def values(self, terms: Displacements) -> dict[str, Tensor]:
        """Every column."""
        average = terms.meters.mean(-1)
        return {"ade": average, "fde": terms.meters[..., -1], "score": (-average / self.config.scale).exp()}


METRICS["ade"] = Displacement
