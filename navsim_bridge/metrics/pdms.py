"""PDMS: the PDM score of NAVSIM v1 (devkit 1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from navsim_bridge.metrics.config import MetricConfig, PDMSConfig
from navsim_bridge.metrics.explain_pdms import explain
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.scene_rules import NAVSIM_V1
from navsim_bridge.pdm.formula import PDM_SCORE, Column
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import PDMScores, score_plans


class PDMS(Metric[PDMSConfig]):
    """The PDM score of NAVSIM v1."""

    Config: ClassVar[type[MetricConfig]] = PDMSConfig
    version = NAVSIM_V1.name
    columns: ClassVar[tuple[Column, ...]] = (*PDM_SCORE, Column("score", "PDMS", "the PDM score"))
    scene_rules = NAVSIM_V1
    any_sampling = True

    def pack(self, scenes: Sequence[MetricScene]) -> SceneBatch:
        """Scenes as tensors."""
        return SceneBatch.from_scenes(scenes)

    def terms(self, scenes: SceneBatch, plans: Tensor) -> PDMScores:
        """Every plan's sub-scores, as in a devkit call of its own."""
        return score_plans(scenes, plans, interval=self.interval)

    def values(self, terms: PDMScores) -> dict[str, Tensor]:
        """Sub-scores and the score (scene, candidate)."""
        values = {column.name: getattr(terms, column.name) for column in self.columns[:-1]}
        return {**values, "score": self.total(values)}

    def explain(self, scenes: SceneBatch, plans: Tensor, terms: PDMScores) -> list[list[str]]:
        """The object, time, place or bound behind every lost point."""
        return [[plan.text for plan in candidates] for candidates in explain(scenes, plans, terms, self.interval)]
