from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from navsim_bridge.files.frames import OBJECT_NAMES, Annotations
from navsim_bridge.pdm_closed.boxes import box_distance, corners
from navsim_bridge.pdm_closed.forecast import forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene, PresentObjects, ReferencePlan, red_lights_on_route
from navsim_bridge.pdm_closed.planner import Version, first_best, plan_references
from navsim_bridge.pdm_closed.proposals import Proposals
from tests.navsim_bridge.pdm_closed.planner_worlds import (
    NOTHING,
    ORIGIN,
    bend,
    car,
    light,
    objects,
    road,
    unrolled_one_by_one,
)

FRONT = 1.461 + 5.176 / 2  # [m] from the rear axle to the front bumper


def plan(scene: PlannerScene, version: Version = "v1") -> ReferencePlan:
    return plan_references([scene], version=version)[0]


def along(result: ReferencePlan) -> NDArray[np.float64]:
    """Meters along the road, from the ego's place, of the plan's rear axle."""
    return result.states[:, 0] - ORIGIN[0]


def test_a_plan_is_51_poses_at_steps_of_exactly_a_tenth_of_a_second() -> None:
    result = plan(road())
    assert result.states.shape == (51, 3)
    assert result.times_us.dtype == np.int64
    assert result.times_us.tolist() == [1_600_000_000_000_123 + 100_000 * k for k in range(51)]


def test_the_plan_begins_on_its_path_and_not_at_the_ego() -> None:
    result = plan(road(x=0.3, y=1.7, heading=0.1))
    offset = {0: 0.0, 1: -1.0, 2: 1.0}[result.proposal // 5]
    np.testing.assert_allclose(result.states[0] - [*ORIGIN, 0.0], [0.3, offset, 0.0], atol=1e-6)


def test_a_standing_ego_with_a_free_road_speeds_up_to_the_limit_at_most() -> None:
    result = plan(road(speed=0.0, limit=6.0))
    assert result.proposal % 5 == 4  # the fastest policy gets furthest
    speed = np.diff(along(result)) / 0.1
    assert speed[0] == pytest.approx(0.0, abs=1e-6)
    assert (np.diff(speed) > -1e-6).all()
    assert 4.0 < speed[-1] < 6.0


def test_the_first_step_brakes_as_if_something_stood_at_the_start() -> None:
    _, speed = Proposals([road(speed=8.0)], [forecast(road(speed=8.0))]).motion()
    np.testing.assert_allclose(speed[0, :, 1], 8.0 - 0.3)
    assert (speed[0, 4::5, 2] > speed[0, 4::5, 1]).all()


def test_no_speed_limit_means_fifteen_meters_a_second() -> None:
    without, fifteen = (plan(road(speed=14.0, limit=limit)) for limit in (float("nan"), 15.0))
    np.testing.assert_array_equal(without.states, fifteen.states)


def test_every_plan_stops_behind_a_standing_car() -> None:
    result = plan(road(present=car(30.0)))
    assert along(result)[-1] + FRONT < 28.0
    assert result.scores.max() > 0.9


def test_a_slower_car_is_followed_at_its_speed() -> None:
    result = plan(road(speed=8.0, present=car(25.0, speed=4.0)))
    speed = np.diff(along(result)) / 0.1
    assert speed[10] > speed[30] > speed[-1]
    assert 4.0 < speed[-1] < 5.0
    assert along(result)[-1] + FRONT < 25.0 + 5.0 * 4.0 - 2.0


def test_cars_are_taken_to_keep_their_speed_even_when_they_go_backwards() -> None:
    backwards = dataclasses.replace(car(25.0, heading=np.pi), velocities=np.array([[3.0, 0.0]]))
    seen = forecast(road(present=backwards))
    np.testing.assert_allclose(seen.centers(np.array([0, 5]))[:, 0, 0] - ORIGIN[0], [25.0, 28.0])


def test_a_red_light_stops_the_ego_before_its_connector() -> None:
    free, red = plan(road()), plan(road(red_lights=(light(30.0, 50.0),)))
    assert along(free)[-1] > 30.0
    assert along(red)[-1] + FRONT < 30.0


def test_a_red_light_around_the_whole_ego_is_ignored_from_then_on() -> None:
    inside = road(red_lights=(light(-10.0, 50.0),))
    partly = road(red_lights=(light(-10.0, 2.0), light(30.0, 50.0, token="8")))
    first, second = plan_references([inside, partly])
    assert first.ignored == {"red_light_7"}
    np.testing.assert_array_equal(first.states, plan(road()).states)
    assert second.ignored == first.ignored
    assert along(second)[-1] + FRONT < 30.0


def test_what_touches_the_ego_is_ignored_in_this_and_in_later_scenes() -> None:
    touching, later = road(present=car(4.0)), road(present=car(30.0))
    alone = plan(later)
    first, second = plan_references([touching, later])
    assert first.ignored == second.ignored == {"car"}
    np.testing.assert_array_equal(second.states, plan(road()).states)
    assert along(alone)[-1] < along(second)[-1]
    again = plan_references([later], ignored=first.ignored)[0]
    np.testing.assert_array_equal(again.states, second.states)


def test_the_plan_stays_on_a_short_centerline_and_brakes_towards_its_end() -> None:
    result = plan(road(end=30.0))
    assert along(result)[-1] < 30.0
    assert np.diff(along(result))[-1] < 0.3


@pytest.mark.parametrize("end", [-3.0, 0.5, 1.0])
def test_a_centerline_that_ends_at_or_behind_the_ego_still_gives_a_plan(end: float) -> None:
    result = plan(road(speed=3.0, end=end))
    assert np.isfinite(result.states).all()
    assert along(result).max() <= end + 1.0


def test_there_is_no_emergency_brake() -> None:
    blocked = plan(road(speed=4.0, present=car(4.05 + 2.0 + 0.3)))
    assert blocked.proposal == 0  # every proposal hits the car: the first one is taken
    assert blocked.scores.max() == 0.0
    np.testing.assert_allclose(along(blocked)[1], 0.4, atol=1e-6)


def test_equal_scores_choose_the_first_proposal_despite_rounding() -> None:
    scores = np.array([[0.5, 0.9, 0.9 + 1e-15, 0.2], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.2 + 1e-9, 0.0]])
    assert first_best(scores).tolist() == [1, 0, 2]


def test_version_2_keeps_to_the_lane_where_version_1_does_not_mind() -> None:
    aside = road(y=-1.0)
    scores_v1, scores_v2 = plan(aside).scores, plan(aside, "v2").scores
    assert scores_v1[9] == pytest.approx(scores_v1[4], abs=0.02)
    assert scores_v2[4] == pytest.approx(1.0, abs=0.02)
    assert scores_v2[9] == pytest.approx(1.0 - 2 / 14, abs=0.02)


def test_version_2_gives_nothing_to_proposals_that_meet_a_red_light() -> None:
    crossing = road(speed=10.0, red_lights=(light(7.0, 20.0),))
    assert plan(crossing).scores.max() > 0.0
    assert plan(crossing, "v2").scores.max() == 0.0


def test_version_2_measures_progress_without_a_proposals_own_factor() -> None:
    # every proposal runs into the cone, which halves its score, and counts as too close to it
    hit = road(speed=8.0, present=objects(("cone", "TRAFFIC_CONE", 4.4, 0.0, 0.0, 0.3, 0.3, 0.0)))
    in_v1, in_v2 = plan(hit).scores[:5], plan(hit, "v2").scores[:5]
    assert (np.diff(in_v1) > 0).all()
    assert in_v1[-1] == pytest.approx(0.5 * (5 + 2) / 12)
    # in version 2 the halved progress of the furthest is the measure, which all get over
    np.testing.assert_allclose(in_v2, 0.5 * (5 + 2 + 2) / 14)


def scenes_with_traffic() -> list[PlannerScene]:
    draw = np.random.default_rng(3)
    scenes = []
    for number in range(12):
        rows = []
        for k in range(draw.integers(0, 6)):
            kind = ("VEHICLE", "PEDESTRIAN", "BICYCLE", "BARRIER")[draw.integers(4)]
            heading, speed = draw.normal(0, 0.4), 0.0 if kind == "BARRIER" else draw.uniform(0, 8)
            place = (draw.uniform(9, 45), draw.normal(0, 2.0))
            rows.append((f"t{k}", kind, *place, heading, draw.uniform(0.5, 5), draw.uniform(0.5, 2.2), speed))
        red = (light(draw.uniform(25, 40), 60.0),) if number % 3 == 0 else ()
        make = bend if number % 2 else road
        state = road(speed=draw.uniform(0, 11), y=draw.normal(0, 0.4)).ego_state
        scenes.append(
            make(
                token=f"s{number}",
                ego_state=state,
                speed_limit=float(draw.choice([6.0, 12.0, np.nan])),
                present=objects(*rows) if rows else NOTHING,
                red_lights=red,
            )
        )
    return scenes


def test_proposals_unroll_as_one_policy_after_another_does() -> None:
    scenes = scenes_with_traffic()
    proposals = Proposals(scenes, [forecast(scene) for scene in scenes])
    progress, speed = proposals.motion()
    for number, scene in enumerate(scenes):
        by_hand = unrolled_one_by_one(scene)
        np.testing.assert_allclose(progress[number], by_hand[0], atol=1e-7)
        np.testing.assert_allclose(speed[number], by_hand[1], atol=1e-7)
        np.testing.assert_allclose(proposals.poses[number], by_hand[2], atol=1e-7)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_scenes_plan_does_not_depend_on_the_other_scenes_of_its_batch(version: Version) -> None:
    scenes = scenes_with_traffic()
    for together, scene in zip(plan_references(scenes, version=version), scenes):
        alone = plan(scene, version)
        assert together.proposal == alone.proposal
        np.testing.assert_allclose(together.states, alone.states, atol=1e-9)
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-9)


def test_the_forecast_lists_static_things_first_and_each_kind_nearest_first() -> None:
    kinds = {"v2": "VEHICLE", "p": "PEDESTRIAN", "c2": "TRAFFIC_CONE", "v1": "VEHICLE", "c1": "BARRIER",
             "b": "BICYCLE", "ego": "EGO", "far": "VEHICLE"}  # fmt: skip
    places = (40.0, 20.0, 30.0, 25.0, 10.0, 8.0, 15.0, 102.0)
    rows = [(token, kind, x) for (token, kind), x in zip(kinds.items(), places)]
    present = objects(*((token, kind, x, 0.0, 0.0, 1.0, 1.0, 0.0) for token, kind, x in rows))
    assert forecast(road(present=present)).tokens == ("c1", "c2", "v1", "v2", "p", "b")


def test_of_many_pedestrians_the_nearest_25_are_seen() -> None:
    present = objects(*((f"p{k}", "PEDESTRIAN", 60.0 - k, 5.0, 0.0, 0.5, 0.5, 0.0) for k in range(40)))
    assert forecast(road(present=present)).tokens == tuple(f"p{k}" for k in range(39, 14, -1))


def test_annotations_become_global_boxes_and_velocities() -> None:
    seen = Annotations(
        boxes=np.array([[10.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.1]]),
        types=np.array([OBJECT_NAMES.index("bicycle")]),
        velocities=np.array([[3.0, 1.0]]),
        track_tokens=("a",),
    )
    present = PresentObjects.from_annotations(seen, np.array([100.0, 200.0, np.pi / 2]))
    np.testing.assert_allclose(present.boxes, [[98.0, 210.0, np.pi / 2 + 0.1, 4.0, 2.0]])
    np.testing.assert_allclose(present.velocities, [[-1.0, 3.0]], atol=1e-12)
    assert (present.tokens, present.types) == (("a",), ("BICYCLE",))


def test_only_red_lights_on_the_route_count_and_they_need_a_polygon() -> None:
    polygons = {token: light(0.0, 5.0, token) for token in ("1", "2")}
    assert [p.token for p in red_lights_on_route(("2", "1", "9"), ("1", "2", "3"), polygons)] == ["2", "1"]
    with pytest.raises(ValueError, match="connector 3"):
        red_lights_on_route(("3",), ("3",), polygons)


def test_distances_between_boxes_are_those_of_their_polygons() -> None:
    draw = np.random.default_rng(0)
    n = 500
    center, heading = draw.normal(0, 3, (2, n, 2)), draw.uniform(-4, 4, (2, n))
    half = draw.uniform(0.1, 3, (2, n, 2))
    ours = box_distance(center[0], heading[0], half[0], center[1], heading[1], half[1])
    polygons = [shapely.polygons(corners(center[i], heading[i], half[i])) for i in range(2)]
    theirs = shapely.distance(*polygons)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert 50 < (theirs == 0).sum() < n - 50


def test_no_scenes_give_no_plans() -> None:
    assert plan_references([]) == []


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"centerline": np.full((5, 3), np.nan)}, "centerline holds NaN"),
        ({"centerline": np.zeros((1, 3))}, r"point >= 2, 3"),
        ({"ego_state": np.full(11, np.inf)}, "ego_state holds NaN"),
        ({"present": dataclasses.replace(car(30.0), boxes=np.full((1, 5), np.nan))}, "present objects hold NaN"),
        ({"present": dataclasses.replace(car(30.0), tokens=("a", "b"))}, "for each token"),
        ({"vertices": np.full((16, 2), np.nan)}, "vertices holds NaN"),
        ({"speed_limit": -1.0}, "speed_limit must not be negative"),
    ],
)
def test_broken_inputs_are_refused_with_the_scenes_token(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"'road'.*{message}"):
        plan(road(**broken))


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValueError, match="v1, v2"):
        plan_references([road()], version="v3")  # type: ignore[arg-type]


def test_an_object_of_no_size_is_followed_as_an_object_and_not_taken_for_a_light() -> None:
    point, small = (
        road(present=objects(("c", "VEHICLE", 30.0, 0.0, 0.0, size, size, 3.0)), red_lights=(light(60.0, 70.0),))
        for size in (0.0, 1e-9)
    )
    np.testing.assert_allclose(plan(point).states, plan(small).states, atol=1e-6)
