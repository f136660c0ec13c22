"""EPDMS: the extended PDM score of NAVSIM v2 (devkit 2.1.2), one stage, log-replay traffic.

One of its terms compares a plan with the plan for the frame before. The devkit leaves the term out of the mean where
there is no such frame, and so does this: an evaluation has the term wherever both frames are among its scenes, the
reward, which sees one scene at a time, nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from navsim_bridge.metrics.config import EPDMSConfig, MetricConfig
from navsim_bridge.metrics.epdms_inputs import SYNTHETIC_TOKEN
from navsim_bridge.metrics.explain_epdms import reasons
from navsim_bridge.metrics.metric import Metric, Result
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.pdm.epdms import EPDMSTerms, epdms_scores, epdms_terms
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, Column
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.terms.comfort import two_frame_extended_comfort
from navsim_bridge.splits.scenes import SceneRecord

ADJACENT = (0.05, 0.55)
"""[s] A frame of the same log this much earlier is the previous frame of two-frame comfort."""


class EPDMS(Metric[EPDMSConfig]):
    """EPDMS of NAVSIM v2: one stage, log-replay traffic."""

    Config: ClassVar[type[MetricConfig]] = EPDMSConfig
    version = NAVSIM_V2.name
    columns: ClassVar[tuple[Column, ...]] = (*EXTENDED_PDM_SCORE, Column("score", "EPDMS", "the extended PDM score"))
    scene_rules = NAVSIM_V2
    average_row = "average_all_frames"

    def pack(self, scenes: Sequence[MetricScene]) -> EPDMSBatch:
        """Scenes as tensors."""
        return EPDMSBatch.from_scenes(scenes)

    def terms(self, scenes: EPDMSBatch, plans: Tensor) -> EPDMSTerms:
        """Every plan's sub-scores before the human filter."""
        return epdms_terms(scenes, plans)

    def values(self, terms: EPDMSTerms, extended_comfort: Tensor | None = None) -> dict[str, Tensor]:
        """Sub-scores after the human filter, and the score; NaN for an ``extended_comfort`` that is not given."""
        scores = epdms_scores(terms, self.config.human_filter, extended_comfort)
        return {column.name: getattr(scores, column.name) for column in self.columns}

    def explain(self, scenes: EPDMSBatch, plans: Tensor, terms: EPDMSTerms) -> list[list[str]]:
        """The time or bound behind every lost point."""
        return reasons(terms)

    def finish(self, records: Sequence[SceneRecord], terms: EPDMSTerms) -> Result:
        """Compare each plan with the one of the frame before it, where that is among the records."""
        previous, seconds = previous_frames(records)
        return self.means(self.values(terms, two_frame_extended_comfort(terms.motion, terms.motion[previous], seconds)))


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
