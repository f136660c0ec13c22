"""EPDMS: the extended PDM score of NAVSIM v2 (devkit 2.1.2), in one stage or two.

One of its terms compares a plan with the plan for the frame before. The devkit leaves the term out of the mean of one
stage where there is no such frame, and so does this: an evaluation has the term wherever both frames are among its
scenes, the reward, which sees one scene at a time, nowhere. On a split of two stages see `TwoStageEPDMS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.metrics.config import EPDMSConfig, MetricConfig
from navsim_bridge.metrics.epdms_inputs import SYNTHETIC_TOKEN
from navsim_bridge.metrics.explain_epdms import reasons
from navsim_bridge.metrics.metric import Metric, Result
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.metrics.two_stage import DEVKIT_SPLITS, TwoStageScores, aggregate, fingerprint, pair_comfort
from navsim_bridge.pdm.epdms import EPDMSTerms, epdms_scores, epdms_terms
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, Column
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.terms.comfort import two_frame_extended_comfort
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.two_stage import Group
from navsim_bridge.traffic.registry import make_traffic

ADJACENT = (0.05, 0.55)
"""[s] A frame of the same log this much earlier is the previous frame of two-frame comfort."""
STAGES = ("_stage_one", "_stage_two")
"""Of the devkit's columns, and of the rows of both stages."""
RECORDED, REACTIVE = "log_replay", "idm"
_NAMED = 5  # tokens without a score that are named


class EPDMS(Metric[EPDMSConfig]):
    """EPDMS of NAVSIM v2 in one stage; recorded traffic unless the config says otherwise."""

    Config: ClassVar[type[MetricConfig]] = EPDMSConfig
    version = NAVSIM_V2.name
    columns: ClassVar[tuple[Column, ...]] = (*EXTENDED_PDM_SCORE, Column("score", "EPDMS", "the extended PDM score"))
    scene_rules = NAVSIM_V2
    any_sampling = True
    average_row = "average_all_frames"
    stages: ClassVar[int] = 1

    def __init__(self, config: EPDMSConfig | None = None) -> None:
        super().__init__(config)
        self._traffic = make_traffic(self.traffic)

    @property
    def traffic(self) -> str:
        """What moves other vehicles."""
        return self.config.traffic or RECORDED

    @property
    def options(self) -> dict[str, Any]:
        """Those that are not what they always were."""
        found = super().options
        return {name: value for name, value in found.items() if name != "traffic" or not self.as_recorded}

    @property
    def as_recorded(self) -> bool:
        """Whether it is EPDMS of one stage in recorded traffic, as what came before any other was."""
        return self.stages == 1 and self._traffic.as_recorded

    @property
    def about(self) -> dict[str, Any]:
        """Version and options, for provenance."""
        if self.as_recorded:
            return super().about
        stages = "two stages" if self.stages == 2 else "one stage"
        return {**super().about, "name": f"EPDMS v2 (navsim 2.1.2, {stages}, traffic {self.traffic})"}

    @property
    def needs_traffic(self) -> bool:
        """Unless it is recorded."""
        return not self._traffic.as_recorded

    @property
    def setting(self) -> dict[str, Any]:
        """Traffic and stages."""
        return {"traffic": self.traffic, "stages": self.stages}

    def on(self, split: Split) -> Metric[Any]:
        """On a split of two stages `TwoStageEPDMS`, whose traffic is idm unless the config says otherwise.

        Raises ValueError for a split whose groups the server keeps.
        """
        if split.two_stage is None:
            return self
        if split.two_stage.groups is None:
            raise ValueError(
                f"split {split.name}: the server keeps its groups; plans for it can be submitted, not scored"
            )
        return TwoStageEPDMS(self.config, split.two_stage.groups, split.name)

    def pack(self, scenes: Sequence[MetricScene]) -> EPDMSBatch:
        """Scenes as tensors."""
        return EPDMSBatch.from_scenes(scenes)

    def terms(self, scenes: EPDMSBatch, plans: Tensor) -> EPDMSTerms:
        """Every plan's sub-scores before the human filter."""
        traffic = None if self._traffic.as_recorded else self._traffic.simulate
        return epdms_terms(scenes, plans, traffic=traffic, interval=self.interval)

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
        comfort = two_frame_extended_comfort(terms.motion, terms.motion[previous], seconds)
        return replace(self.means(self.values(terms, comfort)), notes=dead_ends(records, terms))


class TwoStageEPDMS(EPDMS):
    """EPDMS of a split of two stages, as the devkit's script of that name: what `aggregate` makes of all tokens.

    A row has the columns of its own stage, and the summary the means of both; its ``score`` is not their product.
    """

    average_row = "extended_pdm_score_combined"
    stages = 2

    def __init__(self, config: EPDMSConfig | None, groups: Sequence[Group], split: str) -> None:
        """``groups``: of the split of that name."""
        super().__init__(replace(config or EPDMSConfig(), traffic=(config and config.traffic) or REACTIVE))
        self.groups, self.split = tuple(groups), split

    @property
    def result_columns(self) -> tuple[Column, ...]:
        """The devkit's: sub-scores of either stage, and the score."""
        *subs, score = self.columns
        of_stages = [replace(c, name=c.name + stage, label=f"{c.label} {number}")
                     for number, stage in enumerate(STAGES, 1) for c in subs]  # fmt: skip
        return (*of_stages, score)

    @property
    def title(self) -> str:
        """'two-stage EPDMS (human filter v2.1.2, traffic idm)'."""
        return f"two-stage {super().title}"

    def finish(self, records: Sequence[SceneRecord], terms: EPDMSTerms) -> Result:
        """Compare the plans of each pair, weigh the follow-ups, and average."""
        tokens = [r.token for r in records]
        times = np.array([r.times_us[r.now] for r in records], dtype=np.int64)
        comfort = pair_comfort(self.groups, tokens, terms.motion[:, 0], times)
        scored = self.values(terms, comfort[:, None])
        # a score without the pair's comfort is none of this metric, as in the devkit
        scored["score"] = torch.where(comfort[:, None].isnan(), torch.nan, scored["score"])
        values = {name: column[:, 0].cpu().numpy() for name, column in scored.items()}
        found = aggregate(self.groups, tokens, values, terms.end[:, 0].cpu().numpy(), terms.start.cpu().numpy())

        rows = np.full((len(records), len(self.result_columns)), np.nan)
        count = len(self.columns) - 1
        table = np.stack(list(values.values()), axis=-1)
        synthetic = np.array([len(token) == SYNTHETIC_TOKEN for token in tokens], dtype=bool)
        for stage, of_stage in enumerate((~synthetic, synthetic)):
            rows[of_stage, stage * count : (stage + 1) * count] = table[of_stage, :-1]
        rows[:, -1] = table[:, -1]
        parts = {
            f"extended_pdm_score{stage}": self._row({stage: means}, means["score"])
            for stage, means in zip(STAGES, (found.stage_one, found.stage_two))
        }
        both = dict(zip(STAGES, (found.stage_one, found.stage_two)))
        return Result(
            rows,
            self._row(both, found.combined["score"]),
            parts,
            tuple(self._caveats(found)),
            dead_ends(records, terms),
        )

    def _row(self, stages: Mapping[str, Mapping[str, float]], score: float) -> dict[str, float]:
        """A row of the summary; NaN for a stage that it is not of."""
        subs = [column.name for column in self.columns[:-1]]
        values = {name + stage: stages.get(stage, {}).get(name, np.nan) for stage in STAGES for name in subs}
        return {**values, "score": score}

    def _caveats(self, found: TwoStageScores) -> Iterator[str]:
        if found.excluded:
            groups = [f"{token} ({count} group{'s' * (count != 1)})" for token, count in found.lacking.items()]
            more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
            yield (
                f"{len(found.excluded)} of {len(self.groups)} groups are left out, because {len(groups)} of their "
                f"tokens have no score: {', '.join(groups[:_NAMED])}{more}"
            )
        if self.split in DEVKIT_SPLITS and fingerprint(self.groups) != DEVKIT_SPLITS[self.split]:
            yield "its groups are not those of the devkit's split of that name"

    def describe(
        self, summary: Mapping[str, float | None], parts: Mapping[str, Mapping[str, float | None]]
    ) -> list[str]:
        """The score, and a line on each stage."""
        *subs, score = self.columns
        lines = [replace(score, label=self.title).shown(value) if (value := summary.get("score")) is not None else "-"]
        for stage in STAGES:
            means = parts.get(f"extended_pdm_score{stage}", {})
            shown = [c.shown(value) for c in subs if (value := means.get(c.name + stage)) is not None]
            total = [score.shown(value)] if (value := means.get("score")) is not None else []
            lines.append(f"{stage.replace('_', ' ').strip()}: {'  '.join([*shown, *total])}")
        return lines


def dead_ends(records: Sequence[SceneRecord], terms: EPDMSTerms) -> tuple[str, ...]:
    """What to say of vehicles that had no way left: nothing where none did."""
    rows = terms.dead_ends[:, 0].nonzero().flatten().tolist()
    if not rows:
        return ()
    return (
        f"in {len(rows)} of {len(records)} scenes a vehicle had no way left (first {records[rows[0]].token}), on which "
        "the devkit may stop with an error: it was moved as on a free road",
    )


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
