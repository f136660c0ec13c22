"""Properties of the score that hold for any scene, and its refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry.polygon import Polygon

from navsim_bridge.ego import EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER
from navsim_bridge.golden.v1 import GoldenScene, read_golden
from navsim_bridge.pdm import (
    PDMScores,
    SceneBatch,
    ego_state_as_read_back,
    score_plans,
    simulate_plans,
)
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.terms.areas import ego_areas
from navsim_bridge.pdm.terms.collision import no_at_fault_collisions
from navsim_bridge.pdm.terms.ttc import LOOKAHEAD, time_to_collision
from tests.navsim_bridge.pdm.pdm_worlds import moved, parked, reference_from_plan, road, straight, with_objects
from tests.paths import GOLDEN_V1

FIXTURES = sorted(GOLDEN_V1.glob("*.npz"))
NAMES = [field.name for field in dataclasses.fields(PDMScores)]


def read(*families: str, limit: int = 4) -> list[GoldenScene]:
    files = [path for path in FIXTURES if any(family in path.stem for family in families)]
    return [read_golden(path) for path in files[:limit]]


def pack(files: list[GoldenScene]) -> tuple[SceneBatch, torch.Tensor]:
    return SceneBatch.from_scenes([file.scene for file in files]), torch.from_numpy(
        np.stack([file.proposals for file in files])
    )


def assert_same(first: PDMScores, second: PDMScores, names: list[str] = NAMES) -> None:
    for name in names:
        one, two = getattr(first, name), getattr(second, name)
        if one.is_floating_point():
            torch.testing.assert_close(one, two, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]
        else:
            assert torch.equal(one, two), name


def score_one(scene: MetricScene, plan: torch.Tensor) -> PDMScores:
    return score_plans(SceneBatch.from_scenes([scene]), plan)


def test_following_an_empty_road_scores_one() -> None:
    scores = score_one(road(), straight())
    assert scores.score.item() == pytest.approx(1.0, abs=1e-6)
    assert math.isinf(scores.collision_time_index.item()) and math.isinf(scores.ttc_time_index.item())
    assert not scores.ego_areas.any()
    assert scores.progress_raw.item() == pytest.approx(40.0, abs=0.1)


def test_half_the_progress_gives_half_of_its_weight() -> None:
    scores = score_one(road(), straight(speed=5.0))
    ratio = scores.progress_raw / scores.reference_progress_raw
    torch.testing.assert_close(scores.ego_progress, ratio)
    assert 0.4 < scores.ego_progress.item() < 0.8


def test_a_parked_car_ahead_is_hit_and_charged_by_kind() -> None:
    car = with_objects(road(), parked(25.0, 0.0))
    scores = score_one(car, straight())
    assert scores.no_at_fault_collisions.item() == 0.0 and scores.time_to_collision_within_bound.item() == 0.0
    assert scores.score.item() == 0.0
    assert scores.ttc_time_index.item() < scores.collision_time_index.item() < 40
    cone = with_objects(road(), parked(25.0, 0.0), types=["TRAFFIC_CONE"], speeds=[math.nan])
    assert score_one(cone, straight()).no_at_fault_collisions.item() == 0.5
    light = with_objects(road(), parked(25.0, 0.0), tokens=["red_light_7"])
    assert score_one(light, straight()).score.item() == pytest.approx(1.0, abs=1e-6)


def test_a_car_that_runs_into_the_ego_from_behind_is_not_charged() -> None:
    boxes = parked(0.0, 0.0)
    boxes[:, 0, 0] = -8.0 + 0.1 * np.arange(51) * 12.0  # overtakes through the ego at 12 m/s
    scores = score_one(with_objects(road(), boxes, speeds=[12.0]), straight(speed=8.0))
    assert scores.no_at_fault_collisions.item() == 1.0


def test_leaving_the_road_fails_and_crossing_lanes_counts_as_direction() -> None:
    off = score_one(road(), straight(sideways=9.0))
    assert off.drivable_area_compliance.item() == 0.0 and off.score.item() == 0.0
    across = score_one(road(), straight(sideways=3.5))
    assert across.drivable_area_compliance.item() == 1.0
    assert across.driving_direction_compliance.item() < 1.0
    assert score_one(road(route_lane_ids=()), straight()).ego_areas[..., 2].all()


def test_a_road_without_polygons_or_objects_is_scored() -> None:
    bare = road(
        polygon_tokens=(), polygon_types=(), polygon_ring_offsets=np.zeros(1, dtype=np.int64),
        ring_offsets=np.zeros(1, dtype=np.int64), vertices=np.zeros((0, 2)),
    )  # fmt: skip
    scores = score_one(bare, straight())
    assert scores.drivable_area_compliance.item() == 0.0 and scores.no_at_fault_collisions.item() == 1.0
    assert torch.equal(scores.ego_areas.any(2)[0, 0], torch.tensor([False, True, True]))


def test_roadblock_connectors_are_not_drivable() -> None:
    kinds = ("ROADBLOCK_CONNECTOR", "LANE", "LANE", "LANE")
    assert score_one(road(polygon_types=kinds), straight()).drivable_area_compliance.item() == 0.0


def test_a_pond_in_the_roadblock_is_not_drivable() -> None:
    scene = road()
    pond = scene.ego_state[:2] + np.array([[20.0, -0.5], [21.0, -0.5], [21.0, 2.0], [20.0, 2.0]])
    pond = dataclasses.replace(
        scene,
        polygon_tokens=("block",), polygon_types=("ROADBLOCK",), polygon_ring_offsets=np.array([0, 2]),
        ring_offsets=np.array([0, 4, 8]), vertices=np.concatenate((scene.vertices[:4], pond)),
    )  # fmt: skip
    assert score_one(pond, straight(speed=1.0)).drivable_area_compliance.item() == 1.0
    assert score_one(pond, straight()).drivable_area_compliance.item() == 0.0


@pytest.mark.parametrize("speed", [0.0, -2.0])
def test_standing_and_reversing_states_are_simulated(speed: float) -> None:
    state = road().ego_state.copy()
    state[3] = speed
    scene = road(ego_state=state)
    states = simulate_plans(SceneBatch.from_scenes([scene]), straight(speed=0.0))
    assert torch.isfinite(states).all()
    assert abs(states[0, 1, -1, 3].item()) < 0.5


def test_progress_ignores_other_candidates() -> None:
    batch, plans = pack(read("straight", "curve"))
    together = score_plans(batch, plans)
    for candidate in (0, 7, 23):
        alone = score_plans(batch, plans[:, candidate : candidate + 1])
        for name in NAMES:
            if not name.startswith("reference"):
                pooled = getattr(together, name)[:, candidate : candidate + 1]
                torch.testing.assert_close(getattr(alone, name), pooled, rtol=0, atol=1e-9)


def test_scores_do_not_depend_on_batch_chunk_or_scene_order() -> None:
    batch, plans = pack(read("direct_tracks", "carpark", "degenerate", limit=9))
    plans = plans[:, :6]
    together = score_plans(batch, plans, max_plans_in_flight=10_000)
    for limit in (1, 4, 50):
        assert_same(together, score_plans(batch, plans, max_plans_in_flight=limit))
    order = torch.tensor([5, 1, 8, 0, 3, 2, 7, 4, 6])
    shuffled = score_plans(batch.select(order), plans[order], max_plans_in_flight=20)
    for name in NAMES:
        torch.testing.assert_close(getattr(shuffled, name), getattr(together, name)[order], rtol=0, atol=1e-9)


def test_object_and_polygon_order_do_not_matter() -> None:
    files = read("intersection", "carpark", "curve", limit=8)
    rng = np.random.default_rng(0)
    shuffled = []
    for file in files:
        scene = file.scene
        new_of_old = rng.permutation(len(scene.track_tokens))
        old_of_new = np.argsort(new_of_old)
        frame = np.repeat(np.arange(51), np.diff(scene.frame_offsets))
        rows = np.lexsort((rng.random(len(frame)), frame))
        polygons = rng.permutation(len(scene.polygon_tokens))
        rings = [np.arange(*scene.polygon_ring_offsets[p : p + 2]) for p in polygons]
        vertices = [scene.vertices[slice(*scene.ring_offsets[r : r + 2])][::-1] for ring in rings for r in ring]
        shuffled.append(
            dataclasses.replace(
                scene,
                object_track=new_of_old[scene.object_track[rows]].astype(np.int64),
                object_boxes=scene.object_boxes[rows],
                track_tokens=tuple(scene.track_tokens[i] for i in old_of_new),
                track_types=tuple(scene.track_types[i] for i in old_of_new),
                track_first_speed=scene.track_first_speed[old_of_new],
                polygon_tokens=tuple(scene.polygon_tokens[p] for p in polygons),
                polygon_types=tuple(scene.polygon_types[p] for p in polygons),
                polygon_ring_offsets=np.cumsum([0, *(len(ring) for ring in rings)]),
                ring_offsets=np.cumsum([0, *(len(ring) for ring in vertices)]),
                vertices=np.concatenate(vertices),
            )
        )
    batch, plans = pack(files)
    assert_same(score_plans(batch, plans), score_plans(SceneBatch.from_scenes(shuffled), plans))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.floats(-math.pi, math.pi), st.floats(-1e5, 1e5), st.integers(0, len(FIXTURES) - 1))
def test_scores_do_not_change_when_the_world_is_turned_and_moved(angle: float, shift: float, index: int) -> None:
    file = read_golden(FIXTURES[index])
    plans = torch.from_numpy(file.proposals)[None]
    firm = torch.from_numpy(~file.results["dbg_fragile"].any(1))[None]
    before, after = score_one(file.scene, plans), score_one(moved(file.scene, angle, shift), plans)
    for name in ("no_at_fault_collisions", "drivable_area_compliance", "comfort", "ego_progress", "score"):
        difference = (getattr(before, name) - getattr(after, name)).abs()[firm]
        assert difference.max() < 1e-5, name


def sequential_judgement(
    scene: MetricScene, states: NDArray[np.float64], areas: list[NDArray[np.bool_]]
) -> tuple[float, float]:
    """Collision and TTC of one plan, literally: shapely polygons, time loop, ignore lists."""

    def polygon(x: float, y: float, heading: float, length: float, width: float) -> Polygon:
        cos, sin = math.cos(heading), math.sin(heading)
        offsets = ((1, 1), (-1, 1), (-1, -1), (1, -1))
        return shapely.Polygon(
            [
                (x + a * length / 2 * cos - b * width / 2 * sin, y + a * length / 2 * sin + b * width / 2 * cos)
                for a, b in offsets
            ]
        )

    frames = []
    for k in range(51):
        rows = range(scene.frame_offsets[k], scene.frame_offsets[k + 1])
        frames.append([(int(scene.object_track[r]), scene.object_boxes[r]) for r in rows])
    origin = scene.ego_state[:2]
    agents = ("VEHICLE", "PEDESTRIAN", "BICYCLE", "EGO")

    def angle(state: NDArray[np.float64], box: NDArray[np.float64]) -> float:
        way = box[:2] - origin - state[:2]
        cosine = np.dot([math.cos(state[2]), math.sin(state[2])], way / np.linalg.norm(way))
        return math.acos(cosine) if abs(cosine) <= 1 else math.nan

    def ego(state: NDArray[np.float64], ahead: int) -> Polygon:
        cos, sin = math.cos(state[2]), math.sin(state[2])
        reach = REAR_AXLE_TO_CENTER + math.hypot(state[3], state[4]) * ahead * 0.1
        return polygon(state[0] + reach * cos, state[1] + reach * sin, state[2], EGO_LENGTH, EGO_WIDTH)

    multiple, off_road, crossing = areas
    collision, ignored = 1.0, set()
    for k, state in enumerate(states):
        footprint = ego(state, 0)
        last = dict(frames[k])
        for track, box in frames[k]:
            here = polygon(*(box[:2] - origin), *box[2:])
            if "red_light" in scene.track_tokens[track] or track in ignored or not footprint.intersects(here):
                continue
            judged = last[track]
            target = polygon(*(judged[:2] - origin), *judged[2:])
            corners = footprint.exterior.coords
            kind = scene.track_types[track]
            if math.hypot(state[3], state[4]) <= 0.05:
                fault = False
            elif kind not in agents or scene.track_first_speed[track] <= 0.05:
                fault = True
            elif angle(state, judged) > math.radians(150):
                fault = False
            else:
                front = shapely.LineString([corners[0], corners[3]])
                fault = front.intersects(target) or multiple[k] or off_road[k]
            if fault:
                collision = min(collision, 0.0 if kind in agents else 0.5)
            else:
                ignored.add(track)
    ttc, ignored = 1.0, set()
    for k, state in enumerate(states):
        for ahead in LOOKAHEAD:
            last = dict(frames[k + ahead])
            footprint = ego(state, ahead)
            for track, box in frames[k + ahead]:
                here = polygon(*(box[:2] - origin), *box[2:])
                if "red_light" in scene.track_tokens[track] or track in ignored:
                    continue
                if math.hypot(state[3], state[4]) < 0.005 or not footprint.intersects(here):
                    continue
                bearing = angle(state, last[track])
                exposed = multiple[k] or off_road[k] or crossing[k]
                if bearing < math.radians(30) or (exposed and not bearing > math.radians(150)):
                    ttc = 0.0
                else:
                    ignored.add(track)
    return collision, ttc


@pytest.mark.parametrize("seed", range(3))
def test_first_contact_rule_equals_walking_through_time_with_ignore_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 30
    start = np.stack((rng.uniform(-20, 60, count), rng.uniform(-12, 12, count)), axis=-1)
    velocity = rng.normal(size=(count, 2)) * [6.0, 1.5] * rng.integers(0, 2, (count, 1))
    boxes = np.zeros((51, count, 5))
    boxes[..., :2] = start + 0.1 * np.arange(51)[:, None, None] * velocity
    boxes[..., 2] = rng.uniform(-3, 3, count)
    boxes[..., 3:] = rng.uniform(0.3, 4.0, (count, 2))
    boxes[rng.random((51, count)) < 0.2] = np.nan
    kinds = rng.choice(["VEHICLE", "PEDESTRIAN", "BICYCLE", "BARRIER", "GENERIC_OBJECT"], count)
    tokens = [f"red_light_{i}" if i % 10 == 9 else f"track{i}" for i in range(count)]
    speeds = np.hypot(*velocity.T) * rng.integers(0, 2, count)
    scene = with_objects(road(), boxes, kinds.tolist(), speeds, tokens)
    # some tokens twice in a frame: let every sixth track's rows belong to the track before it
    track = scene.object_track.copy()
    track[track % 6 == 5] -= 1
    scene = dataclasses.replace(scene, object_track=track)
    state = scene.ego_state.copy()
    plans = torch.cat([straight(speed, side) for speed in (0.0, 3.0, 8.0, 12.0) for side in (0.0, 3.0, -5.0)]).view(
        1, 12, 8, 3
    )
    verdicts = set()
    for speed in (10.0, 0.0, -3.0):
        state[3] = speed
        scene = dataclasses.replace(scene, ego_state=state.copy())
        batch = SceneBatch.from_scenes([scene])
        states = simulate_plans(batch, plans)
        areas = ego_areas(batch, states)
        collision = no_at_fault_collisions(batch, states, areas).score[0]
        ttc = time_to_collision(batch, states, areas).score[0]
        for row in range(9):
            flags = [flag[0, row].numpy() for flag in (areas.multiple_lanes, areas.non_drivable, areas.in_intersection)]
            expected = sequential_judgement(scene, states[0, row].numpy(), flags)
            assert (collision[row].item(), ttc[row].item()) == expected, row
            verdicts.add(expected)
    assert len(verdicts) > 1


def test_many_objects_in_one_scene_do_not_disturb_the_others() -> None:
    files = read("straight", "curve", limit=3)
    batch, plans = pack(files)
    before = score_plans(batch, plans)
    crowd = np.tile(np.array([500.0, 500.0, 0.0, 4.0, 2.0]), (51, 300, 1))
    scenes = [file.scene for file in files] + [with_objects(road(), crowd)]
    after = score_plans(SceneBatch.from_scenes(scenes), torch.cat((plans, straight().expand(1, 24, 8, 3))))
    for name in NAMES:
        torch.testing.assert_close(getattr(after, name)[:3], getattr(before, name), rtol=0, atol=1e-9)
    assert after.score[3].min() > 0.999


def test_bad_plans_are_refused_with_token_and_candidate() -> None:
    batch, plans = pack(read("straight", limit=2))
    plans[1, 3, 4, 2] = math.nan
    with pytest.raises(ValueError, match=rf"{batch.tokens[1]}.*candidate 3"):
        score_plans(batch, plans)
    plans[1, 3, 4] = torch.tensor([1e12, 0.0, 0.0])
    with pytest.raises(ValueError, match=rf"{batch.tokens[1]}.*candidate 3"):
        score_plans(batch, plans)
    for wrong in (plans[:1], plans[:, :, :7], plans[..., :2], plans[0], plans.long()):
        with pytest.raises(ValueError, match="plans must"):
            score_plans(batch, wrong)
    with pytest.raises(ValueError, match="max_plans_in_flight"):
        score_plans(batch, torch.zeros_like(plans), max_plans_in_flight=0)


def test_float32_plans_give_the_same_scores() -> None:
    batch, plans = pack(read("straight", limit=2))  # fixtures hold values exact in float32
    assert_same(score_plans(batch, plans), score_plans(batch, plans.float()))


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"ego_state": np.full(11, np.nan)}, "ego_state"),
        ({"ego_state": np.zeros(7)}, "ego_state"),
        ({"vertices": np.full((16, 2), np.inf)}, "vertices"),
        ({"centerline": np.zeros((0, 3))}, "centerline"),
        ({"centerline": np.full((3, 3), np.nan)}, "centerline"),
        ({"reference_states": np.zeros((1, 3))}, "reference_states"),
        ({"reference_times_us": np.zeros(9, dtype=np.int64)}, "increase"),
        ({"polygon_types": ("LANE",) * 3}, "4 polygon tokens"),
        ({"polygon_types": ("POND",) * 4}, "POND"),
        ({"ring_offsets": np.array([0, 4, 8, 14, 16])}, "ring_offsets"),
        ({"frame_offsets": np.zeros(42, dtype=np.int64)}, "frame_offsets"),
        ({"track_tokens": ("a", "a"), "track_types": ("EGO",) * 2, "track_first_speed": np.zeros(2)}, "twice"),
        ({"track_tokens": ("a",), "track_types": ("GHOST",), "track_first_speed": np.zeros(1)}, "GHOST"),
        ({"track_tokens": ("a",), "track_types": ("EGO",), "track_first_speed": np.full(1, np.nan)}, "speed"),
    ],
)
def test_broken_scenes_are_refused_by_token(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)'broken'.*{problem}"):
        SceneBatch.from_scenes([road(), road(token="broken", **changes)])


def test_an_empty_list_of_scenes_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        SceneBatch.from_scenes([])


def test_reference_from_plan_is_tracked_like_the_plan_itself() -> None:
    file = read("turn90", limit=1)[0]
    state = ego_state_as_read_back(file.scene.ego_state)
    for candidate in range(4):
        knots, times = reference_from_plan(file.proposals[candidate], state, file.scene.ego_time_us)
        assert knots.shape == (9, 3) and times.shape == (9,) and times[0] == file.scene.ego_time_us
        scene = dataclasses.replace(file.scene, ego_state=state, reference_states=knots, reference_times_us=times)
        states = simulate_plans(
            SceneBatch.from_scenes([scene]), torch.from_numpy(file.proposals[candidate])[None, None]
        )
        torch.testing.assert_close(states[0, 0], states[0, 1], rtol=0, atol=1e-7)


def test_reading_the_rear_axle_back_moves_it_by_rounding_only() -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(-1, 1, (200, 11)) * 1e6
    raw[:, 0] = 2.0**19 - rng.uniform(0, 1, 200)  # the center has a coarser floating-point grid than the axle
    back = ego_state_as_read_back(raw)
    assert 0 < np.abs(back - raw).max() < 1e-9
    np.testing.assert_array_equal(back[:, 2:], raw[:, 2:])


def test_selecting_and_repeating_scenes_keeps_them_whole() -> None:
    batch, plans = pack(read("carpark", "straight", limit=3))
    picked = batch.select([2, 0, 2])
    assert len(picked) == 3 and picked.tokens == (batch.tokens[2], batch.tokens[0], batch.tokens[2])
    scores, again = score_plans(batch, plans), score_plans(picked, plans[[2, 0, 2]])
    torch.testing.assert_close(again.score, scores.score[[2, 0, 2]], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="no scenes"):
        score_plans(batch.select([]), plans[:0])
    assert score_plans(batch, plans[:, :0]).score.shape == (3, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_scores_of_the_cpu() -> None:
    batch, plans = pack(read("straight", "intersection", "direct_tracks", limit=6))
    there = score_plans(batch.to("cuda"), plans.cuda()).to("cpu")
    assert_same(score_plans(batch, plans), there, names=NAMES[:7])
