"""The rules that only EPDMS has, on hand-made scenes with known answers, and its refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from numpy.typing import NDArray

from navsim_bridge.metrics.explain_epdms import reasons
from navsim_bridge.pdm import (
    EPDMSBatch,
    EPDMSInputs,
    EPDMSTerms,
    MetricScene,
    epdms_scores,
    epdms_terms,
    two_frame_extended_comfort,
)
from navsim_bridge.pdm.epdms import TERMS
from navsim_bridge.pdm.epdms_scene import _sample_past
from navsim_bridge.pdm.geometry import near_polyline
from tests.navsim_bridge.pdm.pdm_worlds import reference_from_plan

ORIGIN = np.array([586000.25, 4512000.5])
TIME = 1_600_000_000_000_000
SPEED = 10.0  # [m/s]
FRAMES = 41


def straight(speed: float = SPEED, lateral: float = 0.0, turn_in: int = 8) -> NDArray[np.float64]:
    """A plan along x that reaches ``lateral`` after ``turn_in`` poses."""
    plan = np.zeros((8, 3))
    plan[:, 0] = np.arange(1, 9) * 0.5 * speed
    plan[:, 1] = lateral * np.minimum(np.arange(1, 9) / turn_in, 1.0)
    return plan


def rectangle(left: int, right: int, low: float, high: float) -> NDArray[np.float64]:
    return np.array([[left, low], [right, low], [right, high], [left, high]], dtype=np.float64) + ORIGIN


def inputs(
    human: None = None, lights: Any = (), red: NDArray[np.bool_] | None = None, synthetic: bool = False
) -> EPDMSInputs:
    """Extra inputs of an ego that came along x at constant speed; lights are rectangles."""
    states = np.zeros((4, 11))
    states[:, 0] = ORIGIN[0] - SPEED * np.array([1.5, 1.0, 0.5, 0.0])
    states[:, 1], states[:, 3] = ORIGIN[1], SPEED
    corners = [rectangle(*light) for light in lights]
    return EPDMSInputs(
        human_plan=None if synthetic else (straight() if human is None else human),
        past_states=states,
        past_times_us=TIME + np.array([-1_500_000, -1_000_000, -500_000, 0]),
        light_tokens=tuple(f"light{i}" for i in range(len(lights))),
        light_ring_offsets=np.arange(len(lights) + 1),
        ring_offsets=np.arange(len(lights) + 1) * 4,
        vertices=np.concatenate(corners) if corners else np.zeros((0, 2)),
        light_red=np.ones((FRAMES, len(lights)), dtype=bool) if red is None else red,
    )


def road(
    extra: EPDMSInputs | None = None,
    objects: tuple[Any, ...] | list[tuple[Any, ...]] = (),
    intersection: tuple[int, ...] | None = None,
    **changes: Any,
) -> MetricScene:
    """A road 200 m along x with one lane of 4 m; objects (x, y, length, width, token) stand still."""
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {
        "block": ("ROADBLOCK", (-50, 150, -6, 6)),
        "lane": ("LANE", (-50, 150, -2, 2)),
    }
    if intersection is not None:
        kinds["crossing"] = ("INTERSECTION", intersection)
    state = np.zeros(11)
    state[:2], state[3] = ORIGIN, SPEED
    knots, times = reference_from_plan(straight(), state, TIME)
    line = np.zeros((21, 3))
    line[:, 0] = np.arange(21) * 10.0 - 50.0
    line[:, :2] += ORIGIN
    boxes = np.array([[x + ORIGIN[0], y + ORIGIN[1], 0.0, long, wide] for x, y, long, wide, _ in objects])
    scene = MetricScene(
        token="road", log_name="test", ego_state=state, ego_time_us=TIME,
        reference_states=knots, reference_times_us=times,
        polygon_tokens=tuple(kinds), polygon_types=tuple(kind for kind, _ in kinds.values()),
        polygon_ring_offsets=np.arange(len(kinds) + 1), ring_offsets=np.arange(len(kinds) + 1) * 4,
        vertices=np.concatenate([rectangle(*where) for _, where in kinds.values()]),
        route_lane_ids=("lane",), centerline=line,
        frame_offsets=np.arange(FRAMES + 1) * len(objects),
        object_track=np.tile(np.arange(len(objects)), FRAMES),
        object_boxes=np.tile(boxes.reshape(-1, 5), (FRAMES, 1)),
        track_tokens=tuple(o[-1] for o in objects), track_types=("VEHICLE",) * len(objects),
        track_first_speed=np.zeros(len(objects)), provenance={},
        v2=inputs() if extra is None else extra,
    )  # fmt: skip
    return dataclasses.replace(scene, **changes)


def terms_of(scene: MetricScene, *plans: NDArray[np.float64]) -> EPDMSTerms:
    return epdms_terms(EPDMSBatch.from_scenes([scene]), torch.from_numpy(np.stack(plans or (straight(),)))[None])


def value(terms: EPDMSTerms, name: str) -> list[float]:
    return terms.values[0, :, TERMS.index(name)].tolist()


def test_a_plain_drive_loses_nothing() -> None:
    terms = terms_of(road())
    assert terms.values.flatten().tolist() == pytest.approx([1.0] * 8)
    assert epdms_scores(terms).score.item() == pytest.approx(1.0)
    assert reasons(terms) == [[""]]


@pytest.mark.parametrize(
    ("light", "red_frames", "passes"),
    [
        ((30, 40, -2, 2), range(41), False),  # the ego drives into it
        ((30, 40, -2, 2), range(5), True),  # green before the ego is there
        ((30, 40, 3, 6), range(41), True),  # beside the road
        ((-1, 1, -0.5, 0.5), range(1), False),  # under the ego at the start, touching no edge of its box
        ((-60, 140, -6, 6), range(1), False),  # all around the ego at the start
    ],
)
def test_a_red_connector_counts_while_it_is_red_and_touched(
    light: tuple[Any, ...], red_frames: Any, passes: bool
) -> None:
    red = np.zeros((FRAMES, 1), dtype=bool)
    red[list(red_frames)] = True
    terms = terms_of(road(inputs(lights=[light], red=red)))
    assert value(terms, "traffic_light_compliance") == [float(passes)]
    assert ("light is red" in reasons(terms)[0][0]) is not passes


def test_a_red_connector_with_a_hole_does_not_count_inside_the_hole() -> None:
    extra = inputs(lights=[(-60, 140, -6, 6)])
    hole = rectangle(-55, 130, -5, 5)
    extra = dataclasses.replace(
        extra, light_ring_offsets=np.array([0, 2]), ring_offsets=np.array([0, 4, 8]),
        vertices=np.concatenate([extra.vertices, hole]),
    )  # fmt: skip
    assert value(terms_of(road(extra)), "traffic_light_compliance") == [1.0]


def test_an_object_named_like_a_red_light_is_one_and_never_a_collision() -> None:
    scene = road(objects=[(30.0, 0.0, 4.0, 2.0, "red_light_7")])
    terms = terms_of(scene)
    assert value(terms, "traffic_light_compliance") == [0.0]
    assert value(terms, "no_at_fault_collisions") == [1.0]
    other = terms_of(road(objects=[(30.0, 0.0, 4.0, 2.0, "a_red_light_7")]))
    assert value(other, "traffic_light_compliance") == [1.0]


def test_an_object_that_overlaps_the_ego_at_the_start_is_ignored_for_good() -> None:
    ahead = terms_of(road(objects=[(30.0, 0.0, 4.0, 2.0, "car")]))
    assert value(ahead, "no_at_fault_collisions") == [0.0]
    assert "hits an agent at" in reasons(ahead)[0][0]
    overlapping = terms_of(road(objects=[(5.0, 0.0, 4.0, 2.0, "car")]))
    assert value(overlapping, "no_at_fault_collisions") == [1.0]
    assert value(overlapping, "time_to_collision_within_bound") == [1.0]


def test_two_seconds_off_the_centerline_fail_lane_keeping() -> None:
    # 0.4 m aside is fine; 1 m aside from early on is not
    assert value(terms_of(road(), straight(lateral=0.4), straight(lateral=1.0, turn_in=2)), "lane_keeping") == [
        1.0,
        0.0,
    ]


def test_steps_in_an_intersection_neither_count_nor_end_a_row_off_the_lane() -> None:
    plan = straight(lateral=3.0, turn_in=2)
    everywhere = terms_of(road(intersection=(-50, 150, -6, 6)), plan)
    assert value(everywhere, "lane_keeping") == [1.0]
    short = terms_of(road(intersection=(20, 25, -6, 6)), plan)  # half a second of it: the rest is still a row
    assert value(short, "lane_keeping") == [0.0]


def test_driving_off_the_route_is_excused_in_an_intersection() -> None:
    off_route: dict[str, Any] = {"route_lane_ids": ()}
    assert value(terms_of(road(**off_route)), "driving_direction_compliance") == [0.0]
    assert value(terms_of(road(intersection=(-50, 150, -6, 6), **off_route)), "driving_direction_compliance") == [1.0]


def test_progress_is_not_reduced_by_the_plans_own_failures_but_its_scale_is() -> None:
    scene = road(objects=[(30.0, 0.0, 4.0, 2.0, "car")])  # the reference hits it, too: it sets no scale
    assert value(terms_of(scene), "ego_progress") == [1.0]
    half = value(terms_of(road(), straight(SPEED / 2)), "ego_progress")[0]
    assert 0.5 < half < 0.75


def test_the_past_is_sampled_without_its_last_two_tenths() -> None:
    samples = _sample_past(inputs())
    assert samples.shape == (14, 3)
    times = np.array([0, 494_000, 971_000, 1_496_000])
    assert len(_sample_past(dataclasses.replace(inputs(), past_times_us=TIME + times))) == 14
    assert len(_sample_past(dataclasses.replace(inputs(), past_times_us=TIME + times - [0, 0, 0, 96_001]))) == 13


def test_a_brake_just_before_the_start_is_felt_by_history_comfort() -> None:
    extra = inputs()
    braking = extra.past_states.copy()
    braking[2, 5] = -8.0
    terms = terms_of(road(dataclasses.replace(extra, past_states=braking)))
    assert value(terms, "history_comfort") == [0.0]
    assert "longitudinal acceleration" in reasons(terms)[0][0]


@pytest.mark.parametrize("seed", range(3))
def test_nearness_to_a_line_equals_shapely_also_on_folded_and_repeated_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = np.cumsum(rng.normal(size=(30, 2)) * 3, axis=0)
    line = np.concatenate((line, line[-1:], line[-6:-2][::-1]))
    padded = torch.zeros((1, len(line) + 7, 2), dtype=torch.float64)
    padded[0, : len(line)] = torch.from_numpy(line)
    mask = torch.arange(padded.shape[1])[None] < len(line)
    points = rng.normal(size=(400, 2)) * 10
    ours = near_polyline(torch.from_numpy(points)[None], padded, mask, 1.5)[0].numpy()
    theirs = shapely.distance(shapely.LineString(line), shapely.points(points)) <= 1.5
    assert 0 < theirs.sum() < len(theirs)
    np.testing.assert_array_equal(ours, theirs)


def made_up(values: list[float], human: list[float]) -> EPDMSTerms:
    """Terms with given values of one plan and of the recorded driver."""
    empty = torch.zeros((1, 1))
    return EPDMSTerms(
        values=torch.tensor([[values]], dtype=torch.float64), human=torch.tensor([human], dtype=torch.float64),
        motion=empty, end=empty, start=empty[0],
        progress_raw=empty, reference_progress_raw=empty[0], reference_multiplier=empty,
        collision_time_index=empty, ttc_time_index=empty, comfort_flags=empty, ego_areas=empty, dead_ends=empty,
    )  # fmt: skip


def test_the_released_filter_changes_columns_and_the_corrected_one_the_score() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.8, 1.0, 0.0, 1.0]
    human = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    terms = made_up(values, human)
    released, fixed, off = (epdms_scores(terms, name) for name in ("v2.1.2", "fixed", "off"))
    for scores in (released, fixed):
        assert scores.drivable_area_compliance.item() == scores.lane_keeping.item() == 1.0
    assert (off.drivable_area_compliance.item(), off.lane_keeping.item()) == (0.0, 0.0)
    assert released.score.item() == off.score.item() == 0.0
    assert released.pdm_score.item() == 1.0  # though the plan's own is zero
    assert (fixed.pdm_score.item(), off.pdm_score.item()) == (0.0, 0.0)
    assert fixed.score.item() == pytest.approx((5 * 0.8 + 5 + 2 + 2) / 14)
    assert [s.human_filter for s in (released, fixed, off)] == ["v2.1.2", "fixed", "off"]


def test_half_a_collision_of_the_driver_and_synthetic_scenes_forgive_nothing() -> None:
    values = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    for human in ([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [math.nan] * 8):
        fixed = epdms_scores(made_up(values, human), "fixed")
        assert (fixed.no_at_fault_collisions.item(), fixed.lane_keeping.item()) == (0.5, 0.0)


def test_without_a_previous_frame_the_two_frame_term_has_no_weight() -> None:
    terms = made_up([1.0, 1.0, 1.0, 1.0, 0.6, 1.0, 1.0, 1.0], [math.nan] * 8)
    assert epdms_scores(terms).score.item() == pytest.approx((3 + 5 + 2 + 2) / 14)
    for comfort in (0.0, 1.0):
        scores = epdms_scores(terms, extended_comfort=torch.tensor([[comfort]]))
        assert scores.score.item() == pytest.approx((3 + 5 + 2 + 2 + 2 * comfort) / 16)
        assert scores.score_without_ec.item() == pytest.approx((3 + 5 + 2 + 2) / 14)


def test_two_frames_are_compared_where_they_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    motion = torch.rand((1, 1, 41, 3), generator=generator, dtype=torch.float64)
    earlier = torch.zeros_like(motion)
    earlier[:, :, 5:] = motion[:, :, :-5]
    earlier[:, :, :5] = 9.0  # before the overlap: must not matter
    assert two_frame_extended_comfort(motion, earlier, torch.tensor([0.49])).item() == 1.0
    assert two_frame_extended_comfort(motion, earlier, torch.tensor([0.4])).item() == 0.0
    jump = earlier.clone()
    jump[..., 5:, 1] += 2.0  # |a| differs by more than 0.7 m/s^2
    assert two_frame_extended_comfort(motion, jump, torch.tensor([0.5])).item() == 0.0
    assert torch.isnan(two_frame_extended_comfort(motion, earlier, torch.tensor([math.nan]))).all()


@pytest.mark.parametrize("seconds", [0.0, -0.5, 0.55, 0.04])
def test_a_previous_frame_too_near_or_far_is_refused(seconds: float) -> None:
    motion = torch.zeros((1, 1, 41, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match="previous plan of scene 0"):
        two_frame_extended_comfort(motion, motion, torch.tensor([seconds]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"v2": None}, "without MetricScene.v2"),
        ({"frame_offsets": np.zeros(52, dtype=np.int64)}, "41 object frames, found 51"),
        ({"v2": {"past_states": np.full((4, 11), np.nan)}}, "v2.past_states holds NaN"),
        ({"v2": {"past_times_us": np.zeros(4, dtype=np.int64)}}, "increase strictly"),
        ({"v2": {"human_plan": np.zeros((7, 3))}}, r"v2.human_plan must have shape \(8, 3\)"),
        ({"v2": {"light_tokens": ("one",)}}, "light_red"),
    ],
)
def test_bad_inputs_are_refused_by_name(change: dict[str, Any], problem: str) -> None:
    scene = road()
    if isinstance(change.get("v2"), dict):
        assert scene.v2 is not None
        change = {"v2": dataclasses.replace(scene.v2, **change["v2"])}
    with pytest.raises(ValueError, match=f"'road'.*{problem}"):
        EPDMSBatch.from_scenes([dataclasses.replace(scene, **change)])


def test_an_unknown_human_filter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"v2\.1\.2, fixed, off"):
        epdms_scores(made_up([1.0] * 8, [1.0] * 8), "main")  # type: ignore[arg-type]
