"""PDM-Closed, the reference planner of NAVSIM's metric caches: propose, simulate, score, choose.

plans = plan_references(scenes, version="v1")           # scenes of one log, in order of time
plans[0].states, plans[0].times_us                      # MetricScene.reference_states, .reference_times_us
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from navsim_bridge.pdm.geometry import read_back_rear_axle
from navsim_bridge.pdm.simulate import track
from navsim_bridge.pdm_closed.forecast import Forecast, forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene, ReferencePlan
from navsim_bridge.pdm_closed.proposals import PLAN_STEPS, Proposals
from navsim_bridge.pdm_closed.scoring import scores_v1, scores_v2

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
    num_batches = -(-len(scenes) // SCENES_AT_ONCE)
    edges = [len(scenes) * i // max(1, num_batches) for i in range(num_batches + 1)]
    for start, end in pairwise(edges):  # of nearly equal size: a batch of one scene costs several
        batch = scenes[start:end]
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
    score = scores_v1 if version == "v1" else scores_v2
    scores = score(scenes, forecasts, states)
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
    if not (np.isfinite(scene.present.boxes).all() and np.isfinite(scene.present.velocities).all()):
        raise ValueError(f"scene {scene.token!r}: present objects hold NaN or infinite values")
    if scene.speed_limit < 0 or np.isinf(scene.speed_limit):
        raise ValueError(
            f"scene {scene.token!r}: speed_limit must not be negative or infinite, found {scene.speed_limit}"
        )
