"""Synthetic scenes of the second stage: read as logs of their own, whatever else they hold is refused by name."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_bridge.files import synthetic_scenes
from navsim_bridge.files.nuplan_objects import NUPLAN
from navsim_bridge.files.pickle_reader import UnsafePickleError
from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.files.stand_in import StandIn
from navsim_bridge.files.synthetic_scenes import KNOWN, open_synthetic_scene, read_synthetic_scene
from tests.navsim_bridge.two_stage_world import LOCATION, LOG, TwoStageWorld

TOKEN = "00f32ab94de711d90"


@pytest.fixture
def path(two_stages: TwoStageWorld) -> Path:
    return two_stages.pickles / f"{TOKEN}.pkl"


@pytest.fixture
def raw(path: Path) -> dict[str, Any]:
    """What the file holds, to be changed."""
    content: dict[str, Any] = load_plain_pickle(path, KNOWN)
    return content


@pytest.fixture
def read(path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Reads the scene as ``raw`` has it."""
    monkeypatch.setattr(synthetic_scenes, "load_plain_pickle", lambda *_: raw)
    return lambda: read_synthetic_scene(path)


def made(name: str, *args: Any, **attributes: Any) -> StandIn:
    """An object as the reader of pickles makes it."""
    (kind,) = (kind for (_, known), kind in KNOWN.items() if known == name)
    found = object.__new__(kind)
    found.args = args
    vars(found).update(attributes)
    return found


def test_a_scene_is_a_log_of_its_frames_and_of_what_follows(path: Path) -> None:
    scene = read_synthetic_scene(path)
    log = scene.log
    assert (scene.token, scene.scene_token, scene.num_history, scene.num_frames) == (TOKEN, TOKEN, 4, 4)
    assert (log.name, set(log.locations), len(log)) == (LOG, {LOCATION}, 12)
    assert log.tokens[3] == TOKEN and len(set(log.tokens)) == 12
    np.testing.assert_array_equal(np.diff(log.times_us), 500_000)
    assert (log.poses[4:] == log.poses[3]).all() and (log.velocities[4:] == log.velocities[3]).all()
    assert not (log.poses[:4] == log.poses[3]).all(axis=1)[:3].any()
    shown = [a for a in log.annotations if a is not None]
    assert [a.is_global for a in shown] == [False] * 4 + [True] * 8
    assert all(len(set(a.track_tokens)) == len(a.types) for a in shown)


def test_what_follows_goes_on_from_where_the_frames_end(path: Path) -> None:
    log = read_synthetic_scene(path).log
    now, later = log.annotations[3:5]
    assert now is not None and later is not None
    there = dict(zip(now.track_tokens, now.global_poses(log.poses[3])))
    both = [(there[track], pose) for track, pose in zip(later.track_tokens, later.global_poses(log.poses[4]))
            if track in there]  # fmt: skip
    assert len(both) > 5
    assert all(np.hypot(*(after - before)[:2]) < 12 for before, after in both)  # of half a second


def test_velocities_of_frames_and_of_what_follows_are_both_turned_into_global_axes(path: Path) -> None:
    log = read_synthetic_scene(path).log
    for frame in (3, 4):
        shown = log.annotations[frame]
        assert shown is not None
        moving = shown.speeds > 2
        velocity = shown.global_velocities(log.poses[frame])[moving]
        heading = shown.global_poses(log.poses[frame])[moving, 2]
        along = (velocity * np.stack([np.cos(heading), np.sin(heading)], axis=1)).sum(axis=1)
        assert moving.any() and (along > 0.9 * shown.speeds[moving]).all()


def test_missing_lights_are_none_and_only_red_ones_count(read: Callable[[], Any], raw: dict[str, Any]) -> None:
    light = raw["extended_traffic_light_data"][0].traffic_lights[0]
    lights = []
    for connector, status in ((5, 2), ("7", 2), (6, 0), (8, 3)):  # 2 is red, 0 green, 3 unknown
        kind = made("TrafficLightStatusType", status)
        more = {"lane_connector_id": connector, "timestamp": light.timestamp}
        lights.append(made("TrafficLightStatusData", status=kind, **more))
    raw["extended_traffic_light_data"] = [made("TrafficLightStatuses", traffic_lights=lights)]
    assert read().log.red_lights[4:] == (("5", "7"), *[()] * 7)
    raw["extended_traffic_light_data"] = None
    assert read().log.red_lights[4:] == ((),) * 8


def test_cameras_are_named_by_paths_of_either_kind(read: Callable[[], Any], raw: dict[str, Any]) -> None:
    raw["frames"][3]["camera_dict"] |= {
        "cam_f0": {"data_path": made("PosixPath", LOG, "CAM_F0", "a.jpg"), "cam_intrinsic": np.eye(3)},
        "cam_l0": {"data_path": f"{LOG}/CAM_L0/b.jpg"},
    }
    assert read().log.cameras[3] == {"CAM_F0": f"{LOG}/CAM_F0/a.jpg", "CAM_L0": f"{LOG}/CAM_L0/b.jpg"}
    raw["frames"][3]["camera_dict"]["cam_f0"] = {"data_path": made("PosixPath", "/", "etc", "passwd")}
    with pytest.raises(ValueError, match=r"frame 3 .*'camera_dict/CAM_F0/data_path': expected a path below"):
        read()


def test_motion_keeps_the_precision_of_the_file(read: Callable[[], Any], raw: dict[str, Any]) -> None:
    raw["frames"][3]["ego_status"]["ego_velocity"] = np.array([0.1, 0.0])
    assert read().log.velocities[3, 0] == 0.1 != float(np.float32(0.1))


def test_frames_after_the_present_are_frames_and_shift_what_follows(
    read: Callable[[], Any], raw: dict[str, Any]
) -> None:
    raw["frames"].append(raw["frames"][3] | {"token": "later", "timestamp": raw["frames"][3]["timestamp"] + 500_000})
    scene = read()
    assert (scene.num_frames, len(scene.log), scene.log.tokens[4]) == (5, 13, "later")
    shown = scene.log.annotations
    assert not shown[4].is_global and shown[5].is_global


def test_a_scene_that_tells_of_nothing_to_come_is_one_of_its_frames(
    read: Callable[[], Any], raw: dict[str, Any]
) -> None:
    del raw["extended_detections_tracks"]
    assert len(read().log) == 4


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value at a path of keys, numbers and attributes."""

    def change(found: Any) -> None:
        for part in path[:-1]:
            found = vars(found)[part] if isinstance(found, StandIn) else found[part]
        if isinstance(found, StandIn):
            vars(found)[path[-1]] = value
        else:
            found[path[-1]] = value

    return change


FRAME, STATUS = ("frames", 3), ("frames", 3, "ego_status")
LATER, LIGHTS = "extended_detections_tracks", "extended_traffic_light_data"
OBJECT = (LATER, 2, "tracked_objects", "tracked_objects", 0)
LIGHT = (LIGHTS, 0, "traffic_lights", 0)
NO_BOX = r"extended_detections_tracks\[2\]: expected a box that can be, found"


@pytest.mark.parametrize(("change", "message"), [
    (lambda raw: raw.pop("frames"), "expected a dict with scene_metadata and frames, found"),
    (at("scene_metadata", value=[1]), r"scene_metadata: expected a dict, found \[1\]"),
    (lambda raw: raw["scene_metadata"].pop("map_name"), "scene_metadata: no key 'map_name'; found"),
    (at("scene_metadata", "map_name", value="mars"), "scene_metadata/map_name: expected one of sg-one-north"),
    (at("scene_metadata", "log_name", value="../../x"), "scene_metadata/log_name: expected at most 200 printable"),
    (at("scene_metadata", "initial_token", value="f" * 17), "initial_token is 'f{17}', but the frame at t = 0 has"),
    (at("scene_metadata", "num_history_frames", value=0), "scene_metadata/num_history_frames: expected 1 to"),
    (at("scene_metadata", "num_history_frames", value=5), "frames: expected 5 to 256, found 4"),
    (at("frames", value=[]), "frames: expected 4 to 256, found 0"),
    (at("frames", value=5), "frames: expected a list of dicts, found 5"),
    (lambda raw: raw["frames"][1].pop("ego_status"), "frame 1: no key 'ego_status'; found"),
    (at(*STATUS, value={}), r"frame 3 .*'ego_status/ego_pose': expected a value, found 'no such key'"),
    (at(*STATUS, "ego_pose", value=np.zeros(2)), "'ego_status/ego_pose': expected 3 numbers"),
    (at(*STATUS, "ego_velocity", value=np.array([np.nan, 0])), "'ego_status/ego_velocity': expected finite"),
    (at(*STATUS, "driving_command", value=[1, 1, 0, 0]), "driving_command': expected a one-hot"),
    (at(*FRAME, "annotations", "names", value=["ufo"]), "frame 3 .*'annotations': expected lists of one length"),
    (at(*FRAME, "annotations", "boxes", 0, value=np.nan), "'annotations/boxes': expected finite numbers"),
    (at(*FRAME, "camera_dict", "cam_x0", value={"data_path": "a"}), "'camera_dict': expected cameras among CAM_F0"),
    (at(*FRAME, "timestamp", value=0), "frame 3 .*'timestamp': expected a time after"),
    (at(LATER, value=5), "extended_detections_tracks: expected a list, found 5"),
    (at(LATER, value=[None] * 300), "extended_detections_tracks: 300 frames; at most 256"),
    (at(*OBJECT[:2], value=[]), r"extended_detections_tracks\[2\]: expected an object, found \[\]"),
    (at(*OBJECT, value=made("StateSE2", x=0)), r"tracked_objects\[0\]: expected an object with"),
    (at(*OBJECT, "_tracked_object_type", value=made("TrackedObjectType", 9)), "expected the number of an object type"),
    (at(*OBJECT, "_box", "_length", value=np.inf), r"_box\._length: expected a number from"),
    (at(*OBJECT, "_box", "_length", value=-1.0), NO_BOX),
    (at(*OBJECT, "_box", "_center", "x", value=0.0), NO_BOX),
    (at(*OBJECT, "_velocity", "_x", value=np.nan), r"_velocity\._x: expected a number from"),
    (at(*OBJECT, "_velocity", "_x", value=5e3), NO_BOX),
    (at(*OBJECT, "_metadata", "track_token", value=None), r"_metadata\.track_token: expected a text"),
    (at(LIGHTS, 0, value=[]), r"extended_traffic_light_data\[0\]: expected an object, found \[\]"),
    (at(*LIGHT, "status", value=2), r"\[0\]\.status: expected an object"),
    (at(*LIGHT, "lane_connector_id", value=1.5),
     r"lane_connector_id: expected a whole number, found 1.5"),
])  # fmt: skip
def test_what_is_not_as_the_devkit_writes_it_is_named(
    read: Callable[[], Any], raw: dict[str, Any], path: Path, change: Callable[[Any], object], message: str
) -> None:
    change(raw)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as raised:
        read()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 800


def test_a_track_twice_is_noted_for_who_scores_the_scene(read: Callable[[], Any], raw: dict[str, Any]) -> None:
    tracked = raw["extended_detections_tracks"][1].tracked_objects.tracked_objects
    tracked.append(tracked[0])
    assert read().log.odd["repeated_tracks"].tolist() == [5]


class Foreign:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_class_that_is_not_known_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "scene.pkl"
    file.write_bytes(pickle.dumps({"scene_metadata": {}, "frames": [Foreign(tmp_path / "made")]}))
    with pytest.raises(UnsafePickleError, match=rf"{file}: refused to load {os.mkdir.__module__}\.mkdir"):
        read_synthetic_scene(file)
    assert not (tmp_path / "made").exists()


def test_what_stands_for_a_class_keeps_what_it_is_given_and_does_no_more() -> None:
    for kind in (NUPLAN | KNOWN).values():
        assert kind.__mro__ == (kind, StandIn, object)
        assert {name for name in vars(kind) if callable(vars(kind)[name])} == set()


@pytest.mark.parametrize("size", [synthetic_scenes.MOST_BYTES + 1, 1 << 40])
def test_a_file_that_is_far_too_long_is_not_read(size: int, tmp_path: Path) -> None:
    file = tmp_path / "scene.pkl"
    with file.open("wb") as content:
        content.truncate(size)
    with pytest.raises(ValueError, match=rf"{file} has more than {synthetic_scenes.MOST_BYTES} bytes"):
        read_synthetic_scene(file)


def test_a_scene_cut_off_anywhere_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    data, file = path.read_bytes(), tmp_path / "scene.pkl"
    for length in np.linspace(0, len(data) - 1, 12).astype(int):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"^{file}: ") as raised:
            read_synthetic_scene(file)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 800


def test_a_changed_file_is_read_again(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "scene.pkl"
    shutil.copy(path, file)
    first = open_synthetic_scene(file)
    assert open_synthetic_scene(file) is first
    shutil.copy(path.with_name("0098fc88de9bf6049.pkl"), file)
    assert open_synthetic_scene(file).token == "0098fc88de9bf6049"
    assert dataclasses.replace(first) == first
    with pytest.raises(FileNotFoundError, match="no synthetic scene"):
        open_synthetic_scene(tmp_path / "none.pkl")
