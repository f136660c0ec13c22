"""The PDM score v1 of many plans in many scenes, equal to one devkit call per plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.files import short
from dpvla.plan import NUM_POSES, POSE_INTERVAL
from navsim_bridge.pdm.chunks import PER_SCENE, mapped, score_in_chunks
from navsim_bridge.pdm.formula import PDM_SCORE, total
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.simulate import simulate
from navsim_bridge.pdm.terms.areas import drivable_area_compliance, ego_areas
from navsim_bridge.pdm.terms.collision import no_at_fault_collisions
from navsim_bridge.pdm.terms.comfort import comfort_flags
from navsim_bridge.pdm.terms.progress import (
    driving_direction_compliance,
    normalize_progress,
    pooled_progress_scale,
    progress_along_centerline,
    progress_scale,
)
from navsim_bridge.pdm.terms.ttc import time_to_collision

_FARTHEST_POSE = 1e7  # [m] beyond it the tracker's float64 sums lose their meaning
SHORTEST_INTERVAL = 2e-6
"""[s] The devkit cuts times to whole microseconds."""
_LONGEST_PLAN = 1e9  # [s] microseconds since 1970 of a later pose would not be exact

SUB_SCORES = (*(column.name for column in PDM_SCORE), "score")
"""The devkit's columns, score included, in its order; all are fields of ``PDMScores``."""


@dataclass(frozen=True)
class PDMScores:
    """Sub-scores named as in the devkit, and what explains them; float64 unless said otherwise."""

    no_at_fault_collisions: Tensor  # (scene, candidate) 0, 0.5 or 1
    drivable_area_compliance: Tensor  # (scene, candidate) 0 or 1
    ego_progress: Tensor  # (scene, candidate) in [0, 1]
    time_to_collision_within_bound: Tensor  # (scene, candidate) 0 or 1
    comfort: Tensor  # (scene, candidate) 0 or 1
    driving_direction_compliance: Tensor  # (scene, candidate) 0, 0.5 or 1
    score: Tensor  # (scene, candidate) in [0, 1]

    progress_raw: Tensor  # (scene, candidate) [m] along the centerline, before any factor
    progress_scale: Tensor  # (scene, candidate) [m] weighted progress of the furthest plan, which counts as one
    reference_progress_raw: Tensor = field(metadata=PER_SCENE)  # (scene,) [m]
    reference_multiplier: Tensor = field(metadata=PER_SCENE)  # (scene,) collision times drivable area
    collision_time_index: Tensor  # (scene, candidate) 0..40 of the first at-fault contact, inf if none
    ttc_time_index: Tensor  # (scene, candidate) 0..40 of the first infraction, inf if none
    comfort_flags: Tensor  # (scene, candidate, 6) bool, order as in comfort.comfort_flags
    ego_areas: Tensor  # (scene, candidate, 41, 3) bool: multiple lanes, non-drivable, oncoming

    def to(self, device: torch.device | str) -> PDMScores:
        """The same scores on another device."""
        return mapped(self, lambda tensor: tensor.to(device))


class NamedScenes(Protocol):
    """As much of packed scenes as telling what is wrong with plans takes."""

    def __len__(self) -> int: ...

    @property
    def tokens(self) -> tuple[str, ...]: ...

    @property
    def device(self) -> torch.device: ...


def check_interval(interval: float) -> float:
    """``interval``, when poses of a plan can be so many seconds apart; else ValueError."""
    number = isinstance(interval, (int, float, np.integer, np.floating)) and not isinstance(interval, bool)
    if not number or not SHORTEST_INTERVAL <= interval <= _LONGEST_PLAN:
        raise ValueError(
            f"the interval of a plan's poses must be a number of seconds from {SHORTEST_INTERVAL:g} on, "
            f"found {short(interval)}"
        )
    return float(interval)


def check_plans(scenes: NamedScenes, plans: Tensor | NDArray[Any], interval: float | None = None) -> Tensor:
    """Plans as float64 on the scenes' device.

    ``interval``: between their poses [s], of which there may be any number then; None: 8 poses as usual.

    Raises:
        TypeError: neither a tensor nor an array of numbers.
        ValueError: no scenes, wrong shape, no floating point, or NaN, infinite or absurdly far poses (names scene token
            and candidate); an interval that is none, or poses beyond any time.
    """
    if len(scenes) == 0:
        raise ValueError("there are no scenes to score")
    if isinstance(plans, np.ndarray):
        if plans.dtype.kind not in "biuf":
            raise TypeError(f"plans must be floating point, found an array of {plans.dtype}")
        # torch knows neither other byte orders nor long doubles, and takes no array that must not be written
        native = np.float64 if plans.dtype.kind == "f" else np.int64
        plans = torch.from_numpy(np.array(plans, dtype=native))
    if not isinstance(plans, Tensor):
        raise TypeError(f"plans must be a tensor or a numpy array, found {type(plans).__name__}")
    usual = plans.ndim == 4 and plans.shape[0] == len(scenes) and plans.shape[3] == 3
    if interval is None:
        if not usual or plans.shape[2] != NUM_POSES:
            raise ValueError(
                f"plans must have shape (scene, candidate, {NUM_POSES}, 3) with {len(scenes)} scenes, "
                f"found {tuple(plans.shape)}; with an interval any number of poses will do"
            )
    elif not usual or plans.shape[2] < 1:
        raise ValueError(
            f"plans must have shape (scene, candidate, pose, 3) with {len(scenes)} scenes and at least one pose, "
            f"found {tuple(plans.shape)}"
        )
    elif check_interval(interval) * plans.shape[2] > _LONGEST_PLAN:
        raise ValueError(
            f"plans must end within {_LONGEST_PLAN:g} s, found {plans.shape[2]} poses every {interval:g} s"
        )
    if not plans.is_floating_point():
        raise ValueError(f"plans must be floating point, found {plans.dtype}")
    # one look at all of them, before they move: each look makes the CPU wait for a GPU
    near = plans[..., :2].double().abs().amax(-1) <= _FARTHEST_POSE
    usable = (near & plans[..., 2].isfinite()).all(-1)
    if not bool(usable.all()):
        finite = plans.isfinite().flatten(2).all(-1)
        good = usable if bool(finite.all()) else finite
        scene, candidate = (~good).nonzero()[0].tolist()
        where = f"plan of scene {scenes.tokens[scene]!r}, candidate {candidate}"
        if not bool(finite.all()):
            raise ValueError(f"{where} holds NaN or infinite values")
        raise ValueError(f"{where} lies more than {_FARTHEST_POSE:.0e} m away; plans are in meters around the ego")
    return plans.to(device=scenes.device, dtype=torch.float64)


def simulate_plans(
    scenes: SceneBatch, plans: Tensor, interval: float | None = None, recorded: Tensor | None = None
) -> Tensor:
    """States (scene, 1 + candidate, 41, 11) in the scene frame; index 0 is the reference plan.

    The scene frame has global axes and its origin at the ego rear axle at t = 0. ``recorded``: further plans
    (scene, more, 8, 3) of the usual interval, whose states come last.
    """
    ego = scenes.ego_state.clone()
    ego[:, :2] += scenes.origin
    reference = scenes.reference_poses.clone()
    reference[..., :2] += scenes.origin[:, None]
    states = simulate(
        ego,
        scenes.ego_time_us,
        plans,
        (reference, scenes.reference_times_us, scenes.reference_count),
        interval=POSE_INTERVAL if interval is None else interval,
        recorded=recorded,
    )
    states[..., :2] -= scenes.origin[:, None, None]
    return states


def _score_chunk(scenes: SceneBatch, plans: Tensor, interval: float | None) -> PDMScores:
    states = simulate_plans(scenes, plans, interval)
    areas = ego_areas(scenes, states)
    collision = no_at_fault_collisions(scenes, states, areas)
    product = collision.score * drivable_area_compliance(areas)
    raw = progress_along_centerline(scenes, states)

    # index 0 is the reference; it only sets the scale of progress
    plan_states = states[:, 1:]
    plan_areas = type(areas)(*(flag[:, 1:] for flag in areas))
    ttc = time_to_collision(scenes, plan_states, plan_areas)
    comfortable = comfort_flags(plan_states)
    weighted = raw * product
    scale = progress_scale(weighted[:, 1:], weighted[:, 0])
    values = {
        "no_at_fault_collisions": collision.score[:, 1:],
        "drivable_area_compliance": drivable_area_compliance(plan_areas),
        "ego_progress": normalize_progress(weighted[:, 1:], product[:, 1:], scale),
        "time_to_collision_within_bound": ttc.score,
        "comfort": comfortable.all(-1).to(torch.float64),
        "driving_direction_compliance": driving_direction_compliance(plan_states, plan_areas),
    }
    return PDMScores(
        **values,
        score=total(PDM_SCORE, values),
        progress_raw=raw[:, 1:],
        progress_scale=scale,
        reference_progress_raw=raw[:, 0],
        reference_multiplier=product[:, 0],
        collision_time_index=collision.time_index[:, 1:],
        ttc_time_index=ttc.time_index,
        comfort_flags=comfortable,
        ego_areas=torch.stack(plan_areas[:3], dim=-1),
    )


def _normalize_by_pool(scores: PDMScores) -> PDMScores:
    """The scores of one devkit call with the reference and all candidates of a scene."""
    product = scores.no_at_fault_collisions * scores.drivable_area_compliance
    weighted = scores.progress_raw * product
    scale = pooled_progress_scale(weighted, scores.reference_progress_raw * scores.reference_multiplier)
    progress = normalize_progress(weighted, product, scale)
    values = {column.name: getattr(scores, column.name) for column in PDM_SCORE} | {"ego_progress": progress}
    score = total(PDM_SCORE, values)
    return dataclasses.replace(scores, ego_progress=progress, progress_scale=scale, score=score)


@torch.no_grad()
def score_plans(
    scenes: SceneBatch,
    plans: Tensor | NDArray[Any],
    *,
    interval: float | None = None,
    normalize: Literal["pair", "pool"] = "pair",
    max_plans_in_flight: int | None = None,
) -> PDMScores:
    """PDM score v1 of every plan.

    Args:
        scenes: the scenes, on the device to compute on.
        plans: (scene, candidate, 8, 3) x [m], y [m], heading [rad] in the ego rear-axle frame at t = 0,
            0.5 s apart, first at 0.5 s; tensor or numpy array of any float type (computed in float64).
        interval: seconds between poses where it is another one, or there are more or fewer than 8 poses; the first is
            at it. As in the devkit, a plan that ends before 4 s stands at its last pose, and later poses are not read.
        normalize: what progress is measured by. "pair": each plan as if it were alone with the reference, as in
            the devkit's evaluation. "pool": by the furthest of the reference and all candidates of the scene, as
            in one devkit call with all of them; a plan's score then depends on the other candidates.
        max_plans_in_flight: bound on plans (reference included) computed at once, which bounds the memory; None takes
            192 on the CPU (fits caches), 2048 with compiled kernels, 16384 on CUDA. Scores do not depend on it.

    Raises:
        TypeError: plans that are neither tensor nor array of numbers.
        ValueError: wrong shapes; NaN, infinite or absurdly far plans (names scene token and candidate); no interval.
    """
    if normalize not in ("pair", "pool"):
        raise ValueError(f"normalize must be 'pair' or 'pool', found {normalize!r}")
    plans = check_plans(scenes, plans, interval)
    scores = score_in_chunks(partial(_score_chunk, interval=interval), scenes, plans, max_plans_in_flight)
    return scores if normalize == "pair" else _normalize_by_pool(scores)
