from __future__ import annotations

import csv
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from navsim_bridge.agents import PolicyAgent
from navsim_bridge.evaluation import results
from navsim_bridge.splits import log_folder
from navsim_bridge.splits.scene_filter import SplitError, load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from navsim_bridge.splits.sensors import MISSING, NO_FILE, missing_images, with_images
from navsim_bridge.splits.token_list import TokenListError, read_token_list
from tests.navsim_bridge.conftest import FIXTURE, LOG, MakeFrame, World
from tools import evaluate

CAMERAS = ("CAM_L0", "CAM_F0")


@pytest.fixture
def data(tmp_path: Path, frame: MakeFrame) -> Path:
    """Folders mini (log a) and test (log b) with two front images a frame, of which frame 4 of log a lacks one."""
    for folder, name, first in (("mini", "a", 0), ("test", "b", 100)):
        frames = []
        for i in range(first, first + 16):
            cams = {camera: {"data_path": f"{name}/{camera}/{i}.jpg"} for camera in CAMERAS}
            frames.append(frame(i, cams=cams))
            for camera in cams.values():
                path = tmp_path / "sensor_blobs" / folder / camera["data_path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"an image")
        path = tmp_path / f"navsim_logs/{folder}/{name}.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps(frames))
    (tmp_path / "sensor_blobs/mini/a/CAM_F0/4.jpg").unlink()
    return tmp_path


def token(index: int) -> str:
    return f"{index:016x}"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_tokens_are_kept_as_texts_and_select_their_windows(data: Path) -> None:
    split = load_split(write(data / "few.csv", f"log_name,token\na,{token(4)}\na,{token(3)}\n"), data)
    assert (split.name, split.data_split, split.scene_filter.log_names) == ("few", "mini", ("a",))
    assert split.scene_filter.tokens == (token(4), token(3))  # 16 digits each: no number
    assert [r.token for r in select_scenes(split, data)] == [token(3), token(4)]


def test_the_folder_of_logs_is_named_or_found_by_the_tokens(data: Path) -> None:
    assert load_split(write(data / "b.csv", f"token,log_name\n{token(103)},b\n"), data).data_split == "test"
    assert load_split(write(data / "c.csv", f"token,data_split\n{token(103)},test\n"), data).data_split == "test"
    for index, folder in ((103, "test"), (3, "mini")):
        bare = write(data / "bare.csv", f"token\n{token(index)}\n")
        split = load_split(bare, data)
        assert split.data_split == folder
        assert [r.token for r in select_scenes(split, data)] == [token(index)]
    with pytest.raises(SplitError, match="data_split names mini, test"):
        load_split(write(data / "d.csv", "token,data_split\n1,test\n2,mini\n"), data)


def test_a_folder_that_cannot_be_told_is_asked_for_with_counts(data: Path) -> None:
    for text, message in (
        ("token,log_name\n1,nowhere\n", r"none of its logs \(1\) is in any folder below navsim_logs/ \(mini, test\)"),
        ("token\nbeef\ncafe\n", r"none of its scenes \(2\) is in any folder .*--data-split"),
        (
            f"token\n{token(3)}\n{token(4)}\n{token(103)}\n",
            r"scenes \(3\) lie in several folders: 2 in mini, 1 in test; .*--data-split",
        ),
        (f"token,log_name\n{token(3)},a\n{token(103)},b\n", "1 in mini, 1 in test"),
    ):
        with pytest.raises(SplitError, match=rf"spread\.csv: .*{message}"):
            load_split(write(data / "spread.csv", text), data)


def test_a_folder_that_is_asked_for_decides(data: Path) -> None:
    spread = write(data / "spread.csv", f"token\n{token(3)}\n{token(4)}\n{token(103)}\n")
    split = load_split(spread, data, "mini")
    assert [r.token for r in select_scenes(split, data, allow_missing=True)] == [token(3), token(4)]
    assert load_split(write(data / "y.yaml", "data_split: mini\n"), data, "test").data_split == "test"
    with pytest.raises(SplitError, match=r"data_split 'nope' is no folder below .*; there: mini, test"):
        load_split(spread, data, "nope")


def test_a_part_of_the_tokens_in_one_folder_alone_is_enough_to_tell(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = load_split(write(data / "part.csv", f"token\n{token(103)}\nbeef\n"), data)
    assert split.data_split == "test"
    with pytest.raises(ValueError, match="1 of 2 scenes are in no log"):
        select_scenes(split, data)


def test_scenes_that_two_folders_have_are_asked_for(data: Path) -> None:
    shutil.copy(data / "navsim_logs/mini/a.pkl", data / "navsim_logs/test/a.pkl")
    listed = write(data / "x.csv", f"token\n{token(3)}\n")
    with pytest.raises(SplitError, match=r"all of its 1 scenes are in mini and in test; .*--data-split"):
        load_split(listed, data)
    assert load_split(listed, data, "test").data_split == "test"
    assert load_split(write(data / "y.csv", f"token\n{token(3)}\n{token(103)}\n"), data).data_split == "test"


def test_the_search_stops_where_all_scenes_are_found(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c", "d"):
        shutil.copy(data / "navsim_logs/test/b.pkl", data / f"navsim_logs/test/{name}.pkl")
    opened = []
    real = log_folder.load_plain_pickle

    def noted(path: Path) -> Any:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(log_folder, "load_plain_pickle", noted)
    assert load_split(write(data / "x.csv", f"token\n{token(3)}\n"), data).data_split == "mini"
    assert opened == ["a.pkl"]


def test_a_log_that_cannot_be_searched_is_named_with_the_way_out(data: Path) -> None:
    write(data / "navsim_logs/mini/a.pkl", "no pickle")
    with pytest.raises(SplitError, match=r"a\.pkl: not a readable pickle .*--data-split"):
        load_split(write(data / "x.csv", f"token\n{token(103)}\n"), data)


@pytest.mark.parametrize(("name", "scenes"), [("human.csv", 7), ("v2_human.csv", 16)])  # three windows are cut off
def test_score_files_select_their_scenes_between_several_folders(
    world: World, tmp_path: Path, name: str, scenes: int
) -> None:
    for folder in ("aaa", "trainval", "zzz"):
        shutil.copytree(world.root / "navsim_logs/mini", tmp_path / "navsim_logs" / folder)
    for folder in ("aaa", "zzz"):  # the same logs of another drive
        path = tmp_path / f"navsim_logs/{folder}/{LOG}.pkl"
        frames = pickle.loads(path.read_bytes())
        for frame in frames:
            frame["token"] = folder + frame["token"]
        path.write_bytes(pickle.dumps(frames))
    split = load_split(FIXTURE / name, tmp_path)
    assert split.data_split == "trainval"
    assert len(select_scenes(split, tmp_path, allow_missing=True)) == scenes


def test_the_devkits_bare_scene_filters_are_splits_too(data: Path) -> None:
    header = "_target_: navsim.common.dataclasses.SceneFilter\n_convert_: 'all'\n\nnum_history_frames: 4\n"
    rules = f"{header}num_future_frames: 10\nframe_interval: 1\nhas_route: true\nmax_scenes: null\n"
    path = write(data / "navfew.yaml", f"{rules}log_names:\n  - 'b'\ntokens:\n  - '{token(104)}'\n")
    split = load_split(path, data)
    assert (split.data_split, split.scene_filter.frame_interval) == ("test", 1)
    assert [r.token for r in select_scenes(split, data)] == [token(104)]
    path = write(data / "navtokens.yaml", f"{rules}log_names: null\ntokens:\n  - '{token(104)}'\n")
    assert load_split(path, data).data_split == "test"
    whole = write(data / "navall.yaml", rules)
    with pytest.raises(
        SplitError, match=r"any folder below navsim_logs/ could be meant \(mini, test\); .*--data-split"
    ):
        load_split(whole, data)
    assert len(select_scenes(load_split(whole, data, "test"), data)) == 3


def test_lists_that_cannot_be_used_say_why(data: Path) -> None:
    for text, message in (
        ("name\nx\n", r"no column 'token'; it has name"),
        ("", r"no column 'token'; it has none"),
        ("token\naverage\n", "lists no scene"),
        ("token,log_name\n", "lists no scene"),
        ('token\n"ab\ncd\n', r"not a readable CSV file \(unexpected end of data\); is a quote left open\?"),
        ("token\n" + 200_000 * "a", r"not a readable CSV file \(field larger than field limit"),
        ("token,log_name\nab,a\n,a\n", "row 2: token: expected a text, found ''"),
        ("token,log_name\nab\n", "row 1: log_name: expected a text, found None"),
        ("token\nab\nab\n", "token ab is listed twice"),
    ):
        with pytest.raises(SplitError, match=rf"bad\.csv.*{message}"):
            load_split(write(data / "bad.csv", text), data)


@pytest.mark.parametrize(("name", "text"), [
    ("bad.csv", "token,log_name\nab,café\n"), ("bad.yaml", "data_split: café\n"),
])  # fmt: skip
def test_files_in_other_encodings_are_named(data: Path, name: str, text: str) -> None:
    for encoding in ("utf-16", "latin-1"):
        (data / name).write_bytes(text.encode(encoding))
        with pytest.raises(SplitError, match=rf"{name} is no UTF-8 text \(byte \d+\)"):
            load_split(data / name, data)


def test_a_bad_yaml_names_its_file_once_and_in_one_line(data: Path) -> None:
    lines = "expected 'key: value' lines"
    for text, message in (("a: b: c", " is not valid YAML: mapping values"), ("a: 1\na: 2", " is not .* twice"),
                          ("", f": {lines}, found nothing"), ("- a", f": {lines}, found a list")):  # fmt: skip
        with pytest.raises(SplitError, match=rf"bad\.yaml{message}") as error:
            load_split(write(data / "bad.yaml", text), data)
        assert str(error.value).count("bad.yaml") == 1
        assert "\n" not in str(error.value)
    (data / "scene_filter").mkdir()
    write(data / "scene_filter" / "few.yaml", "- a")
    path = write(data / "outer.yaml", "data_split: mini\nscene_filter: few\n")
    with pytest.raises(SplitError, match=r"^\S*outer\.yaml: \S*scene_filter/few\.yaml: expected 'key: value' lines"):
        load_split(path, data)


def test_suffixes_in_upper_case_are_the_same_kinds(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    write(data / "A.CSV", f"token\n{token(3)}\n")
    write(data / "B.YAML", "data_split: mini\nnum_future_frames: 0\n")
    assert load_split("A.CSV", data).scene_filter.tokens == (token(3),)
    assert load_split("B.YAML", data).data_split == "mini"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SplitError, match=r"C\.Parquet: reading Parquet needs pyarrow"):
        load_split(write(data / "C.Parquet", ""), data)


def test_score_files_of_the_devkit_select_their_scenes(world: World) -> None:
    for name in ("human.csv", "constant_velocity.csv"):
        with open(FIXTURE / name) as file:
            expected = {row["token"] for row in csv.DictReader(file) if not row["token"].startswith("average")}
        split = load_split(FIXTURE / name, world.root)
        assert split.data_split == "mini"
        assert {r.token for r in select_scenes(split, world.root)} == expected


def test_parquet_needs_pyarrow_and_says_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SplitError, match=r"few\.parquet: reading Parquet needs pyarrow .*or give a CSV"):
        load_split(write(data / "few.parquet", ""), data)


def test_parquet_lists_are_read(data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"token": [token(3), "average"], "log_name": ["a", ""], "score": [np.nan, 1.0]})
    parquet.write_table(table, data / "few.parquet")
    assert [r.token for r in select_scenes(load_split(data / "few.parquet", data), data)] == [token(3)]
    with pytest.raises(SplitError, match="not a readable Parquet file"):
        load_split(write(data / "bad.parquet", "nothing of the kind"), data)


def test_parquet_lists_that_pyarrow_cannot_turn_into_texts_are_named(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    ends = b"".join(end.to_bytes(4, "little") for end in (0, 2))
    no_utf8 = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"\xff\xfe"))
    too_late = pyarrow.array([2**31 - 1], pyarrow.date32())
    for columns, names, problem in (
        ([no_utf8], ["token"], "not a readable Parquet file"),
        ([too_late], ["token"], "not a readable Parquet file"),
        ([pyarrow.array(["a"]), pyarrow.array(["b"])], ["token", "token"], "the column token stands twice"),
    ):
        parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), tmp_path / "list.parquet")
        with pytest.raises(TokenListError, match=rf"list\.parquet: {problem}"):
            read_token_list(tmp_path / "list.parquet")


@pytest.fixture
def records(data: Path) -> list[SceneRecord]:
    return select_scenes(load_split(write(data / "all.yaml", "data_split: mini\nframe_interval: 1\n"), data), data)


def test_missing_images_are_counted_before_any_work(
    data: Path, records: list[SceneRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(records) == 3
    assert list(missing_images(records, data, CAMERAS)) == [token(4)]
    with pytest.raises(
        FileNotFoundError, match=r"1 of 6 camera files are missing, for 1 of 3 scenes, first .*F0/4.jpg"
    ):
        with_images(records, data, CAMERAS, "all")
    rest = with_images(records, data, CAMERAS, "all", allow_missing=True)
    assert [r.token for r in rest] == [token(3), token(5)]
    assert "these scenes are left out" in capsys.readouterr().err
    assert with_images(rest, data, CAMERAS, "all") == rest
    nothing_left = r"camera files are not named in the logs, .* first CAM_B0 of scene \w+. No scene has all: get"
    with pytest.raises(FileNotFoundError, match=nothing_left) as raised:
        with_images(records, data, ("CAM_B0",), "all", allow_missing=True)
    assert "--allow-missing" not in str(raised.value)


def test_files_without_content_and_what_is_no_file_are_missing_too(
    data: Path, records: list[SceneRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data / "sensor_blobs/mini/a"
    (folder / "CAM_L0/3.jpg").write_bytes(b"")
    (folder / "CAM_F0/5.jpg").unlink()
    os.mkfifo(folder / "CAM_F0/5.jpg")
    (folder / "CAM_F0/4.jpg").symlink_to(folder / "nowhere.jpg")
    with pytest.raises(
        FileNotFoundError,
        match=r"3 of 6 camera files are empty \(1\) or no regular files \(2\), for 3 of 3 scenes, .*3.jpg \(empty\)",
    ):
        with_images(records, data, CAMERAS, "all")
    for index in (4, 5):
        (folder / f"CAM_F0/{index}.jpg").unlink()
        (folder / f"CAM_F0/{index}.jpg").write_bytes(b"an image")
    rest = with_images(records, data, CAMERAS, "all", allow_missing=True)
    assert [r.token for r in rest] == [token(4), token(5)]
    said = capsys.readouterr().err
    assert "1 of 6 camera files are empty, for 1 of 3 scenes, first " in said
    assert "(empty)" not in said


def test_links_that_lead_to_themselves_are_no_regular_files(data: Path, records: list[SceneRecord]) -> None:
    folder = data / "sensor_blobs/mini/a"
    (folder / "CAM_F0/4.jpg").symlink_to(folder / "CAM_F0/4.jpg")
    shutil.rmtree(folder / "CAM_L0")
    (folder / "CAM_L0").symlink_to(folder / "CAM_L0")
    bad = missing_images(records, data, CAMERAS)
    assert {name: [file.cause for file in files] for name, files in bad.items()} == {
        token(3): [MISSING], token(4): [MISSING, NO_FILE], token(5): [MISSING],
    }  # fmt: skip


def test_what_is_left_out_is_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = load_split(write(data / "lost.csv", f"token,log_name\n{token(3)},a\nbeef,gone\n"), data)
    with pytest.raises(FileNotFoundError, match="1 of 2 logs are not in"):
        select_scenes(split, data)
    assert len(select_scenes(split, data, allow_missing=True)) == 1
    said = capsys.readouterr().err
    assert "1 of 2 logs are not in" in said
    assert "1 of 2 scenes are in no log" in said


def test_an_agent_with_cameras_plans_nothing_when_images_are_missing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--agent", "dpvla", "--checkpoint", str(tmp_path / "none"), "--split", str(world.split_file)]
    roots = ["--data-root", str(world.root), "--maps-root", str(world.maps), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="no checkpoint at"):  # a wrong checkpoint is told before logs are read
        evaluate.main([*arguments, *roots])
    agent = SimpleNamespace(refuse_idle_omega=lambda: None, cameras=("CAM_L0", "CAM_F0", "CAM_R0"))
    agent.proposing_each = lambda *_: agent
    monkeypatch.setattr(PolicyAgent, "from_checkpoint", lambda *_, **__: agent)
    monkeypatch.setattr(results, "weights_of", lambda _: ("weights", "no"))
    with pytest.raises(SystemExit, match=r"21 of 21 camera files are missing, for 7 of 7 scenes"):
        evaluate.main([*arguments, *roots])
    assert (world.root / f"navsim_logs/mini/{LOG}.pkl").is_file()
