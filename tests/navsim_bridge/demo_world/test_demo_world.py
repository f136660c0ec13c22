"""The demo world as a whole: formats, determinism, resuming, splits."""

import dataclasses
import io
import itertools
import json
import pickle
import pickletools
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import yaml

from navsim_bridge.demo_world import DemoWorldConfig, OtherWorldError, make_demo_world
from navsim_bridge.demo_world.build import log_names
from navsim_bridge.demo_world.config import LOCATIONS
from navsim_bridge.demo_world.files import map_writer
from navsim_bridge.demo_world.files.map_writer import LAYERS
from navsim_bridge.files.frames import ALL_CAMERAS
from navsim_bridge.files.map_tables import MapFile
from navsim_bridge.files.maps import open_map

FRAME_KEYS = {
    "token", "timestamp", "frame_idx", "log_name", "log_token", "scene_name", "scene_token", "map_location",
    "roadblock_ids", "vehicle_name", "can_bus", "lidar_path", "lidar2ego_translation", "lidar2ego_rotation",
    "ego2global_translation", "ego2global_rotation", "ego2global", "lidar2ego", "lidar2global", "ego_dynamic_state",
    "traffic_lights", "driving_command", "cams", "sample_prev", "sample_next", "anns",
}  # fmt: skip

TINY_WORLD = DemoWorldConfig(
    num_train_logs=1,
    num_test_logs=1,
    log_seconds=20.0,
    frame_interval=1,
    image_width=64,
    image_height=36,
    workers=1,
    quiet=True,
)
"""Made in seconds: one log a split, 27 scenes each; replace ``root``."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "world"
    make_demo_world(dataclasses.replace(TINY_WORLD, root=str(root)))
    return root


@pytest.fixture(scope="module")
def log(world: Path) -> list[dict]:
    return pickle.loads(next((world / "navsim_logs" / "trainval").glob("*.pkl")).read_bytes())


def files_of(root: Path, *parts: str) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for part in parts
        for p in sorted((root / part).rglob("*"))
        if p.is_file()
    }


def test_two_workers_write_the_same_bytes_as_one(world: Path, tmp_path: Path) -> None:
    make_demo_world(dataclasses.replace(TINY_WORLD, root=str(tmp_path), workers=2, metric_cache=False))
    parts = ("maps", "navsim_logs", "sensor_blobs")
    first, second = files_of(world, *parts), files_of(tmp_path, *parts)
    assert first.keys() == second.keys()
    assert len(first) > 100
    assert [name for name in first if first[name] != second[name]] == []


def test_another_seed_writes_other_roads_and_logs(world: Path, tmp_path: Path) -> None:
    make_demo_world(dataclasses.replace(TINY_WORLD, root=str(tmp_path), seed=1, cameras=(), metric_cache=False))
    for part in ("maps", "navsim_logs"):
        for name, data in files_of(tmp_path, part).items():
            assert data != files_of(world, part).get(name) or name.endswith(".json")


def test_a_frame_has_every_key_with_the_official_shapes(log: list[dict]) -> None:
    assert len(log) == TINY_WORLD.num_frames
    for frame in log:
        assert set(frame) == FRAME_KEYS
        assert frame["map_location"] in [location.name for location in LOCATIONS]
        assert set(frame["cams"]) == set(ALL_CAMERAS)
        for camera in frame["cams"].values():
            shapes = {k: np.shape(v) for k, v in camera.items() if k != "data_path"}
            assert shapes == {
                "sensor2lidar_rotation": (3, 3), "sensor2lidar_translation": (3,), "cam_intrinsic": (3, 3),
                "distortion": (5,),
            }  # fmt: skip
        assert np.shape(frame["can_bus"]) == (18,)
        assert len(frame["ego_dynamic_state"]) == 4
        assert frame["driving_command"].dtype == np.int64
        assert frame["driving_command"].sum() == 1
        assert frame["roadblock_ids"]
        assert all(isinstance(b, str) for b in frame["roadblock_ids"])
        assert all(isinstance(c, int) and isinstance(red, bool) for c, red in frame["traffic_lights"])
        anns = frame["anns"]
        count = len(anns["gt_boxes"])
        assert anns["gt_boxes"].shape == (count, 7)
        assert anns["gt_velocity_3d"].shape == (count, 3)
        assert len(anns["gt_names"]) == len(anns["track_tokens"]) == len(set(anns["instance_tokens"])) == count
    tokens = [frame["token"] for frame in log]
    assert len(set(tokens)) == len(tokens)
    assert [frame["sample_next"] for frame in log] == [*tokens[1:], None]
    assert np.unique(np.diff([frame["timestamp"] for frame in log])).tolist() == [500_000]


def test_the_pickle_names_only_what_numpy_1_has_too(world: Path) -> None:
    for path in (world / "navsim_logs").rglob("*.pkl"):
        data = path.read_bytes()
        assert b"numpy._core" not in data
        strings: list[str] = []
        names = set()
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):  # also checks every frame length
            if opcode.name == "SHORT_BINUNICODE":
                strings.append(str(argument))
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                names.add(strings[-2])
        assert "numpy.core.multiarray" in strings
        assert data[1] == 4
        assert not {name for name in names if name.startswith("navsim_bridge")}


def test_velocity_and_acceleration_fit_the_recorded_poses(log: list[dict]) -> None:
    position = np.array([frame["ego2global_translation"][:2] for frame in log])
    speed = np.array([frame["ego_dynamic_state"][0] for frame in log])
    acceleration = np.array([frame["ego_dynamic_state"][2] for frame in log])
    traveled = np.hypot(*np.diff(position, axis=0).T)
    assert np.abs(traveled / 0.5 - 0.5 * (speed[1:] + speed[:-1])).max() < 0.35
    assert np.abs(np.diff(speed) / 0.5 - 0.5 * (acceleration[1:] + acceleration[:-1])).max() < 1.2
    assert speed.max() > 3.0


def test_a_track_keeps_its_size_and_moves_with_its_velocity(log: list[dict]) -> None:
    checked = 0
    for before, after in itertools.pairwise(log):
        ego = [np.asarray(f["ego2global"]) for f in (before, after)]
        later = {t: k for k, t in enumerate(after["anns"]["track_tokens"])}
        for k, track in enumerate(before["anns"]["track_tokens"]):
            if track not in later or before["anns"]["gt_names"][k] != "vehicle":
                continue
            boxes = before["anns"]["gt_boxes"][k], after["anns"]["gt_boxes"][later[track]]
            assert np.allclose(boxes[0][3:6], boxes[1][3:6])
            places = [(pose @ [*box[:2], 0.0, 1.0])[:2] for pose, box in zip(ego, boxes)]
            velocity = [
                (pose[:2, :2] @ f["anns"]["gt_velocity_3d"][i, :2])
                for pose, f, i in zip(ego, (before, after), (k, later[track]))
            ]
            moved = (places[1] - places[0]) / 0.5
            assert np.hypot(*(moved - 0.5 * (velocity[0] + velocity[1]))) < 1.5
            checked += 1
    assert checked > 100


def test_every_scene_has_its_three_pictures_of_the_size_asked_for(world: Path, log: list[dict]) -> None:
    for i in TINY_WORLD.rendered_frames():
        for camera in TINY_WORLD.cameras:
            image = cv2.imread(str(world / "sensor_blobs" / "trainval" / log[i]["cams"][camera]["data_path"]))
            assert image is not None
            assert image.shape == (36, 64, 3)
            assert image.std() > 10
    assert len(list((world / "sensor_blobs" / "trainval").rglob("*.jpg"))) == 3 * len(TINY_WORLD.rendered_frames())


def test_maps_have_every_layer_and_ids_are_unique(world: Path) -> None:
    for location in LOCATIONS:
        with sqlite3.connect(world / "maps" / location.name / location.version / "map.gpkg") as database:
            ids: list[int] = []
            for layer, (_, columns) in LAYERS.items():
                found = [row[1] for row in database.execute(f"PRAGMA table_info({layer})")]
                assert found == ["fid", "geom", *(column.split()[0] for column in columns.split(", "))]
                ids += [row[0] for row in database.execute(f"SELECT fid FROM {layer}")]
            assert len(set(ids)) == len(ids)
            crs = dict(database.execute("SELECT key, value FROM meta"))["projectedCoordSystem"]
            assert crs == f"epsg:{location.epsg}"
            assert not list(
                database.execute("SELECT 1 FROM lane_connectors WHERE traffic_light_stop_line_fids IS NULL")
            )


def test_lanes_lie_between_their_boundaries(world: Path) -> None:
    for location in LOCATIONS:
        vector_map = open_map(world / "maps", location.name)
        file = MapFile(vector_map.path)
        boundaries, lanes = file.table("boundaries"), file.table("lanes_polygons")
        lines = dict(zip(boundaries.fids.tolist(), map(shapely.get_coordinates, boundaries.shapes)))
        for side, sign in (("left", 1), ("right", -1)):
            for lane, boundary in zip(lanes.fids.tolist(), lanes.references(f"{side}_boundary_fid").tolist()):
                baseline = vector_map.lanes[str(lane)].baseline
                x, y, heading = baseline[len(baseline) // 2]
                dx, dy = (lines[boundary] - (x, y)).T
                nearest = np.argmin(np.hypot(dx, dy))
                assert sign * (dy[nearest] * np.cos(heading) - dx[nearest] * np.sin(heading)) > 0.5


def test_connectors_with_a_light_stop_at_a_line_near_their_start(world: Path) -> None:
    for location in LOCATIONS:
        vector_map = open_map(world / "maps", location.name)
        connectors = MapFile(vector_map.path).table("lane_connectors")
        named = zip(connectors.fids.tolist(), connectors.columns["traffic_light_stop_line_fids"].tolist())
        with_light = [(str(connector), line) for connector, line in named if line]
        assert with_light
        for connector, line in with_light:
            (area,) = vector_map.polygons_of("STOP_LINE", line)
            assert np.hypot(*(area.vertices - vector_map.lanes[connector].baseline[0, :2]).T).min() < 15


def test_filtered_splits_are_the_part_of_all_scenes_that_the_rule_keeps(world: Path) -> None:
    from navsim_bridge.demo_world.selection import select

    for name, folder in (("navtrain", "trainval"), ("navtest", "test")):
        content = yaml.safe_load((world / "splits" / f"{name}.yaml").read_text())
        unfiltered = yaml.safe_load((world / "splits" / f"{name}_all.yaml").read_text())
        assert content["data_split"] == unfiltered["data_split"] == folder
        assert unfiltered["scene_filter"]["tokens"] is None
        scores = select(world, name, workers=1, progress=False)
        assert len(scores.tokens) == len(TINY_WORLD.rendered_frames())
        kept = {t for t, cv, human in zip(scores.tokens, scores.constant_velocity, scores.human) if cv < 0.8 <= human}
        assert set(content["scene_filter"]["tokens"]) == kept
        assert scores.human.mean() >= 0.9


def test_a_complete_world_is_left_alone_and_other_settings_are_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*") if p.is_file()}
    make_demo_world(dataclasses.replace(TINY_WORLD, root=str(world), quiet=False))
    assert "already complete" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in world.rglob("*") if p.is_file()}
    with pytest.raises(OtherWorldError, match=r"image_width 64 there, 96 asked for.*--overwrite"):
        make_demo_world(dataclasses.replace(TINY_WORLD, root=str(world), image_width=96))


def test_a_world_of_an_earlier_version_gets_validation_logs_and_keeps_all_it_has(world: Path, tmp_path: Path) -> None:
    from navsim_bridge.splits.scene_filter import load_split
    from navsim_bridge.splits.scenes import select_scenes

    root = shutil.copytree(world, tmp_path / "world")
    summary = json.loads((root / "world.json").read_text())
    del summary["settings"]["num_validation_logs"]
    (root / "world.json").write_text(json.dumps(summary))
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name != "world.json"}
    tiny = dataclasses.replace(TINY_WORLD, root=str(root), num_validation_logs=1)
    made = make_demo_world(tiny)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert {name: made["splits"][name] for name in summary["splits"]} == summary["splits"]
    assert made["logs"] == 3 and made["splits"]["navval_all"] == len(TINY_WORLD.rendered_frames())
    logs = {name: {r.log_name for r in select_scenes(load_split(f"{name}_all", root), root)} for name in
            ("navtrain", "navtest", "navval")}  # fmt: skip
    assert len(set.union(*logs.values())) == 3 and all(len(names) == 1 for names in logs.values())
    assert load_split("navval", root).data_split == "trainval"
    content = yaml.safe_load((root / "splits" / "navval.yaml").read_text())
    assert len(content["scene_filter"]["tokens"]) == made["splits"]["navval"] > 0
    assert make_demo_world(tiny) == json.loads((root / "world.json").read_text()), "now it is complete"
    with pytest.raises(OtherWorldError, match="num_validation_logs 1 there, 0 asked for"):
        make_demo_world(dataclasses.replace(tiny, num_validation_logs=0))


def test_a_world_that_was_killed_while_it_got_validation_logs_is_finished(world: Path, tmp_path: Path) -> None:
    root = shutil.copytree(world, tmp_path / "world")
    tiny = dataclasses.replace(TINY_WORLD, root=str(root), num_validation_logs=1, metric_cache=False, cameras=())
    for path in root.glob("*.json"):
        path.unlink()
    (root / "world.json").write_text(
        json.dumps({"settings": {**tiny.identity(), "num_validation_logs": 0}, "logs": 2, "images": 0, "splits": {}})
    )
    (root / "world.started.json").write_text(json.dumps(tiny.identity()))
    assert make_demo_world(tiny)["splits"]["navval_all"] and not (root / "world.started.json").exists()


def test_one_log_in_five_is_for_validation_unless_said_otherwise() -> None:
    assert DemoWorldConfig().validation_logs == 27
    assert DemoWorldConfig(num_train_logs=4).validation_logs == 0
    assert DemoWorldConfig(num_train_logs=4, num_validation_logs=2).validation_logs == 2


def test_names_of_validation_logs_are_never_those_of_training_logs() -> None:
    names = [log.name(100) for log in log_names(DemoWorldConfig(num_train_logs=900, num_validation_logs=900))]
    assert len(set(names)) == len(names)


def test_a_folder_that_is_not_a_demo_world_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "navsim_logs").mkdir()
    with pytest.raises(OtherWorldError, match="choose another root"):
        make_demo_world(dataclasses.replace(TINY_WORLD, root=str(tmp_path), overwrite=True))
    assert (tmp_path / "navsim_logs").exists()


def test_an_interrupted_run_is_finished_with_the_same_files(world: Path, tmp_path: Path) -> None:
    bare = dataclasses.replace(TINY_WORLD, root=str(tmp_path), cameras=("CAM_F0",), metric_cache=False)
    make_demo_world(bare)
    whole = files_of(tmp_path, "maps", "navsim_logs", "sensor_blobs", "splits")
    settings = json.loads((tmp_path / "world.json").read_text())["settings"]
    (tmp_path / "world.json").unlink()
    (tmp_path / "world.started.json").write_text(json.dumps(settings))
    lost = next((tmp_path / "navsim_logs" / "test").glob("*.pkl"))
    kept = next((tmp_path / "navsim_logs" / "trainval").glob("*.pkl"))
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    make_demo_world(bare)
    assert kept.stat().st_mtime_ns == stamp
    assert files_of(tmp_path, "maps", "navsim_logs", "sensor_blobs", "splits") == whole


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cameras": ("CAM_X",)}, "CAM_X"),
        ({"image_width": 15}, "image_width must be at least 16"),
        ({"log_seconds": 3.0}, "at least 7"),
        ({"num_test_logs": 0}, "at least 1"),
        ({"jpeg_quality": 0}, "at least 1 and at most 100"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY_WORLD, **change)


def test_a_map_without_room_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(OSError, match=r"map\.gpkg cannot be written \(database or disk is full\): is there room\?"):
        map_writer._replace_file(tmp_path / "map.gpkg", full)
    assert not list(tmp_path.iterdir())
