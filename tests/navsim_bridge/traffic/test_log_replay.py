from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from navsim_bridge.files.frames import OBJECT_NAMES, Annotations
from navsim_bridge.traffic.log_replay import Observation, observe

KEY_FRAMES = 11
EGO_AT_ORIGIN = np.zeros((KEY_FRAMES, 3))


def frames(**tracks: Any) -> list[Annotations]:
    """Key frames from ``name={key frame: (x, heading, length, speed)}``; ``name`` is TYPE_token."""
    result = []
    for k in range(KEY_FRAMES):
        seen = [(name, track[k]) for name, track in tracks.items() if k in track]
        result.append(Annotations(
            boxes=np.array([[x, 0, 0, length, 2, 1, heading] for _, (x, heading, length, _) in seen]).reshape(-1, 7),
            types=np.array([OBJECT_NAMES.index(name.rpartition("_")[0]) for name, _ in seen], dtype=np.int64),
            velocities=np.array([[values[3], 0.0] for _, values in seen]).reshape(-1, 2),
            track_tokens=tuple(name.rpartition("_")[2] for name, _ in seen),
        ))  # fmt: skip
    return result


def boxes_of(observation: Observation, token: str) -> dict[int, NDArray[np.float64]]:
    """frame -> (5,) box of a track."""
    track = observation.track_tokens.index(token)
    rows = np.flatnonzero(observation.object_track == track)
    frame = np.searchsorted(observation.frame_offsets, rows, side="right") - 1
    return dict(zip(frame.tolist(), observation.object_boxes[rows]))


def test_a_track_moves_linearly_between_sightings_and_across_gaps() -> None:
    seen = frames(vehicle_a={2: (10.0, 0.0, 4.0, 8.0), 3: (14.0, 0.0, 4.0, 8.0), 7: (22.0, 0.0, 4.0, 4.0)})
    boxes = boxes_of(observe(seen, EGO_AT_ORIGIN), "a")
    assert sorted(boxes) == list(range(10, 36))  # 1.0 s to 3.5 s, ends included
    assert boxes[10][0] == 10.0
    assert boxes[15][0] == pytest.approx(14.0)
    assert boxes[12][0] == pytest.approx(11.6)
    assert boxes[25][0] == pytest.approx(18.0)  # half way through the gap


def test_a_track_seen_once_stands_in_every_frame() -> None:
    boxes = boxes_of(observe(frames(vehicle_a={6: (10.0, 0.3, 4.0, 8.0)}), EGO_AT_ORIGIN), "a")
    assert sorted(boxes) == list(range(51))
    np.testing.assert_allclose(np.array(list(boxes.values())), np.tile([10.0, 0.0, 0.3, 4.0, 2.0], (51, 1)))


def test_size_type_and_speed_are_those_of_the_first_sighting() -> None:
    track = {1: (0.0, 0.0, 4.0, 0.0), 2: (5.0, 0.0, 6.0, 10.0)}
    observation = observe(frames(vehicle_a=track), EGO_AT_ORIGIN)
    assert {box[3] for box in boxes_of(observation, "a").values()} == {4.0}
    assert observation.track_first_speed.tolist() == [0.0]
    assert observation.track_types == ("VEHICLE",)


def test_headings_turn_the_short_way_round() -> None:
    track = {0: (0.0, np.pi - 0.1, 4.0, 0.0), 1: (0.0, -np.pi + 0.1, 4.0, 0.0)}
    boxes = boxes_of(observe(frames(vehicle_a=track), EGO_AT_ORIGIN), "a")
    turned = [np.mod(boxes[i][2], 2 * np.pi) for i in range(6)]
    np.testing.assert_allclose(turned, np.pi + np.linspace(-0.1, 0.1, 6))
    assert all(-np.pi <= boxes[i][2] <= np.pi for i in range(6))


def test_objects_are_listed_by_type_then_by_first_sighting() -> None:
    track = {0: (0.0, 0.0, 1.0, 1.0), 1: (1.0, 0.0, 1.0, 1.0)}
    late = {1: (0.0, 0.0, 1.0, 1.0), 2: (1.0, 0.0, 1.0, 1.0)}
    seen = frames(barrier_b1=track, vehicle_v2=late, pedestrian_p=track, vehicle_v1=track)
    observation = observe(seen, EGO_AT_ORIGIN)
    rows = slice(observation.frame_offsets[5], observation.frame_offsets[6])
    assert [observation.track_tokens[i] for i in observation.object_track[rows]] == ["v1", "v2", "p", "b1"]


def test_things_that_are_no_road_users_have_no_speed() -> None:
    observation = observe(frames(traffic_cone_c={0: (0.0, 0.0, 1.0, 3.0)}), EGO_AT_ORIGIN)
    assert observation.track_first_speed.tolist() == [0.0]


def test_boxes_are_placed_from_their_own_frames_ego_pose() -> None:
    poses = EGO_AT_ORIGIN.copy()
    poses[1] = [100.0, 50.0, np.pi / 2]
    seen = frames(vehicle_a={0: (100.0, 0.0, 4.0, 0.0), 1: (10.0, 0.0, 4.0, 0.0)})
    boxes = boxes_of(observe(seen, poses), "a")
    np.testing.assert_allclose(boxes[5][:3], [100.0, 60.0, np.pi / 2], atol=1e-12)


def test_scenes_without_objects_have_empty_frames() -> None:
    observation = observe(frames(), EGO_AT_ORIGIN)
    assert observation.frame_offsets.tolist() == [0] * 52
    assert observation.object_boxes.shape == (0, 5)


def test_a_track_shown_twice_in_one_frame_is_refused() -> None:
    seen = frames(vehicle_a={0: (0.0, 0.0, 1.0, 0.0)}, bicycle_a={0: (9.0, 0.0, 1.0, 0.0)})
    with pytest.raises(ValueError, match="key frame 0 shows one track twice: a"):
        observe(seen, EGO_AT_ORIGIN)
