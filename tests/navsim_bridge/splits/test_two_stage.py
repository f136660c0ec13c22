"""Splits of two stages: groups that fit together, and scenes of both stages as records."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpvla.sensors import Sensors
from navsim_bridge.agents import human
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.doctor.data import check_split
from navsim_bridge.doctor.finding import ERROR, OK
from navsim_bridge.files.private_logs import read_sequences
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.splits.coverage import Coverage, usable_scenes
from navsim_bridge.splits.scene_filter import SplitError, load_split
from navsim_bridge.splits.scenes import find_scenes, scene_log, select_scenes
from navsim_bridge.splits.sensors import image_file, image_path, missing_images
from navsim_bridge.splits.two_stage import Group, incomplete
from tests.navsim_bridge.conftest import MakeFrame
from tests.navsim_bridge.two_stage_world import LOG, TwoStageWorld

NOW, BEFORE = "30ee9b806e291aa2", "9f7a0dc2891686c7"
PAIRS = (
    ("00f32ab94de711d90", "00bf0320e4e8ab61d"),
    ("0098fc88de9bf6049", "0039533216c64439c"),
    ("006450b763b024ab2", "00f3e33a3ba07e607"),
)


@pytest.fixture
def content(two_stages: TwoStageWorld) -> dict[str, Any]:
    """Mapping and filter of the split in one file, to be changed."""
    rules = yaml.safe_load((two_stages.root / "config/scene_filter/two_stage.yaml").read_text())
    mapping = [[NOW, BEFORE, [list(pair) for pair in PAIRS]]]
    return {"data_split": "mini", "reactive_all_mapping": mapping, "scene_filter": rules}


@pytest.fixture
def copied(two_stages: TwoStageWorld, tmp_path: Path) -> Path:
    """The data, to be changed."""
    shutil.copytree(two_stages.data, tmp_path / "data")
    return tmp_path / "data"


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "two_stage.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_devkits_two_files_are_a_split_with_its_groups(two_stages: TwoStageWorld) -> None:
    split = two_stages.split
    assert split.two_stage is not None
    assert split.two_stage.groups == (Group(NOW, BEFORE, PAIRS),)
    assert split.two_stage.groups[0].second_stage == split.two_stage.tokens
    assert split.tokens == (NOW, BEFORE, *(token for pair in PAIRS for token in pair))
    assert split.two_stage.root == two_stages.data / "two_stage"
    assert (split.scene_filter.num_history_frames, split.scene_filter.num_future_frames) == (4, 8)


def test_one_file_says_the_same_with_or_without_a_group_of_its_own(
    two_stages: TwoStageWorld, content: dict[str, Any], tmp_path: Path
) -> None:
    rules = content["scene_filter"]
    whole = load_split(written(tmp_path, content), two_stages.data)
    flat = load_split(written(tmp_path, content | content.pop("scene_filter")), two_stages.data)
    del rules["tokens"], rules["reactive_synthetic_initial_tokens"]
    short = load_split(written(tmp_path, content | {"scene_filter": rules}), two_stages.data)
    for split in (whole, flat, short):
        assert dataclasses.replace(split, path=None) == dataclasses.replace(two_stages.split, path=None)


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def put(found: Any) -> None:
        for part in path[:-1]:
            found = found[part]
        found[path[-1]] = to

    return put


GROUP = ("reactive_all_mapping", 0)
SECOND = ("scene_filter", "reactive_synthetic_initial_tokens")


@pytest.mark.parametrize(("changed", "message"), [
    (change("reactive_all_mapping", to=5), "reactive_all_mapping: expected a list of groups, found 5"),
    (change(*GROUP, to=[NOW, BEFORE]), r"reactive_all_mapping\[0\]: expected \[token, token before it, pairs\]"),
    (change(*GROUP, 2, to=[]), r"reactive_all_mapping\[0\]: expected a list of pairs of tokens, found \[\]"),
    (change(*GROUP, 2, 1, to=["f" * 17]), r"reactive_all_mapping\[0\]: pair 1: expected two tokens"),
    (change(*GROUP, 2, 1, 0, to=12345678901234567), "expected a token in quotes, found 12345678901234567"),
    (change(*GROUP, 1, to=NOW), f"reactive_all_mapping: token {NOW} twice"),
    (change(*GROUP, 2, 1, 0, to=PAIRS[0][0]), f"reactive_all_mapping: token {PAIRS[0][0]} twice"),
    (change(*GROUP, 0, to="f" * 16), "reactive_all_mapping names token f{16}, which tokens of the scene filter does"),
    (change(*GROUP, 2, 1, 0, to="f" * 17), "names token f{17}, which reactive_synthetic_initial_tokens of the scene"),
    (change(*GROUP, 2, 1, 0, to="f" * 16), "token f{16}: no synthetic scene, whose tokens have 17 characters"),
    (change(*GROUP, 0, to="f" * 17), "token f{17}: a synthetic scene, not recorded: it has 17 characters"),
    (lambda c: c["scene_filter"]["tokens"].append("a" * 16), "tokens of the scene filter lists token a{16}, which no"),
    (lambda c: c["scene_filter"][SECOND[1]].extend("ab"), "lists 2 tokens \\(a, b\\), which no group of"),
    (change("scene_filter", "include_synthetic_scenes", to=False), "include_synthetic_scenes must be true where"),
    (change("scene_filter", "max_scenes", to=1), "max_scenes would cut groups apart: leave it null"),
    (change("scene_filter", "all_mapping", to=[1]), "all_mapping is set, which the devkit's two-stage script does not"),
    (change("two_stage_mapping", to=[1]), "two_stage_mapping is set, which the devkit's two-stage script does not"),
    (lambda c: c.pop("reactive_all_mapping"), "include_synthetic_scenes is set, but it has no reactive_all_mapping"),
    (lambda c: c.update(reactive_all_mapping=None) or c["scene_filter"].pop("tokens"),
     "reactive_all_mapping is null: then the filter must list tokens and reactive_synthetic_initial_tokens"),
])  # fmt: skip
def test_stages_that_do_not_fit_together_are_refused_by_token(
    content: dict[str, Any], tmp_path: Path, changed: Callable[[Any], object], message: str
) -> None:
    changed(content)
    path = written(tmp_path, content)
    with pytest.raises(SplitError, match=f"^{path}: .*{message}") as raised:
        load_split(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_bare_filter_of_the_devkit_names_its_splits_file(two_stages: TwoStageWorld) -> None:
    path = two_stages.root / "config/scene_filter/two_stage.yaml"
    with pytest.raises(SplitError, match="name the split's own file, beside the folder scene_filter/"):
        load_split(path, two_stages.data)


def test_recorded_scenes_come_first_and_synthetic_ones_know_where_they_come_from(two_stages: TwoStageWorld) -> None:
    first, second = two_stages.records[:2], two_stages.records[2:]
    assert [r.token for r in first] == [BEFORE, NOW] and all(r.synthetic is None for r in first)
    assert [r.token for r in second] == sorted(token for pair in PAIRS for token in pair)
    for record in second:
        assert record.synthetic is not None
        assert (record.log_name, len(record.poses), record.num_history) == (LOG, 4, 4)
        assert record.synthetic.file == two_stages.pickles / f"{record.token}.pkl"
        log = scene_log(record, two_stages.data)
        assert log.tokens[record.now] == record.token and log.path == record.synthetic.file
    log = scene_log(first[0], two_stages.data)
    of_frame = dict(zip(log.tokens, log.times_us))
    for record in second:  # a frame of the recorded log is at the same time
        assert record.synthetic is not None
        assert of_frame[record.synthetic.original] == record.times_us[record.now]


def test_the_data_set_has_both_stages_and_no_plans_of_the_second(two_stages: TwoStageWorld) -> None:
    data = NavsimDataset(two_stages.records, two_stages.data, Sensors(("front",), 64, 32))
    assert data.ego_status().shape == (8, 4) and len(data.commands()) == 8
    with pytest.raises(ValueError, match="fewer than 8 future frames"):
        data.plans()
    with pytest.raises(ValueError, match=f"scene {two_stages.records[2].token} .* is synthetic: nobody drove there"):
        human(two_stages.records)
    with pytest.raises(ValueError, match=f"scene {two_stages.records[2].token} .*names no image for CAM_F0"):
        data.batch([2])


def test_images_of_the_stages_lie_in_folders_of_their_own(two_stages: TwoStageWorld) -> None:
    recorded, synthetic = two_stages.records[0], two_stages.records[2]
    synthetic = dataclasses.replace(synthetic, cameras={"CAM_F0": "a/CAM_F0/b.jpg"})
    root = two_stages.data
    assert image_file(synthetic, root, "CAM_F0") == root / "two_stage/sensor_blobs/a/CAM_F0/b.jpg"
    assert image_path(synthetic, "CAM_F0") == "two_stage/sensor_blobs/a/CAM_F0/b.jpg"
    front = recorded.cameras["CAM_F0"]
    assert image_file(recorded, root, "CAM_F0") == root / "sensor_blobs/mini" / front
    assert image_path(recorded, "CAM_F0") == f"mini/{front}"
    bad = missing_images([recorded, synthetic, two_stages.records[3]], root, ("CAM_F0",))
    assert [str(files[0]) for files in bad.values()] == [
        str(root / "sensor_blobs/mini" / front),
        str(root / "two_stage/sensor_blobs/a/CAM_F0/b.jpg"),
        f"CAM_F0 of scene {two_stages.records[3].token} (the log names none)",
    ]


def test_missing_scenes_and_broken_groups_are_named(
    copied: Path, two_stages: TwoStageWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied / "two_stage/synthetic_scene_pickles"
    (folder / f"{PAIRS[1][0]}.pkl").unlink()
    split = load_split(two_stages.split_file, copied)
    with pytest.raises(ValueError, match=rf"1 of 6 synthetic scenes are not in {folder} .*first {PAIRS[1][0]}\. Get"):
        select_scenes(split, copied)
    records, part = usable_scenes(split, copied, allow_missing=True)
    assert part == Coverage(7, 8, {"missing_scenes": 1})
    assert "they are left out" in capsys.readouterr().err
    assert split.two_stage is not None and split.two_stage.groups is not None
    assert incomplete(split.two_stage.groups, [r.token for r in records]) == {split.two_stage.groups[0]: (PAIRS[1][0],)}
    said = {str(f): f.level for f in check_split(copied, copied / "maps", str(two_stages.split_file))}
    broken = [text for text, level in said.items() if level == ERROR]
    assert any("1 of 6 synthetic scenes are not in" in text for text in broken)
    lacks = f"1 of 1 groups lack scenes and cannot be scored, first that of {NOW}, which lacks 1: {PAIRS[1][0]}"
    assert any(lacks in text for text in broken)


def test_the_doctor_says_what_a_cache_holds_of_a_split(two_stages: TwoStageWorld, tmp_path: Path) -> None:
    found = list(check_split(two_stages.data, two_stages.maps, str(two_stages.split_file)))
    assert any(f.level == OK and "1 groups, all complete" in f.what for f in found)
    first = dataclasses.replace(two_stages.split, two_stage=None)
    build_metric_cache(two_stages.data, two_stages.maps, first, tmp_path / "cache", progress=False, rules=NAVSIM_V2)
    split = str(two_stages.split_file)
    found = list(check_split(two_stages.data, two_stages.maps, split, cache=str(tmp_path / "cache")))
    (lacks,) = [f for f in found if "metric cache" in f.what]
    assert lacks.level == ERROR and f"6 of 8 scenes are not in metric cache {tmp_path}/cache" in lacks.what


def test_the_folder_of_the_second_stage_is_found_or_asked_for(two_stages: TwoStageWorld, copied: Path) -> None:
    split, folder = two_stages.split_file, copied / "two_stage"
    folder.rename(copied / "elsewhere")
    found = load_split(split, copied)
    assert found.two_stage is not None and found.two_stage.root == copied / "elsewhere"  # the only one
    shutil.copytree(copied / "elsewhere", copied / "another")
    with pytest.raises(FileNotFoundError, match=rf"no folder {folder}/synthetic_scene_pickles; .*--synthetic-root"):
        find_scenes(load_split(split, copied), copied)
    chosen = load_split(split, copied, synthetic_root=copied / "another")
    assert len(find_scenes(chosen, copied).records) == 8
    one_stage = written(copied, {"data_split": "mini", "num_future_frames": 8})
    with pytest.raises(SplitError, match="it has no second stage: leave out --synthetic-root"):
        load_split(one_stage, copied, synthetic_root=folder)


def test_a_token_of_two_files_and_a_file_of_another_log_are_told(two_stages: TwoStageWorld, copied: Path) -> None:
    folder = copied / "two_stage/synthetic_scene_pickles"
    shutil.copy(folder / f"{PAIRS[0][0]}.pkl", folder / "again.pkl")
    split = load_split(two_stages.split_file, copied)
    with pytest.raises(ValueError, match=rf"token {PAIRS[0][0]} names two scenes, in .*\.pkl and again\.pkl"):
        find_scenes(split, copied)
    (folder / "again.pkl").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=rf"{folder}/again\.pkl: not a readable pickle"):
        find_scenes(split, copied)


def test_the_private_split_is_sequences_whose_groups_the_server_keeps(tmp_path: Path, frame: MakeFrame) -> None:
    def sequence(name: str, first: int, digits: int) -> list[dict[str, Any]]:
        frames = []
        for index in range(5):
            hidden = {"anns": None, "lidar_path": None, "map_location": None, "roadblock_ids": None}
            token = f"{first + index:0{digits}x}"
            cams = {"CAM_F0": {"data_path": f"CAM_F0/{token}.jpg"}}
            frames.append(frame(index, token=token, scene_token=name, frame_idx=index, cams=cams, **hidden))
        return frames

    log = tmp_path / "navsim_logs/private_test_hard/private_test_hard.pkl"
    second = tmp_path / "private_test_hard_two_stage/openscene_meta_datas"
    log.parent.mkdir(parents=True)
    second.mkdir(parents=True)
    one, two = sequence("one", 0x10, 16), sequence("two", 0x20, 16)
    log.write_bytes(pickle.dumps([*one[3:], *two, *one[:3], *sequence("cut off", 0x30, 16)[:4]]))  # in any order
    (second / "a.pkl").write_bytes(pickle.dumps(sequence("a", 0x40, 17)))
    split_file = tmp_path / "private_test_hard_two_stage.yaml"
    rules = {"include_synthetic_scenes": True, "num_future_frames": 8, "frame_interval": 1, "tokens": [
        f"{at:016x}" for at in (0x13, 0x14, 0x24)
    ], "reactive_synthetic_initial_tokens": [f"{at:017x}" for at in (0x43, 0x44)]}  # fmt: skip
    content = {"data_split": "private_test_hard", "reactive_all_mapping": None, "scene_filter": rules}
    split_file.write_text(yaml.safe_dump(content))
    split = load_split(split_file, tmp_path)
    assert split.two_stage is not None and split.two_stage.is_private
    assert [len(found) for found in read_sequences(log)] == [5, 5]
    records, part = usable_scenes(split, tmp_path)
    assert part == Coverage.whole(5)
    assert [r.token[-2:] for r in records] == ["13", "14", "24", "43", "44"]
    np.testing.assert_array_equal(records[1].poses[:, 0], [10, 20, 30, 40])
    images = tmp_path / "sensor_blobs/private_test_hard"
    assert image_file(records[0], tmp_path, "CAM_F0") == images / f"CAM_F0/{0x13:016x}.jpg"
    images = tmp_path / "private_test_hard_two_stage/sensor_blobs"
    assert image_file(records[4], tmp_path, "CAM_F0") == images / f"CAM_F0/{0x44:017x}.jpg"
    assert len(NavsimDataset(records, tmp_path, Sensors(("front",), 64, 32))) == 5
    with pytest.raises(SplitError, match="the server keeps what it is scored by: plans can be exported, not scored"):
        build_metric_cache(tmp_path, tmp_path, split, tmp_path / "cache", rules=NAVSIM_V2)
