from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_bridge.files.frames import to_global, yaw
from navsim_bridge.files.logs import list_logs, open_log, read_log
from navsim_bridge.files.pickles import UnsafePickleError
from tests.navsim_bridge.conftest import MakeFrame, World


class RunsCommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def write(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def some_boxes(**values: Any) -> dict[str, Any]:
    return {
        "gt_boxes": np.array([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.1]]),
        "gt_names": np.array(["vehicle"]),
        "gt_velocity_3d": np.array([[3.0, 4.0, 0.0]]),
        "instance_tokens": ["i"],
        "track_tokens": ["t"],
        **values,
    }


def camera(**values: Any) -> dict[str, Any]:
    return {
        "data_path": "a/b.jpg",
        "cam_intrinsic": np.diag([900.0, 900.0, 1.0]),
        "sensor2lidar_rotation": np.eye(3),
        "sensor2lidar_translation": np.array([1.0, 0.0, 1.5]),
        **values,
    }


def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = write(tmp_path / "log.pkl", [{"token": RunsCommand(f"touch {trace}")}])
    with pytest.raises(UnsafePickleError, match=r"log\.pkl: refused to load (posix|nt)\.system"):
        read_log(path)
    assert not trace.exists()


def test_a_cut_file_is_named(tmp_path: Path, frame: MakeFrame) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps([frame(0)])[:-20])
    with pytest.raises(ValueError, match=r"log\.pkl: not a readable pickle"):
        read_log(path)


@pytest.mark.parametrize("key, value, message", [
    ("ego_dynamic_state", [1.0, 2.0, 3.0], "'ego_dynamic_state': expected 4 numbers, found"),
    ("ego_dynamic_state", [1.0, float("nan"), 0.0, 0.0], "'ego_dynamic_state': expected finite numbers"),
    ("driving_command", np.array([1, 1, 0, 0]), "'driving_command': expected a one-hot of 4"),
    ("map_location", "berlin", "'map_location': expected one of sg-one-north"),
    ("roadblock_ids", [1], "'roadblock_ids': expected a list of strings"),
    ("timestamp", 5, "'timestamp': expected a time after the previous frame's"),
    ("token", f"{0:016x}", "'token': expected a token that no earlier frame has"),
    ("ego2global_rotation", np.zeros(4), "'ego2global_rotation': expected a unit quaternion"),
    ("cams", {"CAM_X": {}}, "'cams': expected cameras among"),
    ("cams", {"CAM_F0": {"data_path": "../../secret.jpg"}}, "'cams/CAM_F0/data_path': expected a path below"),
    ("cams", {"CAM_F0": camera(cam_intrinsic=np.eye(2))}, "'cams/CAM_F0/cam_intrinsic': expected 3 x 3 numbers, found"),
    ("cams", {"CAM_F0": camera(sensor2lidar_translation=[0, 0, np.inf])}, "sensor2lidar_translation': expected finite"),
    ("anns", some_boxes(track_tokens=["a", "b"]), "'anns': expected lists of one length"),
    ("anns", some_boxes(gt_names=np.array(["tank"])), "'anns/gt_names': expected one of vehicle"),
    ("anns", some_boxes(gt_boxes=np.full((1, 7), np.nan)), "'anns/gt_boxes': expected finite numbers.*track t"),
])  # fmt: skip
def test_a_bad_value_is_named_with_file_frame_and_key(
    tmp_path: Path, frame: MakeFrame, key: str, value: object, message: str
) -> None:
    path = write(tmp_path / "log.pkl", [frame(0), frame(1, **{key: value})])
    with pytest.raises(ValueError, match=rf"log\.pkl: frame 1 .*{message}"):
        read_log(path)


def test_a_missing_key_is_named(tmp_path: Path, frame: MakeFrame) -> None:
    broken = frame(0)
    del broken["roadblock_ids"]
    with pytest.raises(ValueError, match="frame 0: no key 'roadblock_ids'"):
        read_log(write(tmp_path / "log.pkl", [broken]))


def test_a_log_holds_poses_speeds_and_float32_dynamics(tmp_path: Path, frame: MakeFrame) -> None:
    half = np.sqrt(0.5)
    state = [0.1, 0.0, 0.0, 0.0]
    frames = [frame(0), frame(1, ego2global_rotation=[half, 0, 0, half], ego_dynamic_state=state, anns=some_boxes())]
    log = read_log(write(tmp_path / "log.pkl", frames))
    np.testing.assert_allclose(log.poses[1], [10.0, 0.0, np.pi / 2])
    assert log.velocities[1, 0] == np.float32(0.1)
    assert log.commands.tolist() == [1, 1]
    before, after = log.annotations
    assert before is None
    assert after is not None
    assert after.speeds.tolist() == [5.0]


def test_empty_annotations_are_zero_boxes(tmp_path: Path, frame: MakeFrame) -> None:
    nothing = some_boxes(gt_boxes=np.zeros((0,)), gt_names=[], gt_velocity_3d=[], instance_tokens=[], track_tokens=[])
    log = read_log(write(tmp_path / "log.pkl", [frame(0, anns=nothing)]))
    (found,) = log.annotations
    assert found is not None
    assert found.boxes.shape == (0, 7)


def test_yaw_follows_the_devkits_library_under_roll_and_pitch() -> None:
    # Its sign of the x*y term differs from the textbook's.
    w, x, y, z = q = np.array([0.9, 0.1, 0.2, 0.3]) / np.linalg.norm([0.9, 0.1, 0.2, 0.3])
    assert yaw(q) == pytest.approx(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z)))
    assert yaw(q) != pytest.approx(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def test_a_quaternion_of_unit_length_keeps_every_bit() -> None:
    half = np.linspace(-1.5, 1.5, 200)
    for w, z in zip(np.cos(half), np.sin(half)):
        assert yaw(np.array([w, 0.0, 0.0, z])) == np.arctan2(2 * (w * z - 0.0), 1 - 2 * (0.0 + z**2))
        assert yaw(3.0 * np.array([w, 0.0, 0.0, z])) == pytest.approx(yaw(np.array([w, 0.0, 0.0, z])))


def test_headings_of_boxes_are_wrapped_twice_bit_by_bit_as_in_the_devkit() -> None:
    rng = np.random.default_rng(0)
    boxes = np.zeros((500, 7))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, 500)
    once = boxes[:, 6] + 2.5
    twice = [np.arctan2(np.sin(h), np.cos(h)) for h in (np.arctan2(np.sin(h), np.cos(h)) for h in once)]
    np.testing.assert_array_equal(to_global(boxes, np.array([0.0, 0.0, 2.5]))[:, 2], twice)


def test_a_changed_log_is_read_again(tmp_path: Path, frame: MakeFrame) -> None:
    path = write(tmp_path / "log.pkl", [frame(0)])
    assert len(open_log(path)) == 1
    write(path, [frame(0), frame(1)])
    assert len(open_log(path)) == 2


def test_a_split_without_logs_names_the_folders_there_are(world: World) -> None:
    with pytest.raises(FileNotFoundError, match="splits with a folder there: mini"):
        list_logs(world.root, "trainval")


def doubled(times: int) -> Any:
    nested: Any = "x"
    for _ in range(times):
        nested = [nested, nested]
    return nested


def test_a_deeply_nested_value_is_refused_without_writing_it_out(tmp_path: Path, frame: MakeFrame) -> None:
    for key in ("token", "roadblock_ids", "timestamp"):
        with pytest.raises(ValueError, match=rf"'{key}': expected .*, found \[\["):
            read_log(write(tmp_path / "log.pkl", [frame(0, **{key: doubled(10)})]))
        with pytest.raises(ValueError, match=r"log\.pkl: not a readable pickle .* what it repeats included"):
            read_log(write(tmp_path / "log.pkl", [frame(0, **{key: doubled(30)})]))


def test_cameras_have_their_calibration_where_the_log_holds_one(tmp_path: Path, frame: MakeFrame) -> None:
    cameras = {"CAM_F0": camera(), "CAM_L0": {"data_path": "a/c.jpg"}, "CAM_R0": camera(cam_intrinsic=None)}
    log = read_log(write(tmp_path / "log.pkl", [frame(0, cams=cameras)]))
    assert set(log.cameras[0]) == {"CAM_F0", "CAM_L0", "CAM_R0"}
    ((name, calibration),) = log.calibrations[0].items()
    assert name == "CAM_F0"
    np.testing.assert_array_equal(calibration.intrinsic, np.diag([900.0, 900.0, 1.0]))
    np.testing.assert_array_equal(calibration.rotation, np.eye(3))
    np.testing.assert_array_equal(calibration.translation, [1.0, 0.0, 1.5])
