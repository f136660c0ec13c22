"""Recordings in LeRobot's layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpvla.files import FileError
from dpvla.state_based.data.lerobot import Scaling, load_lerobot
from tests.dpvla.state_based.lerobot_files import episode_of, write_lerobot


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_frames_become_transitions_of_their_own_episode(version: str, tmp_path: Path) -> None:
    """Four frames that end in success and three that the time limit ends, whose last one leads nowhere."""
    episodes = [episode_of(4, 0), episode_of(3, 1, success=False)]
    data = load_lerobot(write_lerobot(tmp_path / "set", episodes, version))
    rows, state = data.transitions, data.scaling
    assert (len(rows), rows.observation_dim, rows.action_dim) == (6, 5, 2), "the camera is left out"
    assert rows.masks.tolist() == [1, 1, 1, 0, 1, 1] and rows.terminals.tolist() == [0, 0, 0, 1, 0, 1]
    recorded = [np.concatenate([e["observation.state"], e["observation.environment_state"]], 1) for e in episodes]
    frames = np.concatenate([recorded[0], recorded[1][:2]])
    following = np.concatenate([recorded[0][1:], recorded[0][3:], recorded[1][1:]])
    np.testing.assert_allclose(rows.observations, state.observed(frames), atol=1e-5)
    np.testing.assert_allclose(rows.next_observations, state.observed(following), atol=1e-5)
    actions = np.concatenate([episodes[0]["action"], episodes[1]["action"][:2]])
    np.testing.assert_allclose(state.commanded(rows.actions.numpy()), actions, atol=2e-3)  # kept inside tanh's range
    np.testing.assert_allclose(rows.rewards[:4], episodes[0]["next.reward"])
    assert data.about["dataset"] == "set" and data.about["observations"] == [
        "observation.state", "observation.environment_state",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more, masks",
    [
        ({}, [1, 1, 0]),  # done ends the task where nothing else is said
        ({"next.truncated": np.array([False, False, True])}, [1, 1]),
        ({"next.success": np.array([False, True, False])}, [1, 0]),
    ],
)
def test_what_ends_the_task_is_success_else_done_that_is_no_time_limit(
    more: dict[str, np.ndarray], masks: list[int], tmp_path: Path
) -> None:
    data = load_lerobot(write_lerobot(tmp_path, [episode_of(3, 0, None) | more]))
    assert data.transitions.masks.tolist() == masks


def test_the_order_of_files_and_rows_does_not_matter(tmp_path: Path) -> None:
    episodes = [episode_of(3, 0), episode_of(4, 1), episode_of(2, 2)]
    straight = load_lerobot(write_lerobot(tmp_path / "set", episodes))
    for path in (tmp_path / "set/data").rglob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    shuffled = load_lerobot(tmp_path / "set")
    assert shuffled.about == straight.about
    assert (shuffled.transitions.observations == straight.transitions.observations).all()


@given(st.integers(0, 2**32 - 1))
def test_scaling_is_undone_exactly_and_keeps_recorded_actions_in_range(seed: int) -> None:
    draw = np.random.default_rng(seed)
    low = draw.normal(size=3) * 10.0 ** draw.integers(-3, 4)
    scaling = Scaling((0.0,), (1.0,), tuple(low), tuple(low + draw.uniform(0.1, 9, 3)))
    actions = low + draw.uniform(size=(7, 3)) * (np.array(scaling.high) - low)
    taken = scaling.taken(actions)
    assert (abs(taken) <= 1 + 1e-6).all()
    np.testing.assert_allclose(scaling.commanded(taken), actions, rtol=1e-5, atol=1e-5)


def test_numbers_that_never_change_are_left_unscaled(tmp_path: Path) -> None:
    still = {"observation.state": np.full((3, 2), 7.0, np.float32), "action": np.full((3, 1), 5.0, np.float32)}
    data = load_lerobot(write_lerobot(tmp_path, [episode_of(3, 0) | still]))
    assert data.scaling.deviation[:2] == (1.0, 1.0) and (data.transitions.observations[:, :2] == 0).all()
    np.testing.assert_allclose(data.scaling.commanded(data.transitions.actions.numpy()), 5.0, atol=1e-4)


def without(name: str) -> dict[str, Any]:
    """``info.json`` of the set that `broken` breaks, a feature left out."""
    features = {key: {"dtype": "float32", "shape": [1]} for key in ("action", "next.reward", "observation.state")}
    features |= {key: {"dtype": "int64", "shape": [1]} for key in ("episode_index", "frame_index")}
    return {"features": {key: value for key, value in features.items() if key != name}}


@pytest.mark.parametrize(
    "info, reason",
    [
        ({"codebase_version": "v1.6"}, r"info.json: codebase_version is 'v1\.6', read are v2 and v3"),
        ({"total_frames": 9}, "tells of 9 frames, 2 files below data/ have 7; copy the data set again"),
        ({"total_frames": 3}, "tells of 3 frames, 2 files below data/ have 4 or more"),
        ({"total_frames": -1}, "total_frames: expected a number at least 0, found -1"),
        (without("next.reward"), r"features\.next\.reward is missing: a reward of each frame"),
        (without("observation.state"), r"no feature observation\.\* is a list of numbers"),
        (without(""), r"file-000\.parquet: observation\.state has lists of \[3\] numbers, told of are 1"),
    ],
)
def test_a_set_that_does_not_fit_its_description_is_named(info: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_lerobot(tmp_path, [episode_of(4, 0), episode_of(3, 1)], **info)
    with pytest.raises(FileError, match=reason):
        load_lerobot(tmp_path)


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"action": np.full((4, 2), np.nan, np.float32)}, "action holds NaN or infinity"),
        ({"next.reward": np.array(["a"] * 4)}, r"next\.reward is 'string', expected float32"),
        (
            {"episode_index": np.zeros(4, np.int64), "frame_index": np.array([0, 1, 3, 4])},
            "has frame 3 where 2 belongs",
        ),
    ],
)
def test_columns_that_cannot_be_are_named(more: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    write_lerobot(tmp_path, [episode_of(4, 0)])
    (path,) = (tmp_path / "data").rglob("*.parquet")
    table = pyarrow.parquet.read_table(path)
    for name, values in more.items():
        column = pyarrow.array(values) if values.ndim == 1 else pyarrow.array(list(values))
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(FileError, match=reason):
        load_lerobot(tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_lerobot(tmp_path, [episode_of(4, 0)])
    (path,) = (tmp_path / "data").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileError, match=f"{path} cannot be read as parquet"):
        load_lerobot(tmp_path)
    path.unlink()
    with pytest.raises(FileError, match="0 files below data/ have 0"):
        load_lerobot(tmp_path)


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(tmp_path, [episode_of(4, 0)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[lerobot\]'"):
        load_lerobot(tmp_path)


def test_no_frame_that_leads_anywhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no frame leads to another one"):
        load_lerobot(write_lerobot(tmp_path, [episode_of(1, 0, success=False)]))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["total_frames"] == 1
