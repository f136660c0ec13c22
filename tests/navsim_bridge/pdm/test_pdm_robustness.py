"""Odd input: as the devkit where it has an answer, else an error that says what is wrong."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from navsim_bridge.metrics.explain_pdms import explain
from navsim_bridge.pdm import SceneBatch, score_plans
from navsim_bridge.pdm.geometry import ego_center
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.score import PDMScores, simulate_plans
from navsim_bridge.pdm.terms.areas import ego_areas
from tests.navsim_bridge.pdm.pdm_worlds import parked, road, straight, with_objects


def score(scene: MetricScene, *plans: torch.Tensor, **options: Any) -> PDMScores:
    return score_plans(SceneBatch.from_scenes([scene]), torch.cat(plans, dim=1), **options)


def along(scene: MetricScene, points: list[tuple[float, float]]) -> MetricScene:
    """The scene with a centerline through points (n, 2) relative to the ego."""
    line = np.zeros((len(points), 3))
    line[:, :2] = np.asarray(points) + scene.ego_state[:2]
    return dataclasses.replace(scene, centerline=line)


def test_pool_normalization_measures_by_the_furthest_candidate() -> None:
    # worked out by hand from the meters: the reference drives 10 m/s, the candidates 5, 15 and 12 (off the road)
    scene = road()
    plans = (straight(5.0), straight(15.0), straight(12.0, sideways=9.0))
    pair, pool = (score(scene, *plans, normalize=mode) for mode in ("pair", "pool"))
    meters, reference = pair.progress_raw[0].tolist(), pair.reference_progress_raw.item()
    assert meters[0] < reference < meters[1] and pair.drivable_area_compliance[0].tolist() == [1, 1, 0]
    torch.testing.assert_close(pair.ego_progress[0], torch.tensor([meters[0] / reference, 1.0, 0.0]).double())
    torch.testing.assert_close(pool.ego_progress[0], torch.tensor([meters[0] / meters[1], 1.0, 0.0]).double())
    assert pair.comfort[0, 0] == pool.comfort[0, 0] == 1
    assert pool.score[0, 0].item() == pytest.approx((5 * meters[0] / meters[1] + 5 + 2) / 12)
    assert pair.score[0, 0].item() == pytest.approx((5 * meters[0] / reference + 5 + 2) / 12)
    assert torch.equal(pair.score[0, 1:], pool.score[0, 1:])
    for name in ("no_at_fault_collisions", "time_to_collision_within_bound", "comfort", "progress_raw"):
        assert torch.equal(getattr(pair, name), getattr(pool, name))


def test_pool_of_one_is_the_pair_and_chunks_do_not_split_the_pool() -> None:
    scene, plans = road(), [straight(speed) for speed in (3.0, 7.0, 14.0)]
    alone = score(scene, plans[0], normalize="pool")
    assert torch.equal(alone.score, score(scene, plans[0]).score)
    pool = score(scene, *plans, normalize="pool")
    torch.testing.assert_close(pool.score, score(scene, *plans, normalize="pool", max_plans_in_flight=2).score)
    assert pool.ego_progress[0, 0] < alone.ego_progress[0, 0]
    assert score_plans(SceneBatch.from_scenes([scene]), plans[0][:, :0], normalize="pool").score.shape == (1, 0)
    with pytest.raises(ValueError, match="'pair' or 'pool'"):
        score(scene, plans[0], normalize="batch")


def test_a_short_pool_is_not_judged_for_progress() -> None:
    state = road().ego_state.copy()
    state[3] = 0.0
    scene = road(ego_state=state, reference_states=np.tile(state[:3], (9, 1)))
    scores = score(scene, straight(0.3), straight(0.6), normalize="pool")
    assert scores.progress_scale.max() < 5 and scores.ego_progress.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_plans_that_are_not_finite_are_refused_by_every_entry(bad: float) -> None:
    batch, plans = SceneBatch.from_scenes([road(), road(token="second")]), straight().repeat(2, 2, 1, 1)
    plans[1, 1, 7, 2] = bad
    for entry in (score_plans, explain):
        with pytest.raises(ValueError, match=r"'second', candidate 1 .*NaN or infinite"):
            entry(batch, plans)


@pytest.mark.parametrize("points", [[(20.0, 1.0)] * 2, [(20.0, 1.0)] * 5])
def test_a_centerline_of_one_repeated_point_has_no_progress_to_judge(points: list[tuple[float, float]]) -> None:
    scores = score(along(road(), points), straight(), straight(sideways=9.0))
    assert scores.progress_raw.tolist() == [[0.0, 0.0]]
    assert scores.ego_progress.tolist() == [[1.0, 0.0]]  # the second leaves the road


def test_a_centerline_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'road'.*point >= 2"):
        SceneBatch.from_scenes([along(road(), [(0.0, 0.0)])])


@pytest.mark.parametrize(
    "points",
    [
        [(0.0, 0.0), (10.0, 0.0), (10.0, 0.0), (60.0, 0.0)],  # a point twice
        [(0.0, 0.0), (25.0, 1.0), (5.0, 2.0), (60.0, 3.0)],  # folds back and forth
        [(30.0, 0.0), (60.0, 0.0)],  # starts ahead of the ego
        [(-40.0, 0.0), (-20.0, 0.0)],  # ends behind it
        [(60.0, 0.0), (0.0, 0.0)],  # runs the other way
    ],
)
def test_odd_centerlines_are_measured_as_shapely_does(points: list[tuple[float, float]]) -> None:
    scene, plans = along(road(), points), torch.cat([straight(speed) for speed in (2.0, 6.0, 11.0)], dim=1)
    batch = SceneBatch.from_scenes([scene])
    centers = ego_center(simulate_plans(batch, plans))[0, 1:, [0, 40]].numpy()
    at = shapely.line_locate_point(shapely.LineString(points), shapely.points(centers))
    expected = np.maximum(at[:, 1] - at[:, 0], 0.0)
    np.testing.assert_allclose(score_plans(batch, plans).progress_raw[0], expected, atol=1e-9)


def test_polygons_that_share_a_token_are_judged_one_by_one() -> None:
    renamed = road(polygon_tokens=("same",) * 4, route_lane_ids=("same",))
    before, after = score(road(), straight(sideways=3.5)), score(renamed, straight(sideways=3.5))
    assert torch.equal(before.ego_areas[..., :2], after.ego_areas[..., :2])
    assert not after.ego_areas[..., 2].any() and before.ego_areas[..., 2].any()  # all lanes are on the route now


def test_a_hole_belongs_to_its_polygon_only() -> None:
    scene = road()
    hole = scene.ego_state[:2] + np.array([[-5.0, -5.0], [40.0, -5.0], [40.0, 5.0], [-5.0, 5.0]])
    vertices = np.concatenate((scene.vertices[:4], hole, scene.vertices[4:]))
    holed = dataclasses.replace(
        scene, vertices=vertices, polygon_ring_offsets=np.array([0, 2, 3, 4, 5]), ring_offsets=np.arange(6) * 4
    )
    batch = SceneBatch.from_scenes([holed])
    areas = ego_areas(batch, simulate_plans(batch, straight(5.0)))
    assert areas.non_drivable.all() and not areas.oncoming.any()


def test_the_last_of_two_boxes_with_one_token_is_judged() -> None:
    ahead, beside = parked(25.0, 0.0), parked(0.0, 40.0)
    two = with_objects(road(), np.concatenate((ahead, beside), axis=1))
    only = dataclasses.replace(
        two, object_track=np.zeros(102, dtype=np.int64), track_tokens=("twice",), track_types=("BARRIER",),
        track_first_speed=np.zeros(1),
    )  # fmt: skip
    scores = score(only, straight())
    # the first box is hit, and it stands, so it is charged whichever box is looked at; the look ahead finds the
    # second one at the side and forgives
    assert scores.no_at_fault_collisions.item() == 0.5 and scores.time_to_collision_within_bound.item() == 1.0


def test_explaining_a_scene_without_map_and_objects_works() -> None:
    bare = road(
        polygon_tokens=(), polygon_types=(), polygon_ring_offsets=np.zeros(1, dtype=np.int64),
        ring_offsets=np.zeros(1, dtype=np.int64), vertices=np.zeros((0, 2)),
    )  # fmt: skip
    (text,) = [plan.text for plan in explain(SceneBatch.from_scenes([bare]), straight())[0]]
    assert "DAC 0: starts off the drivable area at t = 0.0 s, all corners" in text and "DDC 0" in text


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"object_track": np.array([1])}, "beyond track_tokens"),
        ({"object_track": np.array([-1])}, "beyond track_tokens"),
        ({"object_boxes": np.array([[0.0, 0.0, 0.0, -1.0, 2.0]])}, "negative length"),
        ({"object_boxes": np.array([[0.0, 0.0, math.nan, 1.0, 2.0]])}, "object_boxes"),
        ({"object_boxes": np.zeros((1, 4))}, "object_boxes must be"),
        ({"frame_offsets": np.array([0] * 50 + [1, 0])}, "frame_offsets"),
    ],
)
def test_broken_objects_are_refused_by_token(changes: dict[str, Any], problem: str) -> None:
    one = {
        "frame_offsets": np.array([0] + [1] * 51), "object_track": np.array([0]), "object_boxes": np.ones((1, 5)),
        "track_tokens": ("a",), "track_types": ("VEHICLE",), "track_first_speed": np.zeros(1),
    }  # fmt: skip
    SceneBatch.from_scenes([road(**one)])
    with pytest.raises(ValueError, match=f"(?s)'broken'.*{problem}"):
        SceneBatch.from_scenes([road(), road(token="broken", **(one | changes))])
