import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from navsim_bridge.files.logs import list_logs, open_log, read_log, to_global, yaw
from navsim_bridge.files.pickles import UnsafePickleError, load_plain_pickle


class RunsCommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write(path: Path, content) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def annotations(**values):
    return {
        "gt_boxes": np.array([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.1]]),
        "gt_names": np.array(["vehicle"]),
        "gt_velocity_3d": np.array([[3.0, 4.0, 0.0]]),
        "instance_tokens": ["i"],
        "track_tokens": ["t"],
        **values,
    }


def camera(**values):
    return {
        "data_path": "a/b.jpg",
        "cam_intrinsic": np.diag([900.0, 900.0, 1.0]),
        "sensor2lidar_rotation": np.eye(3),
        "sensor2lidar_translation": np.array([1.0, 0.0, 1.5]),
        **values,
    }


def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path):
    trace = tmp_path / "ran"
    path = write(tmp_path / "log.pkl", [{"token": RunsCommand(f"touch {trace}")}])
    with pytest.raises(UnsafePickleError, match=r"log\.pkl: refused to load (posix|nt)\.system"):
        read_log(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\n_reconstruct.__class__",
                                  b"builtins\ngetattr"])  # fmt: skip
def test_names_beside_the_allowed_ones_are_refused(tmp_path, name):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"c" + name + b"\n.")
    with pytest.raises(UnsafePickleError):
        load_plain_pickle(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_containers_and_numpy_values_are_read_back(tmp_path, protocol):
    content = {"a": [1, 2.5, None, (True, b"x")], "s": {1, 2}, "n": np.float64(1.5), "u": np.array(["x", "yz"]),
               "f": np.arange(6.0).reshape(2, 3), "o": np.array([None, "a"], dtype=object)}  # fmt: skip
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = load_plain_pickle(path)
    assert read["a"] == content["a"]
    assert read["s"] == content["s"]
    assert read["n"] == 1.5
    for key in "ufo":
        np.testing.assert_array_equal(read[key], content[key])


def test_arrays_written_by_numpy_1_are_read(tmp_path):
    data = pickletools.optimize(pickle.dumps(np.arange(3.0), protocol=4))
    framed = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    old = framed[:2] + framed[11:]  # without the frame, whose length no longer fits
    assert b"numpy.core" in old
    (tmp_path / "x.pkl").write_bytes(old)
    np.testing.assert_array_equal(load_plain_pickle(tmp_path / "x.pkl"), np.arange(3.0))


def test_a_cut_file_is_named(tmp_path, frame):
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
    ("anns", annotations(track_tokens=["a", "b"]), "'anns': expected lists of one length"),
    ("anns", annotations(gt_names=np.array(["tank"])), "'anns/gt_names': expected one of vehicle"),
    ("anns", annotations(gt_boxes=np.full((1, 7), np.nan)), "'anns/gt_boxes': expected finite numbers.*track t"),
])  # fmt: skip
def test_a_bad_value_is_named_with_file_frame_and_key(tmp_path, frame, key, value, message):
    path = write(tmp_path / "log.pkl", [frame(0), frame(1, **{key: value})])
    with pytest.raises(ValueError, match=rf"log\.pkl: frame 1 .*{message}"):
        read_log(path)


def test_a_missing_key_is_named(tmp_path, frame):
    broken = frame(0)
    del broken["roadblock_ids"]
    with pytest.raises(ValueError, match="frame 0: no key 'roadblock_ids'"):
        read_log(write(tmp_path / "log.pkl", [broken]))


def test_a_log_holds_poses_speeds_and_float32_dynamics(tmp_path, frame):
    half = np.sqrt(0.5)
    state = [0.1, 0.0, 0.0, 0.0]
    frames = [frame(0), frame(1, ego2global_rotation=[half, 0, 0, half], ego_dynamic_state=state, anns=annotations())]
    log = read_log(write(tmp_path / "log.pkl", frames))
    np.testing.assert_allclose(log.poses[1], [10.0, 0.0, np.pi / 2])
    assert log.velocities[1, 0] == np.float32(0.1)
    assert log.commands.tolist() == [1, 1]
    assert log.annotations[0] is None
    assert log.annotations[1].speeds.tolist() == [5.0]


def test_empty_annotations_are_zero_boxes(tmp_path, frame):
    nothing = annotations(gt_boxes=np.zeros((0,)), gt_names=[], gt_velocity_3d=[], instance_tokens=[], track_tokens=[])
    log = read_log(write(tmp_path / "log.pkl", [frame(0, anns=nothing)]))
    assert log.annotations[0].boxes.shape == (0, 7)


def test_yaw_follows_the_devkits_library_under_roll_and_pitch():
    # Its sign of the x*y term differs from the textbook's.
    w, x, y, z = q = np.array([0.9, 0.1, 0.2, 0.3]) / np.linalg.norm([0.9, 0.1, 0.2, 0.3])
    assert yaw(q) == pytest.approx(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z)))
    assert yaw(q) != pytest.approx(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def test_a_quaternion_of_unit_length_keeps_every_bit():
    half = np.linspace(-1.5, 1.5, 200)
    for w, z in zip(np.cos(half), np.sin(half)):
        assert yaw(np.array([w, 0.0, 0.0, z])) == np.arctan2(2 * (w * z - 0.0), 1 - 2 * (0.0 + z**2))
        assert yaw(3.0 * np.array([w, 0.0, 0.0, z])) == pytest.approx(yaw(np.array([w, 0.0, 0.0, z])))


def test_headings_of_boxes_are_wrapped_twice_bit_by_bit_as_in_the_devkit():
    rng = np.random.default_rng(0)
    boxes = np.zeros((500, 7))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, 500)
    once = boxes[:, 6] + 2.5
    twice = [np.arctan2(np.sin(h), np.cos(h)) for h in (np.arctan2(np.sin(h), np.cos(h)) for h in once)]
    np.testing.assert_array_equal(to_global(boxes, np.array([0.0, 0.0, 2.5]))[:, 2], twice)


def test_a_changed_log_is_read_again(tmp_path, frame):
    path = write(tmp_path / "log.pkl", [frame(0)])
    assert len(open_log(path)) == 1
    write(path, [frame(0), frame(1)])
    assert len(open_log(path)) == 2


def test_a_split_without_logs_names_the_folders_there_are(world):
    with pytest.raises(FileNotFoundError, match="splits with a folder there: mini"):
        list_logs(world.root, "trainval")


def test_a_deeply_nested_value_is_refused_without_writing_it_out(tmp_path, frame):
    nested = "x"
    for _ in range(60):
        nested = [nested, nested]
    for key in ("token", "roadblock_ids", "timestamp"):
        with pytest.raises(ValueError, match=rf"'{key}': expected .*, found \[\["):
            read_log(write(tmp_path / "log.pkl", [frame(0, **{key: nested})]))


def test_cameras_have_their_calibration_where_the_log_holds_one(tmp_path, frame):
    cameras = {"CAM_F0": camera(), "CAM_L0": {"data_path": "a/c.jpg"}, "CAM_R0": camera(cam_intrinsic=None)}
    log = read_log(write(tmp_path / "log.pkl", [frame(0, cams=cameras)]))
    assert set(log.cameras[0]) == {"CAM_F0", "CAM_L0", "CAM_R0"}
    ((name, calibration),) = log.calibrations[0].items()
    assert name == "CAM_F0"
    np.testing.assert_array_equal(calibration.intrinsic, np.diag([900.0, 900.0, 1.0]))
    np.testing.assert_array_equal(calibration.rotation, np.eye(3))
    np.testing.assert_array_equal(calibration.translation, [1.0, 0.0, 1.5])
