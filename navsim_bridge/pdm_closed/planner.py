"""PDM-Closed, the reference planner of NAVSIM's metric caches: propose, simulate, score, choose.

plans = plan_references(scenes, version="v1")           # scenes of one log, in order of time
plans[0].states, plans[0].times_us                      # MetricScene.reference_states, .reference_times_us
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.areas import drivable_area_compliance, ego_areas
from navsim_bridge.pdm.collision import no_at_fault_collisions
from navsim_bridge.pdm.comfort import comfort_flags
from navsim_bridge.pdm.geometry import read_back_rear_axle
from navsim_bridge.pdm.metric_scene import NUM_FRAMES, MetricScene
from navsim_bridge.pdm.progress import normalize_progress, progress_along_centerline
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.simulate import track
from navsim_bridge.pdm.ttc import time_to_collision
from navsim_bridge.pdm_closed.forecast import FRAME_STEP, Forecast, forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene, ReferencePlan
from navsim_bridge.pdm_closed.proposals import PLAN_STEPS, Proposals

Float = NDArray[np.float64]
Version = Literal["v1", "v2"]

SCENES_AT_ONCE = 16
"""Scenes of one batch; more do not fit the caches."""
_STEP_US = 100_000
_TIE = 1e-12
"""Scores no further apart count as equal. Proposals that move alike score alike in the devkit, and the first wins;
rounding must not choose another one here."""


def plan_references(
    scenes: Sequence[PlannerScene], *, version: Version = "v1", ignored: Collection[str] = ()
) -> list[ReferencePlan]:
    """The reference plan of every scene, as the devkit's metric caching makes it.

    The devkit plans all scenes of a process with one planner, which never forgets the objects that touched the ego at
    t = 0 of an earlier scene: they are ignored from then on. So scenes belong together by log and in order of time.

    Args:
        scenes: of one log, in order of time; any number.
        version: whose scoring picks the proposal: "v1" (navsim 1.1) or "v2" (2.1.2).
        ignored: ``ReferencePlan.ignored`` of the scene before the first, when scenes of a log come in parts.

    Raises:
        ValueError: a scene with NaN or inconsistent arrays; names its token.
    """
    if version not in get_args(Version):
        raise ValueError(f"version must be one of {', '.join(get_args(Version))}, found {version!r}")
    plans: list[ReferencePlan] = []
    carried = frozenset(ignored)
    for start in range(0, len(scenes), SCENES_AT_ONCE):
        batch = scenes[start : start + SCENES_AT_ONCE]
        forecasts, after = [], []
        for scene in batch:
            _check(scene)
            forecasts.append(forecast(scene, carried))
            carried = carried.union(forecasts[-1].newly_ignored)
            after.append(carried)
        plans += _plan_batch(batch, forecasts, after, version)
    return plans


@torch.no_grad()
def _plan_batch(
    scenes: Sequence[PlannerScene], forecasts: Sequence[Forecast], ignored: Sequence[frozenset[str]], version: Version
) -> list[ReferencePlan]:
    proposals = Proposals(scenes, forecasts)
    ego = torch.from_numpy(np.stack([scene.ego_state for scene in scenes]))
    states = track(ego, torch.from_numpy(np.ascontiguousarray(proposals.poses)))
    batch = SceneBatch.from_scenes([_as_metric_scene(s, f) for s, f in zip(scenes, forecasts)])
    states[..., :2] -= batch.origin[:, None, None]
    scores = _scores_v1(batch, states)
    chosen = first_best(scores.numpy())
    poses = read_back_rear_axle(torch.from_numpy(proposals.finish(chosen))).numpy()
    return [
        ReferencePlan(
            states=poses[row],
            times_us=scene.ego_time_us + _STEP_US * np.arange(PLAN_STEPS + 1, dtype=np.int64),
            proposal=int(chosen[row]),
            scores=scores[row].numpy(),
            ignored=ignored[row],
        )
        for row, scene in enumerate(scenes)
    ]


def first_best(scores: Float) -> NDArray[np.int64]:
    """(scene,) index of the first proposal whose score (scene, proposal) is the best, within rounding."""
    return np.asarray((scores >= scores.max(axis=1, keepdims=True) - _TIE).argmax(axis=1))


def _scores_v1(scenes: SceneBatch, states: Tensor) -> Tensor:
    """(scene, proposal) PDM score v1 with progress relative to the furthest proposal."""
    areas = ego_areas(scenes, states)
    product = no_at_fault_collisions(scenes, states, areas).score * drivable_area_compliance(areas)
    weighted = progress_along_centerline(scenes, states) * product
    scale = weighted.amax(-1, keepdim=True).expand_as(weighted)
    progress = normalize_progress(weighted, product, scale)
    ttc = time_to_collision(scenes, states, areas).score
    comfort = comfort_flags(states).all(-1).to(torch.float64)
    return product * ((5.0 * progress + 5.0 * ttc + 2.0 * comfort) / 12.0)


def _as_metric_scene(scene: PlannerScene, seen: Forecast) -> MetricScene:
    """The scene with the planner's forecast in place of what really happens."""
    kept = np.flatnonzero(~seen.ignored_object)
    frames = np.arange(NUM_FRAMES) // FRAME_STEP
    centers = seen.centers(frames)[:, kept]
    shape = np.broadcast_to(seen.boxes[kept, 2:], (NUM_FRAMES, len(kept), 3))
    pose = scene.ego_state[:3]
    return MetricScene(
        token=scene.token,
        log_name=scene.log_name,
        ego_state=scene.ego_state,
        ego_time_us=scene.ego_time_us,
        reference_states=np.stack([pose, pose]),  # nothing is compared with a reference here
        reference_times_us=np.array([scene.ego_time_us, scene.ego_time_us + 1]),
        polygon_tokens=scene.polygon_tokens,
        polygon_types=scene.polygon_types,
        polygon_ring_offsets=scene.polygon_ring_offsets,
        ring_offsets=scene.ring_offsets,
        vertices=scene.vertices,
        route_lane_ids=scene.route_lane_ids,
        centerline=scene.centerline,
        frame_offsets=np.arange(NUM_FRAMES + 1) * len(kept),
        object_track=np.tile(np.arange(len(kept)), NUM_FRAMES),
        object_boxes=np.concatenate([centers, shape], axis=-1).reshape(-1, 5),
        track_tokens=tuple(seen.tokens[i] for i in kept),
        track_types=tuple(seen.types[i] for i in kept),
        track_first_speed=seen.speed[kept],
        provenance={},
    )


def _check(scene: PlannerScene) -> None:
    """Refuse what the planner cannot start from; the rest is checked when scenes are packed."""
    line = np.shape(scene.centerline)
    if len(line) != 2 or line[0] < 2 or line[1] != 3:
        raise ValueError(f"scene {scene.token!r}: centerline must be (point >= 2, 3), found {line}")
    for name in ("ego_state", "centerline"):
        if not np.isfinite(getattr(scene, name)).all():
            raise ValueError(f"scene {scene.token!r}: {name} holds NaN or infinite values")
    count = len(scene.present.tokens)
    if np.shape(scene.present.boxes) != (count, 5) or np.shape(scene.present.velocities) != (count, 2):
        raise ValueError(f"scene {scene.token!r}: present objects need a box (5) and a velocity (2) for each token")
