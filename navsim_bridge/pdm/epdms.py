"""EPDMS, the PDM score of NAVSIM v2 (devkit 2.1.2), of many plans in many scenes.

batch = EPDMSBatch.from_scenes(scenes)                  # MetricScenes that carry v2
terms = epdms_terms(batch, plans)                       # plans (scene, candidate, 8, 3)
scores = epdms_scores(terms, human_filter="v2.1.2")     # .score (scene, candidate)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.human_filter import HumanFilter
from navsim_bridge.pdm.chunks import PER_SCENE, score_in_chunks
from navsim_bridge.pdm.encounters import Traffic, encounters
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, total
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import check_plans, simulate_plans
from navsim_bridge.pdm.terms.areas import EgoAreas, drivable_area_compliance, ego_areas
from navsim_bridge.pdm.terms.comfort import history_comfort_flags, motion_of
from navsim_bridge.pdm.terms.lanes import lane_keeping
from navsim_bridge.pdm.terms.lights import traffic_light_compliance
from navsim_bridge.pdm.terms.progress import (
    driving_direction_compliance,
    normalize_raw_progress,
    progress_along_centerline,
)

EXTENDED_COMFORT = next(column.name for column in EXTENDED_PDM_SCORE if column.optional)
TERMS = tuple(column.name for column in EXTENDED_PDM_SCORE if not column.optional)
"""The sub-scores of one frame, in the devkit's order."""
MULTIPLIERS = tuple(column.name for column in EXTENDED_PDM_SCORE if column.multiplies)


@dataclass(frozen=True)
class EPDMSTerms:
    """Sub-scores of plans before the human filter, and what explains them; float64 unless said otherwise."""

    values: Tensor  # (scene, candidate, 8) columns of TERMS
    human: Tensor = field(metadata=PER_SCENE)  # (scene, 8) of the recorded driver; NaN in synthetic scenes
    motion: Tensor  # (scene, candidate, 41, 3) of the simulated plans, for two_frame_extended_comfort
    end: Tensor  # (scene, candidate, 2) global position of the plan's last pose [m], as planned
    start: Tensor = field(metadata=PER_SCENE)  # (scene, 2) global position of the rear axle at t = 0 [m]

    progress_raw: Tensor  # (scene, candidate) [m] along the centerline, before any factor
    reference_progress_raw: Tensor = field(metadata=PER_SCENE)  # (scene,) [m]
    reference_multiplier: Tensor  # (scene, candidate) product of the reference's multipliers, in the plan's traffic
    collision_time_index: Tensor  # (scene, candidate) 0..40 of the first at-fault contact, inf if none
    ttc_time_index: Tensor  # (scene, candidate) 0..31 of the first infraction, inf if none
    comfort_flags: Tensor  # (scene, candidate, 6) bool, order of comfort.BOUNDS
    ego_areas: Tensor  # (scene, candidate, 41, 3) bool: multiple lanes, non-drivable, oncoming
    dead_ends: Tensor  # (scene, candidate) int64 how often a vehicle had no way left, see `ObjectBatch`


@dataclass(frozen=True)
class EPDMSScores:
    """Columns named as in the devkit, after the human filter; (scene, candidate) float64."""

    no_at_fault_collisions: Tensor  # 0, 0.5 or 1
    drivable_area_compliance: Tensor  # 0 or 1
    driving_direction_compliance: Tensor  # 0, 0.5 or 1
    traffic_light_compliance: Tensor  # 0 or 1
    ego_progress: Tensor  # in [0, 1], of the further of reference and candidate
    time_to_collision_within_bound: Tensor  # 0 or 1
    lane_keeping: Tensor  # 0 or 1
    history_comfort: Tensor  # 0 or 1
    two_frame_extended_comfort: Tensor  # 0 or 1; NaN without a previous frame
    pdm_score: Tensor  # the devkit's column of that name: one frame alone
    score: Tensor  # EPDMS; without a previous frame equal to score_without_ec
    score_without_ec: Tensor  # EPDMS without the two-frame term
    human_filter: HumanFilter


@torch.no_grad()
def epdms_terms(
    scenes: EPDMSBatch,
    plans: Tensor | NDArray[Any],
    *,
    traffic: Traffic | None = None,
    interval: float | None = None,
    max_plans_in_flight: int | None = None,
) -> EPDMSTerms:
    """Sub-scores of every plan, each scored as if it were alone with the reference, before the human filter.

    In traffic that reacts each plan has its own objects. The reference is scored among those of the plan, as in the
    devkit, the recorded driver among those that react to him.

    Args:
        scenes: the scenes, on the device to compute on.
        plans: (scene, candidate, 8, 3) as for ``score_plans``.
        traffic: where objects are while the ego drives; None: where ``scenes`` has them.
        interval: of poses [s], where plans are sampled otherwise, as for ``score_plans``.
        max_plans_in_flight: bound on plans computed at once, as for ``score_plans``.

    Raises:
        TypeError: plans that are neither tensor nor array.
        ValueError: wrong shapes; NaN, infinite or absurdly far plans (names scene token and candidate); no interval;
            scenes without what ``traffic`` needs.
    """
    plans = check_plans(scenes.scenes, plans, interval)
    chunk = partial(_terms_of_chunk, traffic=traffic, interval=interval)
    return score_in_chunks(chunk, scenes, plans, max_plans_in_flight)


def _terms_of_chunk(scenes: EPDMSBatch, plans: Tensor, traffic: Traffic | None, interval: float | None) -> EPDMSTerms:
    batch, last = scenes.scenes, plans.shape[1]
    # index 0 is the reference, which only sets the scale of progress; the last one the recorded driver
    states = simulate_plans(batch, plans, interval, recorded=scenes.human_plans[:, None])
    areas = ego_areas(batch, states)
    met = encounters(scenes, states, areas, traffic)
    off_route = areas._replace(oncoming=areas.oncoming & ~areas.center_in_intersection)
    on_map = torch.stack(
        (
            drivable_area_compliance(areas),
            driving_direction_compliance(states, off_route),
            traffic_light_compliance(scenes, states),
        ),
        dim=-1,
    )
    collision, no_light = met.collision, (~met.false_light).to(torch.float64)
    multipliers = torch.cat((collision[..., None], on_map[:, 1:]), dim=-1)
    multipliers[..., -1] *= no_light
    reference = on_map[:, :1].prod(-1) * met.reference
    product, raw = multipliers.prod(-1), progress_along_centerline(batch, states)

    own_states, own_areas = states[:, 1:], EgoAreas(*(flag[:, 1:] for flag in areas))
    comfortable = history_comfort_flags(scenes, own_states[:, :last])
    comfort = torch.ones_like(raw[:, 1:])  # the devkit judges the recorded driver without its past: always comfortable
    comfort[:, :last] = comfortable.all(-1).to(torch.float64)
    progress = torch.ones_like(raw[:, 1:])  # and it is its own reference
    scale = torch.maximum((raw[:, 1:] * product)[:, :last], raw[:, :1] * reference)
    progress[:, :last] = normalize_raw_progress(raw[:, 1:-1], scale)
    weighted = torch.stack((progress, met.ttc, lane_keeping(batch, own_states, own_areas), comfort), dim=-1)
    values = torch.cat((multipliers, weighted), dim=-1)
    return EPDMSTerms(
        values=values[:, :last],
        human=torch.where(scenes.has_human[:, None], values[:, last], torch.nan),
        motion=motion_of(own_states[:, :last]),
        end=_positions(batch, plans[:, :, -1]),
        start=batch.origin.clone(),
        progress_raw=raw[:, 1:-1],
        reference_progress_raw=raw[:, 0],
        reference_multiplier=reference,
        collision_time_index=met.collision_time_index[:, :last],
        ttc_time_index=met.ttc_time_index[:, :last],
        comfort_flags=comfortable,
        ego_areas=torch.stack(own_areas[:3], dim=-1)[:, :last],
        dead_ends=met.dead_ends[:, :last],
    )


def _positions(scenes: SceneBatch, poses: Tensor) -> Tensor:
    """Global positions (scene, candidate, 2) of poses (scene, candidate, 3) in the ego frame."""
    heading = scenes.ego_state[:, 2, None]
    x, y, cos, sin = poses[..., 0], poses[..., 1], heading.cos(), heading.sin()
    return torch.stack((cos * x - sin * y, sin * x + cos * y), dim=-1) + scenes.origin[:, None]


def epdms_scores(
    terms: EPDMSTerms, human_filter: HumanFilter = "v2.1.2", extended_comfort: Tensor | None = None
) -> EPDMSScores:
    """Apply the human filter and weigh the sub-scores.

    In release 2.1.2 the filter sets sub-scores to one that the recorded driver fails, but only in the columns: the
    final score is made from the values before it, while ``pdm_score`` becomes one when the driver's is zero. "fixed"
    (the devkit's main branch) makes the final score from the filtered values and leaves ``pdm_score`` alone.

    Args:
        terms: from ``epdms_terms``.
        human_filter: "v2.1.2", "fixed", or "off".
        extended_comfort: (scene, candidate) from ``two_frame_extended_comfort``, NaN where there is no previous
            frame; None: nowhere.
    """
    if human_filter not in get_args(HumanFilter):
        raise ValueError(f"human_filter must be one of {', '.join(get_args(HumanFilter))}, found {human_filter!r}")
    if extended_comfort is None:
        extended_comfort = torch.full_like(terms.values[..., 0], torch.nan)
    filtered = terms.values
    if human_filter != "off":
        filtered = torch.where((terms.human == 0)[:, None], 1.0, terms.values)
    pdm_score = _total(terms.values, None)
    if human_filter == "v2.1.2":
        human_failed = _total(terms.human, None) == 0
        pdm_score = torch.where(human_failed[:, None], 1.0, pdm_score)
    weighed = filtered if human_filter == "fixed" else terms.values
    return EPDMSScores(
        **dict(zip(TERMS, filtered.unbind(-1))),
        two_frame_extended_comfort=extended_comfort,
        pdm_score=pdm_score,
        score=_total(weighed, extended_comfort),
        score_without_ec=_total(weighed, None),
        human_filter=human_filter,
    )


def _total(values: Tensor, extended_comfort: Tensor | None) -> Tensor:
    """EPDMS (...) of sub-scores (..., 8), columns of TERMS."""
    named = dict(zip(TERMS, values.unbind(-1)))
    if extended_comfort is not None:
        named[EXTENDED_COMFORT] = extended_comfort
    return total(EXTENDED_PDM_SCORE, named)
