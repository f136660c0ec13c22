"""Properties of the score on random roads: what may not matter does not matter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_bridge.pdm import SUB_SCORES, PDMScores, SceneBatch, score_plans
from navsim_bridge.pdm.metric_scene import MetricScene
from tests.navsim_bridge.pdm.pdm_worlds import moved, random_world

EXAMPLES = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def score(scene: MetricScene, plans: torch.Tensor) -> PDMScores:
    return score_plans(SceneBatch.from_scenes([scene]), plans)


def assert_equal(first: PDMScores, second: PDMScores, tolerance: float = 1e-9) -> None:
    for name in SUB_SCORES:
        one, two = getattr(first, name), getattr(second, name)
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


def keep_tracks(scene: MetricScene, order: np.ndarray, rng: np.random.Generator | None = None) -> MetricScene:
    """The scene with only the tracks in ``order``, in that order; rows of a frame shuffled when ``rng`` is given."""
    place = np.full(len(scene.track_tokens), -1)
    place[order] = np.arange(len(order))
    frame = np.repeat(np.arange(51), np.diff(scene.frame_offsets))
    rows = np.flatnonzero(place[scene.object_track] >= 0)
    if rng is not None:
        rows = rows[np.lexsort((rng.random(len(rows)), frame[rows]))]
    return dataclasses.replace(
        scene,
        frame_offsets=np.concatenate(([0], np.cumsum(np.bincount(frame[rows], minlength=51)))),
        object_track=place[scene.object_track[rows]],
        object_boxes=scene.object_boxes[rows],
        track_tokens=tuple(scene.track_tokens[i] for i in order),
        track_types=tuple(scene.track_types[i] for i in order),
        track_first_speed=scene.track_first_speed[order],
    )


def test_random_roads_hold_every_kind_of_verdict() -> None:
    worlds = [random_world(np.random.default_rng(seed)) for seed in range(40)]
    scores = score_plans(SceneBatch.from_scenes([scene for scene, _ in worlds]), torch.cat([p for _, p in worlds]))
    assert set(scores.no_at_fault_collisions.unique().tolist()) == {0.0, 0.5, 1.0}
    for name in ("drivable_area_compliance", "time_to_collision_within_bound", "comfort"):
        assert 0.05 < getattr(scores, name).mean() < 0.95, name
    assert (scores.score > 0).any()


@EXAMPLES
@given(seeds, st.floats(-math.pi, math.pi), st.floats(-1e5, 1e5))
def test_turning_and_moving_the_world_changes_no_sub_score(seed: int, angle: float, shift: float) -> None:
    scene, plans = random_world(np.random.default_rng(seed))
    assert_equal(score(scene, plans), score(moved(scene, angle, shift), plans), tolerance=1e-6)


@EXAMPLES
@given(seeds)
def test_the_order_of_objects_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, plans = random_world(rng)
    assert_equal(score(scene, plans), score(keep_tracks(scene, rng.permutation(12), rng), plans))


@EXAMPLES
@given(seeds)
def test_candidates_do_not_see_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, plans = random_world(rng, num_plans=6)
    chosen = torch.from_numpy(rng.integers(0, 6, 4))
    together, some = score(scene, plans), score(scene, plans[:, chosen])
    assert_equal(PDMScores(**{f.name: _pick(together, f.name, chosen) for f in dataclasses.fields(together)}), some)


def _pick(scores: PDMScores, name: str, chosen: torch.Tensor) -> torch.Tensor:
    values = getattr(scores, name)
    return values if values.ndim == 1 else values[:, chosen]


@EXAMPLES
@given(seeds)
def test_taking_an_object_away_never_costs_safety(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, plans = random_world(rng)
    before, after = score(scene, plans), score(keep_tracks(scene, np.delete(np.arange(12), rng.integers(12))), plans)
    for name in ("no_at_fault_collisions", "time_to_collision_within_bound"):
        assert (getattr(after, name) >= getattr(before, name)).all()
    assert torch.equal(before.drivable_area_compliance, after.drivable_area_compliance)


@EXAMPLES
@given(seeds, st.integers(-3, 3))
def test_whole_turns_in_a_plans_headings_change_nothing(seed: int, turns: int) -> None:
    scene, plans = random_world(np.random.default_rng(seed))
    turned = plans.clone()
    turned[..., 2] += 2 * math.pi * turns
    assert_equal(score(scene, plans), score(scene, turned), tolerance=1e-6)


def test_three_hundred_objects_are_judged_as_each_would_be_alone() -> None:
    scene, plans = random_world(np.random.default_rng(1), num_objects=300, num_plans=8, spread=5.0)
    crowd = score(scene, plans)
    alone = score_plans(
        SceneBatch.from_scenes([keep_tracks(scene, np.array([i])) for i in range(300)]), plans.expand(300, -1, -1, -1)
    )
    for name in ("no_at_fault_collisions", "time_to_collision_within_bound"):
        assert torch.equal(getattr(crowd, name)[0], getattr(alone, name).amin(0))
    for name in ("collision_time_index", "ttc_time_index"):
        assert torch.equal(getattr(crowd, name)[0], getattr(alone, name).amin(0))
    assert len(crowd.collision_time_index.unique()) > 4 and torch.isfinite(crowd.score).all()
