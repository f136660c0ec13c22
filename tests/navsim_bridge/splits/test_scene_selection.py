from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from navsim_bridge.files import roots
from navsim_bridge.splits.coverage import Coverage, usable_scenes
from navsim_bridge.splits.scene_filter import SceneFilter, Split, SplitError, load_split, scene_filter
from navsim_bridge.splits.scenes import find_scenes, relative, select_scenes
from tests.navsim_bridge.conftest import MakeFrame, World


@pytest.fixture
def data(tmp_path: Path, frame: MakeFrame) -> Path:
    """Two logs of 30 and 20 frames; frame 7 of the first has no route."""
    folder = tmp_path / "navsim_logs/mini"
    folder.mkdir(parents=True)
    for name, first, count in (("a", 0, 30), ("b", 100, 20)):
        frames = [frame(first + i, roadblock_ids=[] if (name, i) == ("a", 7) else ["1"]) for i in range(count)]
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(frames))
    return tmp_path


def starts(data: Path, **rules: Any) -> list[tuple[str, int]]:
    records = select_scenes(Split("x", "mini", SceneFilter(**rules)), data)
    return [(r.log_name, r.first_frame) for r in records]


def test_windows_do_not_overlap_by_default(data: Path) -> None:
    assert starts(data) == [("a", 0), ("a", 14), ("b", 0)]


def test_windows_start_every_interval_and_short_ones_are_dropped(data: Path) -> None:
    # 30 frames hold windows of 14 from frames 0 to 16; frame 4 is out because frame 7 has no route.
    assert starts(data, frame_interval=4) == [("a", 0), ("a", 8), ("a", 12), ("a", 16), ("b", 0), ("b", 4)]
    assert len(starts(data, frame_interval=1)) == (17 - 1) + 7
    assert len(starts(data, frame_interval=1, has_route=False)) == 17 + 7


def test_the_scene_is_named_by_its_last_history_frame(data: Path) -> None:
    record = select_scenes(Split("x", "mini", SceneFilter()), data)[0]
    assert record.token == f"{3:016x}"
    assert record.pose.tolist() == [30.0, 0.0, 0.0]
    np.testing.assert_allclose(record.plan()[:, 0], 10.0 * np.arange(1, 9))
    np.testing.assert_allclose(record.relative_poses(slice(0, 3))[:, 0], [-30, -20, -10])


def test_logs_tokens_and_maximum_are_obeyed(data: Path) -> None:
    assert starts(data, log_names=("b",)) == [("b", 0)]
    assert starts(data, frame_interval=1, tokens=(f"{8:016x}", f"{103:016x}")) == [("a", 5), ("b", 0)]
    assert starts(data, frame_interval=1, max_scenes=3) == [("a", 0), ("a", 1), ("a", 2)]


def test_missing_logs_and_tokens_stop_unless_allowed(data: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"2 of 3 logs are not in .*first c"):
        starts(data, log_names=("a", "c", "d"))
    rules = SceneFilter(frame_interval=1, tokens=(f"{8:016x}", "beef"))
    with pytest.raises(ValueError, match=r"1 of 2 scenes are in no log .*first beef"):
        select_scenes(Split("x", "mini", rules), data)
    assert len(select_scenes(Split("x", "mini", rules), data, allow_missing=True)) == 1


@pytest.mark.parametrize("limit", [2, 3])
def test_missing_tokens_of_a_split_with_a_maximum_are_counted_too(data: Path, limit: int) -> None:
    there = (f"{8:016x}", f"{103:016x}")
    split = Split("x", "mini", SceneFilter(frame_interval=1, tokens=(*there, "beef", "cafe"), max_scenes=limit))
    with pytest.raises(ValueError, match=r"2 of 4 scenes are in no log .*first beef.*--allow-missing"):
        find_scenes(split, data)
    found = find_scenes(split, data, allow_missing=True)
    assert ([r.token for r in found.records], found.absent) == (list(there), ("beef", "cafe"))
    assert usable_scenes(split, data, allow_missing=True)[1] == Coverage(2, limit, {"missing_scenes": 2})


def test_nothing_is_said_of_tokens_that_were_not_looked_for(data: Path) -> None:
    rules = SceneFilter(frame_interval=1, tokens=(f"{8:016x}", f"{103:016x}", "beef"), max_scenes=1)
    assert usable_scenes(Split("x", "mini", rules), data)[1] == Coverage.whole(1)  # found in the first of two logs
    (data / "navsim_logs/mini/b.pkl").unlink()
    with pytest.raises(ValueError, match=r"2 of 3 scenes are in no log"):
        find_scenes(Split("x", "mini", rules), data)


@pytest.mark.parametrize("folder", ["../navsim_logs/mini", "..", ".", "mini/", "/tmp", "a\\b"])
def test_a_data_split_is_a_plain_name(data: Path, folder: str) -> None:
    split, listed = data / "x.yaml", data / "x.csv"
    split.write_text(yaml.safe_dump({"data_split": "mini", "tokens": ["00ab"]}))
    with pytest.raises(SplitError, match=r"data_split '.*': expected the name of a folder below navsim_logs/"):
        load_split(split, data, folder)
    split.write_text(yaml.safe_dump({"data_split": folder, "tokens": ["00ab"]}))
    listed.write_text(f"token,data_split\n00ab,{folder}\n")
    for file in (split, listed):
        with pytest.raises(SplitError, match=rf"{file}: data_split '.*': expected the name of a folder below"):
            load_split(file, data)


def test_a_token_that_names_two_scenes_is_refused(data: Path) -> None:
    shutil.copy(data / "navsim_logs/mini/a.pkl", data / "navsim_logs/mini/c.pkl")
    with pytest.raises(ValueError, match="names two scenes, in a and c"):
        starts(data)


def test_relative_poses_are_rotated_and_wrapped() -> None:
    origin = np.array([1.0, 1.0, np.pi / 2])
    moved = relative(np.array([[1.0, 3.0, -np.pi + 0.1]]), origin)
    np.testing.assert_allclose(moved, [[2.0, 0.0, np.pi / 2 + 0.1]], atol=1e-12)


def test_a_split_file_without_a_key_is_refused(tmp_path: Path) -> None:
    for text, reason in (
        ("{}", "none of the keys"),
        ("data_split: t\nscene_filter: {_target_: x}", "none of the keys"),
        ("", "found nothing"),
    ):
        (tmp_path / "empty.yaml").write_text(text)
        with pytest.raises(SplitError, match=f"empty.yaml.*{reason}"):
            load_split(str(tmp_path / "empty.yaml"), tmp_path)


def test_unknown_keys_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("data_split: mini\nscene_filter: {frame_intervall: 1}\n")
    with pytest.raises(
        SplitError, match=r"s\.yaml: unknown key 'frame_intervall'; nearest valid name: 'frame_interval'"
    ):
        load_split(path)


def test_version_2_keys_must_be_empty() -> None:
    assert scene_filter({"include_synthetic_scenes": False, "synthetic_scene_tokens": []}) == SceneFilter()
    with pytest.raises(SplitError, match="include_synthetic_scenes is set"):
        scene_filter({"include_synthetic_scenes": True})


def test_tokens_that_yaml_takes_for_numbers_are_refused() -> None:
    with pytest.raises(SplitError, match="found the int 1234567812345678; put it in quotes"):
        scene_filter(yaml.safe_load("tokens: [1234567812345678]"))


@pytest.mark.parametrize("place", ["train_test_split/scene_filter", "scene_filter"])
def test_the_devkits_two_file_layout_is_followed(tmp_path: Path, place: str) -> None:
    for folder in ("train_test_split", place):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "train_test_split/navfew.yaml").write_text(
        "# @package _global_\ndefaults:\n  - _self_\n  - scene_filter: few\ndata_split: mini\n"
    )
    (tmp_path / place / "few.yaml").write_text(
        "_target_: navsim.common.dataclasses.SceneFilter\n_convert_: all\nframe_interval: 1\ntokens: ['00ab']\n"
    )
    split = load_split(tmp_path / "train_test_split/navfew.yaml")
    assert (split.name, split.data_split, split.scene_filter.tokens) == ("navfew", "mini", ("00ab",))
    assert split.scene_filter.num_future_frames == 10


def test_names_are_looked_up_in_the_data_then_in_the_devkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    assert load_split("small", world.root).scene_filter == world.split.scene_filter
    devkit = tmp_path / "navsim/planning/script/config/common/train_test_split"
    devkit.mkdir(parents=True)
    (devkit / "other.yaml").write_text("data_split: test\nframe_interval: 2\n")
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(tmp_path))
    assert load_split("other", world.root).scene_filter.frame_interval == 2
    with pytest.raises(FileNotFoundError, match=r"no split 'nope'. Looked at: .*names there: other, small"):
        load_split("nope", world.root)


def test_a_devkit_root_that_leads_nowhere_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(tmp_path / "nowhere"))
    for name in ("small", world.split_file):
        load_split(name, world.root)
    said = capsys.readouterr().err
    assert said.count("warning: NAVSIM_DEVKIT_ROOT is") == 1  # once a process
    assert "nowhere, which is no folder: point it to the devkit's checkout" in said
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no split 'nope'\..* which holds no navsim/planning/.*checkout\.$"):
        load_split("nope", world.root)


def test_roots_come_from_option_then_environment_then_demo_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError, match="make_demo_world"):
        roots.data_root()
    (tmp_path / "data/demo_world/navsim_logs").mkdir(parents=True)
    assert roots.data_root() == roots.DEMO_WORLD
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(world.root))
    assert roots.data_root() == world.root
    with pytest.raises(FileNotFoundError, match=r"\(--data-root\) should hold navsim_logs"):
        roots.data_root(tmp_path)


@pytest.mark.parametrize("name", ["num_history_frames", "num_future_frames"])
def test_a_number_of_frames_that_is_null_is_refused(name: str) -> None:
    with pytest.raises(SplitError, match=name):
        SceneFilter(**{name: None})  # type: ignore[arg-type]
