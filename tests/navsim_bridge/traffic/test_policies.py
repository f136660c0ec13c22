"""What is around the ego by each policy, in the form in which scores take objects."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dpvla.registry import RegistryError
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.pdm import EPDMSBatch
from navsim_bridge.pdm.metric_scene import MetricScene, TrafficInputs
from navsim_bridge.pdm.score import simulate_plans
from navsim_bridge.pdm.traffic_scene import SceneTraffic
from navsim_bridge.traffic.idm import IDM
from navsim_bridge.traffic.policy import listed
from navsim_bridge.traffic.registry import TRAFFIC, make_traffic
from tests.navsim_bridge.traffic.made_up import with_traffic
from tests.paths import FIXTURES

GOLDEN = FIXTURES / "golden_v2" / "public_109_carpark.npz"
REFERENCE = FIXTURES / "idm_v2.npz"


def _cases() -> list[str]:
    with np.load(REFERENCE) as stored:
        return sorted({name.rpartition("/")[0] for name in stored.files if name.endswith("/ego")})


@pytest.mark.parametrize("case", _cases())
def test_idm_traffic_is_the_devkits(case: str) -> None:
    """Its reactive policy's own output (navsim 2.1.2), in generated scenes: every frame, in its order."""
    with np.load(REFERENCE) as stored:
        of_case, of_scene = (
            {name.rpartition("/")[2]: stored[name] for name in stored.files if name.rpartition("/")[0] == folder}
            for folder in (case, case.rpartition("/")[0])
        )
    fields = {field.name: of_scene[field.name] for field in dataclasses.fields(TrafficInputs)}
    scene = SceneTraffic(
        TrafficInputs(**fields), tuple(of_scene["tokens"].tolist()), of_scene["now"], of_scene["origin"]
    )
    frames = IDM().move([scene], np.zeros(1, dtype=np.int64), of_case["ego"][None])
    assert frames.dead_ends[0] == 0
    expected = np.split(of_case["boxes"], np.cumsum(of_case["counts"])[:-1])
    order = np.split(of_case["vehicle"], np.cumsum(of_case["counts"])[:-1])
    for k, vehicles in enumerate(listed(scene, frames, 0)):
        assert vehicles == order[k].tolist()
        found = (frames.poses[0, k, vehicles], scene.boxes[vehicles, 3:], frames.velocities[0, k, vehicles])
        np.testing.assert_allclose(np.concatenate(found, axis=1), expected[k], rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def scene() -> MetricScene:
    return with_traffic(read_golden_epdms(GOLDEN).scene)


@pytest.fixture(scope="module")
def states(scene: MetricScene) -> torch.Tensor:
    batch = EPDMSBatch.from_scenes([scene])
    plans = torch.zeros((1, 2, 8, 3), dtype=torch.float64)
    plans[0, 1, :, 0] = torch.arange(1, 9) * 3.0
    return simulate_plans(batch.scenes, plans)[:, 1:]


def inputs_of(scene: MetricScene) -> TrafficInputs:
    assert scene.v2 is not None and scene.v2.traffic is not None
    return scene.v2.traffic


def test_traffic_has_a_name_and_another_name_is_refused() -> None:
    assert list(TRAFFIC) == ["log_replay", "constant_velocity", "idm"]
    assert all(make_traffic(name).as_recorded == (name == "log_replay") for name in TRAFFIC)
    with pytest.raises(RegistryError, match="unknown traffic 'idn'; nearest valid name: 'idm'"):
        make_traffic("idn")


def test_recorded_traffic_is_what_the_scenes_hold_for_each_plan(scene: MetricScene, states: torch.Tensor) -> None:
    batch = EPDMSBatch.from_scenes([scene])
    objects = make_traffic("log_replay").simulate(batch, states)
    for name in ("object_boxes", "object_mask", "object_track", "track_is_agent", "track_stopped", "track_skipped"):
        torch.testing.assert_close(getattr(objects, name), getattr(batch.scenes, name).repeat_interleave(2, dim=0))
    assert objects.dead_ends.tolist() == [0, 0]


def test_vehicles_of_constant_velocity_go_straight_on(scene: MetricScene, states: torch.Tensor) -> None:
    batch = EPDMSBatch.from_scenes([scene])
    objects, found = make_traffic("constant_velocity").simulate(batch, states), inputs_of(scene)
    for vehicle, track in enumerate(found.vehicle_track.tolist()):
        assert bool(objects.object_mask[:, :, track].all())
        boxes = objects.object_boxes[1, :, track].numpy()
        elapsed = np.arange(41)[:, None] * 0.1
        np.testing.assert_allclose(boxes[:, :2], boxes[0, :2] + found.vehicle_velocity[vehicle] * elapsed, atol=1e-8)
        np.testing.assert_allclose(boxes[:, 2:], boxes[:1, 2:].repeat(41, axis=0))


@pytest.mark.parametrize("name", ["constant_velocity", "idm"])
def test_what_is_no_vehicle_is_as_recorded_and_later_vehicles_are_not_there(
    name: str, scene: MetricScene, states: torch.Tensor
) -> None:
    batch = EPDMSBatch.from_scenes([scene])
    objects, present = make_traffic(name).simulate(batch, states), inputs_of(scene).present
    recorded = batch.traffic.recorded[0].numpy()
    for track, kind in enumerate(scene.track_types):
        shown = objects.object_mask[0, :, track].numpy()
        assert shown[0] == (recorded[0, track] and present[track])
        if kind != "VEHICLE":
            np.testing.assert_array_equal(shown[1:], recorded[1:, track])
            boxes = objects.object_boxes[0, :, track][torch.from_numpy(shown)]
            torch.testing.assert_close(boxes, batch.scenes.object_boxes[0, :41, track][torch.from_numpy(shown)])
        elif not present[track]:
            assert not shown.any()
    assert any(kind != "VEHICLE" for kind in scene.track_types)


def test_what_overlaps_the_ego_at_first_is_in_moved_traffic_alone(scene: MetricScene) -> None:
    track = int(inputs_of(scene).vehicle_track[0])
    boxes = scene.object_boxes.copy()
    boxes[scene.object_track == track, :2] = scene.ego_state[:2]
    batch = EPDMSBatch.from_scenes([dataclasses.replace(scene, object_boxes=boxes)])
    assert not bool(batch.scenes.object_mask[0, :, track].any()) and bool(batch.traffic.recorded[0, 0, track])
    objects = make_traffic("constant_velocity").simulate(batch, torch.zeros((1, 1, 41, 11), dtype=torch.float64))
    assert bool(objects.object_mask[0, :, track].all())


def test_parked_vehicles_stay_but_not_where_another_stands(scene: MetricScene, states: torch.Tensor) -> None:
    found = inputs_of(scene)
    one, two = found.vehicle_track[:2]
    boxes = scene.object_boxes.copy()
    boxes[scene.object_track == two, :3] = boxes[scene.object_track == one, :3][0]  # the second into the first
    crowded = dataclasses.replace(scene, object_boxes=boxes)
    shown = make_traffic("idm").simulate(EPDMSBatch.from_scenes([crowded]), states).object_mask[0]
    assert bool(shown[0, two]) and bool(shown[:, one].all()) and not bool(shown[1:, two].any())
    nobody = with_traffic(scene, parked=np.zeros(len(found.parked), dtype=bool))
    shown = make_traffic("idm").simulate(EPDMSBatch.from_scenes([nobody]), states).object_mask[0]
    assert not bool(shown[1:, found.vehicle_track].any())


def test_scenes_without_traffic_are_named_with_what_to_do(scene: MetricScene, states: torch.Tensor) -> None:
    assert scene.v2 is not None
    old = dataclasses.replace(scene, token="old", v2=dataclasses.replace(scene.v2, traffic=None))
    batch = EPDMSBatch.from_scenes([scene, old])
    make_traffic("log_replay").simulate(batch, states.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"metric scene 'old' \(1 of 2\).*make it again with tools/cache_metrics\.py"):
        make_traffic("idm").simulate(batch, states.repeat(2, 1, 1, 1))


def test_batches_can_be_cut_and_joined_with_their_traffic(scene: MetricScene, states: torch.Tensor) -> None:
    other = dataclasses.replace(scene, token="other", ego_state=scene.ego_state + np.eye(11)[0])
    whole = EPDMSBatch.from_scenes([scene, other])
    again = EPDMSBatch.concatenate([whole.select([1]), whole.select([0])]).select([1, 0])
    for policy in map(make_traffic, TRAFFIC):
        one, two = (policy.simulate(batch, states.repeat(2, 1, 1, 1)) for batch in (whole, again))
        for field in dataclasses.fields(one):
            assert torch.equal(getattr(one, field.name), getattr(two, field.name)), field.name


BROKEN: dict[str, Any] = {
    "present": np.ones(1, dtype=bool), "vehicle_velocity": np.zeros((9, 2)), "parked": np.zeros(0, dtype=bool),
    "follower": np.array([0]), "line_offsets": np.array([0, 2]), "vehicle_track": np.array([10_000]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_traffic_that_contradicts_its_scene_is_refused_by_name(name: str, scene: MetricScene) -> None:
    broken = with_traffic(scene, **{name: BROKEN[name]})
    with pytest.raises(ValueError, match=rf"metric scene '{scene.token}': v2\.traffic\."):
        EPDMSBatch.from_scenes([broken])
