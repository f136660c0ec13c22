"""The two metrics an agent can be evaluated with, behind one interface: PDMS (NAVSIM v1) and EPDMS (v2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.metric_cache.builder import MetricName
from navsim_bridge.metric_cache.cache import METRIC
from navsim_bridge.metric_cache.epdms_inputs import SYNTHETIC_TOKEN
from navsim_bridge.metrics.explain_epdms import reasons
from navsim_bridge.metrics.explain_pdms import explain
from navsim_bridge.metrics.reward import SUB_SCORES
from navsim_bridge.pdm import (
    EPDMS_SUB_SCORES,
    EPDMSBatch,
    EPDMSTerms,
    MetricScene,
    SceneBatch,
    combine,
    epdms_terms,
    score_plans,
    two_frame_extended_comfort,
)
from navsim_bridge.pdm.chunks import join
from navsim_bridge.pdm.epdms import METRIC_V2, HumanFilter
from navsim_bridge.splits.scenes import SceneRecord

ADJACENT = (0.05, 0.55)
"""[s] A frame of the same log this much earlier is the previous frame of two-frame comfort."""


@dataclass(frozen=True)
class SceneScore:
    """What one scene adds to an evaluation."""

    values: NDArray[np.float64]  # (column,) of the metric's columns; NaN where other frames decide
    reason: str  # what cost the points; empty when nothing did
    terms: EPDMSTerms | None = None  # what EPDMS compares with the next frame


class Metric(Protocol):
    """Scores plans, one a scene."""

    @property
    def key(self) -> MetricName:
        """The option that chooses it; its scenes are cached under this name."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Sub-scores in the devkit's names and order; the last is the score."""

    @property
    def average_row(self) -> str:
        """What the devkit calls the row of averages."""

    @property
    def about(self) -> dict[str, Any]:
        """Name, version and options, for provenance."""

    def score(self, scenes: Sequence[MetricScene], plans: Tensor, device: torch.device) -> list[SceneScore]:
        """Score plans (scene, 8, 3)."""

    def finish(self, records: Sequence[SceneRecord], scored: Mapping[int, SceneScore]) -> NDArray[np.float64]:
        """Values (record, column) once all scenes are scored; NaN where ``scored`` lacks the record's index."""


class PDMS:
    """The PDM score of NAVSIM v1."""

    key: MetricName = "pdms"
    columns = SUB_SCORES
    average_row = "average"

    @property
    def about(self) -> dict[str, Any]:
        """Name, version and options, for provenance."""
        return {"name": METRIC}

    def score(self, scenes: Sequence[MetricScene], plans: Tensor, device: torch.device) -> list[SceneScore]:
        """Score plans (scene, 8, 3) and explain what they lost."""
        batch, plans = SceneBatch.from_scenes(scenes).to(device), plans[:, None].to(device)
        scores = score_plans(batch, plans)
        table = torch.stack([getattr(scores, name)[:, 0].double() for name in self.columns], dim=-1).cpu().numpy()
        explained = explain(batch, plans, scores)
        return [SceneScore(row, why[0].text) for row, why in zip(table, explained)]

    def finish(self, records: Sequence[SceneRecord], scored: Mapping[int, SceneScore]) -> NDArray[np.float64]:
        """Scenes do not influence each other."""
        values = np.full((len(records), len(self.columns)), np.nan)
        for index, score in scored.items():
            values[index] = score.values
        return values


@dataclass(frozen=True)
class EPDMS:
    """EPDMS of NAVSIM v2: one stage, log-replay traffic."""

    human_filter: HumanFilter = "v2.1.2"
    key: ClassVar[MetricName] = "epdms"
    columns = EPDMS_SUB_SCORES
    average_row = "average_all_frames"

    @property
    def about(self) -> dict[str, Any]:
        """Name, version and options, for provenance."""
        return {"name": METRIC_V2, "human_filter": self.human_filter}

    def score(self, scenes: Sequence[MetricScene], plans: Tensor, device: torch.device) -> list[SceneScore]:
        """Score plans (scene, 8, 3); the two-frame term and the score follow in ``finish``."""
        terms = epdms_terms(EPDMSBatch.from_scenes(scenes).to(device), plans[:, None].to(device))
        table = self._table(combine(terms, self.human_filter))
        whys = reasons(terms)
        fields = {f.name: getattr(terms, f.name).cpu() for f in dataclasses.fields(terms)}
        return [
            SceneScore(row, whys[i][0], EPDMSTerms(**{name: value[i : i + 1] for name, value in fields.items()}))
            for i, row in enumerate(table)
        ]

    def finish(self, records: Sequence[SceneRecord], scored: Mapping[int, SceneScore]) -> NDArray[np.float64]:
        """Compare each plan with the one of the frame before it, where that is among the scored ones."""
        values = np.full((len(records), len(self.columns)), np.nan)
        order = sorted(scored)
        if not order:
            return values
        terms = join([found for i in order if (found := scored[i].terms) is not None], dim=0)
        previous, seconds = previous_frames([records[i] for i in order])
        comfort = two_frame_extended_comfort(terms.motion, terms.motion[previous], seconds)
        values[order] = self._table(combine(terms, self.human_filter, comfort))
        return values

    def _table(self, scores: Any) -> NDArray[np.float64]:
        return torch.stack([getattr(scores, name)[:, 0] for name in self.columns], dim=-1).cpu().numpy()


def previous_frames(records: Sequence[SceneRecord]) -> tuple[Tensor, Tensor]:
    """For each record, which one is the frame before it and how many seconds earlier: (record,) each.

    As in the devkit: the record before it in its log, if that is less than 0.55 s earlier; synthetic scenes have
    none. Without a previous frame the seconds are NaN.
    """
    index = torch.zeros(len(records), dtype=torch.int64)
    seconds = torch.full((len(records),), torch.nan, dtype=torch.float64)
    times = [int(r.times_us[r.now]) for r in records]
    original = [i for i, r in enumerate(records) if len(r.token) != SYNTHETIC_TOKEN]
    order = sorted(original, key=lambda i: (records[i].data_split, records[i].log_name, times[i]))
    for before, after in pairwise(order):
        one, two = records[before], records[after]
        apart = (times[after] - times[before]) * 1e-6
        if (one.data_split, one.log_name) == (two.data_split, two.log_name) and ADJACENT[0] < apart < ADJACENT[1]:
            index[after], seconds[after] = before, apart
    return index, seconds
