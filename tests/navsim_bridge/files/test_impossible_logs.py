"""Logs that cannot be right are refused with one line; odd ones are used, counted and said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from navsim_bridge.files import frames as known
from navsim_bridge.files import logs
from navsim_bridge.files.frames import plain_numbers
from navsim_bridge.files.logs import Log, annotated, log_path, read_log
from navsim_bridge.files.odd import ODD, in_window, odd_lines, unlikely_motion
from navsim_bridge.metric_cache import MetricCache, build_metric_cache
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.scenes import select_scenes
from tests.navsim_bridge.conftest import LOG, MakeFrame, World
from tools import evaluate

Frames = list[dict[str, Any]]


def boxes(count: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "gt_boxes": np.tile([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.1]], (count, 1)),
        "gt_names": np.array(["vehicle"] * count),
        "gt_velocity_3d": np.tile([[3.0, 4.0, 0.0]], (count, 1)),
        "instance_tokens": [f"i{i}" for i in range(count)],
        "track_tokens": [f"t{i}" for i in range(count)],
        **values,
    }


def box(column: int, value: float) -> dict[str, Any]:
    one = np.array([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.1]])
    one[0, column] = value
    return boxes(gt_boxes=one)


def read(folder: Path, frames: Frames) -> Log:
    path = folder / "log.pkl"
    path.write_bytes(pickle.dumps(frames))
    return read_log(path)


def drive(frame: MakeFrame, count: int = 20, **values: Any) -> Frames:
    return [frame(i, **values) for i in range(count)]


@pytest.mark.parametrize("key, value, message", [
    ("timestamp", 2**70, "'timestamp': expected microseconds since 1970"),
    ("timestamp", -5, "'timestamp': expected microseconds since 1970"),
    ("timestamp", "1500000", "'timestamp': expected an integer"),
    ("token", "a/../b", "'token': expected at most 200 printable"),
    ("token", "a\nb", "'token': expected at most 200 printable"),
    ("token", "x" * 10**6, "'token': expected at most 200 printable"),
    ("map_location", "sg-one-north", "'map_location': expected us-nv-las-vegas-strip, where the log begins"),
    ("ego_dynamic_state", ["20", "0", "0", "0"], "'ego_dynamic_state': expected 4 numbers"),
    ("ego_dynamic_state", [True, False, False, False], "'ego_dynamic_state': expected 4 numbers"),
    ("ego_dynamic_state", [300.0, 0.0, 0.0, 0.0], "'ego_dynamic_state': expected at most 100 m/s, found"),
    ("ego_dynamic_state", [20.0, 0.0, 1e6, 0.0], "'ego_dynamic_state': expected at most 100 m/s"),
    ("ego_dynamic_state", [1e308, 0.0, 0.0, 0.0], "'ego_dynamic_state': expected at most 100 m/s"),
    ("ego_dynamic_state", [0.0, 0.0, 1.7e308, 1.7e308], "'ego_dynamic_state': expected at most 100 m/s"),
    ("ego2global_translation", np.array([10.0 + 150.0, 0.0, 0.0]), "'ego2global_translation': expected a way that a"),
    ("ego2global_translation", np.array([1e9, 0.0, 0.0]), "'ego2global_translation': expected a position in UTM"),
    ("ego2global_translation", np.array(["10", "0", "0"]), "'ego2global_translation': expected 3 numbers"),
    ("traffic_lights", [(7, "False")], "'traffic_lights': expected a list of pairs"),
    ("traffic_lights", [(7.5, True)], "'traffic_lights': expected a list of pairs"),
    ("cams", {"CAM_F0": "x.jpg"}, "'cams/CAM_F0': expected a dict"),
    ("cams", {"CAM_F0": np.zeros(2)}, "'cams/CAM_F0': expected a dict"),
    ("cams", {"CAM_F0": {"data_path": "a\0b"}}, "'cams/CAM_F0/data_path': expected a path below"),
    ("anns", boxes(track_tokens=3), "'anns/track_tokens': expected a list"),
    ("anns", boxes(gt_boxes=np.float64(3)), "'anns/gt_boxes': expected a list"),
    ("anns", boxes(gt_boxes=[["1"] * 7]), "'anns/gt_boxes': expected numbers"),
    ("anns", boxes(gt_boxes=[[1.0] * 6]), r"'anns/gt_boxes': expected shape \(box, 7\)"),
    ("anns", boxes(2, gt_boxes=[[1.0] * 7, [1.0]]), "'anns/gt_boxes': expected numbers"),
    ("anns", box(3, -4.0), "'anns/gt_boxes': expected a box that can be.*track t0"),
    ("anns", box(4, 1e5), "'anns/gt_boxes': expected a box that can be.*track t0"),
    ("anns", box(0, 1e6), "'anns/gt_boxes': expected a box that can be.*track t0"),
    ("anns", boxes(gt_velocity_3d=[[9e9, 0.0, 0.0]]), "'anns/gt_velocity_3d': expected a box that can be.*track t0"),
    ("anns", boxes(gt_velocity_3d=[[1.7e308, 1.7e308, 0.0]]), "'anns/gt_velocity_3d': expected a box that can be"),
    ("anns", boxes(gt_velocity_3d=[[np.nan, 0.0, 0.0]]), "'anns/gt_velocity_3d': expected finite numbers.*track t0"),
])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_is_refused_with_file_frame_and_key(
    tmp_path: Path, frame: MakeFrame, key: str, value: Any, message: str
) -> None:
    frames = [frame(0), frame(1, **{key: value})]
    with pytest.raises(ValueError, match=rf"log\.pkl: frame 1 .*{message}") as said:
        read(tmp_path, frames)
    assert len(str(said.value)) < 1000


@pytest.mark.parametrize(("unit", "name"), [(10**3, "nanoseconds"), (1e-3, "milliseconds")])
def test_times_in_another_unit_are_refused(tmp_path: Path, frame: MakeFrame, unit: float, name: str) -> None:
    frames = [{**f, "timestamp": int(f["timestamp"] * unit)} for f in drive(frame)]
    with pytest.raises(ValueError, match=r"frame 1 .*'timestamp': expected microseconds, 500000 from frame to frame"):
        read(tmp_path, frames)


def test_a_gap_of_days_is_refused(tmp_path: Path, frame: MakeFrame) -> None:
    frames = drive(frame)
    for later in frames[7:]:
        later["timestamp"] += 11 * 86_400 * 10**6
    with pytest.raises(ValueError, match=r"frame 7 .*'timestamp': expected frames of one drive, found '950400"):
        read(tmp_path, frames)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
PLACES: list[tuple[str, ...]] = [(key,) for key in (*known.REQUIRED_KEYS, "anns", "traffic_lights")]
PLACES += [("anns", key) for key in known.ANNOTATION_KEYS] + [("cams", "CAM_F0"), ("cams", "CAM_F0", "data_path")]
PLACES += [("cams", "CAM_F0", key) for key in known.CALIBRATION_KEYS]


def refusal(frames: Frames) -> str:
    """What reading says; nothing where all is well."""
    with patch.object(logs, "load_plain_pickle", lambda _: frames):
        try:
            log = read_log("some/log.pkl")
        except ValueError as error:
            return str(error)
    assert np.isfinite(log.poses).all() and np.isfinite(log.velocities).all()
    assert all(a is None or np.isfinite(a.boxes).all() for a in log.annotations)
    return ""


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=plain)
def test_any_value_anywhere_is_read_or_refused_by_name(frame: MakeFrame, place: tuple[str, ...], value: Any) -> None:
    camera = {"cam_intrinsic": np.eye(3), "sensor2lidar_rotation": np.eye(3), "sensor2lidar_translation": [0, 0, 1]}
    cameras = {"CAM_F0": {"data_path": "a/b.jpg", **camera}}
    frames = [frame(0), frame(1, cams=cameras, anns=boxes(2), traffic_lights=[(7, True)])]
    assert not refusal(frames)
    at: Any = frames[1]
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    said = refusal(frames)
    assert not said or (said.startswith("some/log.pkl: frame 1 ") and len(said) < 1500 and "\n" not in said)


@pytest.mark.parametrize("place", PLACES)
def test_a_billion_values_in_thirty_lists_are_not_looked_at(frame: MakeFrame, place: tuple[str, ...]) -> None:
    value: Any = []
    for _ in range(30):
        value = [value, value]
    frames = [frame(0, cams={"CAM_F0": {"data_path": "a"}}, anns=boxes(2))]
    at: Any = frames[0]
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    assert len(refusal(frames)) < 1500


def test_text_for_numbers_is_no_number() -> None:
    for raw in ("1", ["1"], [["1.0"]], np.array(["1"]), [None], [1 + 0j], [10**400], [True], object(), {1: 2}):
        assert plain_numbers(raw, 1) is None
    for fine in ([1, 2.5], (np.float32(1), np.int16(2)), np.array([1, 2], dtype=np.uint8), []):
        found = plain_numbers(fine, 1)
        assert found is not None and found.dtype == np.float64 and len(found) == len(fine)


def without_frame(frames: Frames) -> None:
    """As if none were missing."""
    frames.pop(9)
    for index, frame in enumerate(frames):
        frame["timestamp"] = 1_000_000 + 500_000 * index


ODDITIES: dict[str, Callable[[Frames], object]] = {
    "uneven_times": lambda frames: frames.pop(9),
    "unlikely_motion": without_frame,
    "unlikely_boxes": lambda frames: frames[9].update(anns=box(0, 500.0)),
    "unknown_velocities": lambda frames: frames[9].update(
        anns=boxes(gt_names=["barrier"], gt_velocity_3d=np.full((1, 3), np.nan))),
    "repeated_tracks": lambda frames: frames[9].update(anns=boxes(2, track_tokens=["t", "t"])),
    "shared_images": lambda frames: frames[9].update(
        cams={"CAM_F0": {"data_path": "a/b.jpg"}, "CAM_B0": {"data_path": "a/b.jpg"}}),
}  # fmt: skip


@pytest.mark.parametrize("cause", ODDITIES)
def test_what_is_odd_is_kept_with_its_frame(tmp_path: Path, frame: MakeFrame, cause: str) -> None:
    frames = drive(frame)
    assert read(tmp_path, frames).odd == {}
    ODDITIES[cause](frames)
    odd = read(tmp_path, frames).odd
    assert {name: found.tolist() for name, found in odd.items()} == {cause: [9]}
    assert cause in ODD
    at = {9, 10} if cause not in ("uneven_times", "unlikely_motion") else {10}  # a step has both its frames there
    assert {stop for stop in (8, 9, 10) if in_window(odd, 0, stop) == (cause,)} == {10}
    assert {first for first in (8, 9, 10) if in_window(odd, first, 12) == (cause,)} == ({8, 9} if 9 in at else {8})


def test_jitter_turns_and_braking_are_not_odd() -> None:
    rng = np.random.default_rng(0)
    seconds = np.cumsum(0.5 + rng.uniform(-0.06, 0.06, 200))
    fine = np.linspace(0, seconds[-1], 200_000)
    speed = np.maximum(0, 12 + 12 * np.sin(fine / 3))
    heading = np.cumsum(0.4 * np.sin(fine / 2) * (speed > 0)) * (fine[1] - fine[0])
    x, y = (np.cumsum(speed * turned(heading)) * (fine[1] - fine[0]) for turned in (np.cos, np.sin))
    at = np.searchsorted(fine, seconds).clip(max=len(fine) - 1)
    poses = np.stack([x[at], y[at], heading[at]], axis=1)
    velocities = np.stack([speed[at], np.zeros(len(at))], axis=1)
    times = (fine[at] * 1e6).astype(np.int64)
    assert not len(unlikely_motion(times, poses, velocities))
    poses[:, 2] += np.pi / 2
    assert len(unlikely_motion(times, poses, velocities)) > 100  # it drives sideways


def test_odd_scenes_are_said_once_and_the_devkits_windows_stay(
    tmp_path: Path, frame: MakeFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = drive(frame, 31)
    frames.pop(20)
    path = tmp_path / "navsim_logs/mini/a.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(frames))
    split = Split(f"odd {tmp_path.name}", "mini", SceneFilter(frame_interval=1))
    records = select_scenes(split, tmp_path)
    assert len(records) == 17
    assert [bool(r.odd) for r in records] == [False] * 7 + [True] * 10
    select_scenes(split, tmp_path)
    said = capsys.readouterr().err
    assert said.count("10 of 17 scenes have frames that are not 0.5 s apart (in 1 log, first ") == 1


def test_a_track_twice_in_a_scored_frame_is_refused_with_log_frame_and_track(tmp_path: Path, frame: MakeFrame) -> None:
    frames = drive(frame, anns=boxes())
    ODDITIES["repeated_tracks"](frames)
    log = read(tmp_path, frames)
    assert len(annotated(log.annotations[:9], log, 0)) == 9
    with pytest.raises(ValueError, match=r"log.pkl: frame 9 \(token 0+9\) shows one track twice: 't'"):
        annotated(log.annotations[5:12], log, 5)


def test_scores_and_caches_say_how_many_scenes_are_odd(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = pickle.loads(log_path(world.root, "mini", LOG).read_bytes())
    for later in frames[17:]:
        later["timestamp"] += 2_000_000
    path = log_path(tmp_path / "data", "mini", LOG)
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(frames))
    counts = {"uneven_times": 4}  # of windows of 14 from 0, 4, ..., 24
    split = Split("gap", "mini", SceneFilter(frame_interval=4))
    cache = build_metric_cache(tmp_path / "data", world.maps, split, tmp_path / "cache", progress=False)
    assert cache.index["odd"] == counts and MetricCache(tmp_path / "cache").index["odd"] == counts
    line = "4 of 7 scenes have frames that are not 0.5 s apart"
    assert [line] == odd_lines(counts, 7)
    assert capsys.readouterr().err.count(line) == 2  # of the split, of the cache
    options = ["--agent", "human", "--split", str(world.split_file), "--data-root", str(tmp_path / "data"),
               "--maps-root", str(world.maps), "--out", str(tmp_path / "out"), "--metric-cache",
               str(tmp_path / "cache")]  # fmt: skip
    evaluate.main(options)
    assert f"{line}: scored nevertheless" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/summary.json").read_text())["odd"] == counts
