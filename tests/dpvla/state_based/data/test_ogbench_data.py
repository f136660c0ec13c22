"""OGBench files as transitions with one task's rewards."""

from __future__ import annotations

import io
import json
import os
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvla.files import FileError
from dpvla.state_based.data.load import load_data
from dpvla.state_based.data.ogbench.episodes import make_episode
from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, generate
from dpvla.state_based.data.ogbench.load import load_ogbench
from dpvla.state_based.data.transitions import ACTION_LIMIT
from dpvla.state_based.environments.headless import load
from dpvla.state_based.environments.ogbench import make_raw

MAZE = "pointmaze-medium-navigate"
TASK = f"{MAZE}-singletask-task1-v0"
ROWS = 120


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maze")
    generate(OGBenchGeneration(env=MAZE, episodes=4, steps=ROWS, out=str(folder), workers=1, quiet=True))
    return folder


@pytest.fixture
def copy(maze: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(maze, tmp_path / "copy"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(load("ogbench.utils").urllib.request, "urlopen", refuse)


def test_rows_follow_each_other_as_in_the_file(maze: Path) -> None:
    data = load_ogbench(TASK, maze)
    with np.load(maze / f"{MAZE}-v0.npz") as file:
        raw = {key: file[key].reshape(4, ROWS, -1) for key in ("observations", "actions")}
    kept = (4, ROWS - 1, -1)
    assert len(data.train) == 4 * (ROWS - 1) and data.validation is not None and len(data.validation) == ROWS - 1
    np.testing.assert_array_equal(data.train.observations.numpy().reshape(kept), raw["observations"][:, :-1])
    np.testing.assert_array_equal(data.train.next_observations.numpy().reshape(kept), raw["observations"][:, 1:])
    clipped = raw["actions"][:, :-1].clip(-ACTION_LIMIT, ACTION_LIMIT)
    np.testing.assert_array_equal(data.train.actions.numpy().reshape(kept), clipped)
    assert np.flatnonzero(data.train.terminals.numpy()).tolist() == [(ROWS - 1) * (i + 1) - 1 for i in range(4)]


def test_transitions_equal_what_the_package_loads(maze: Path) -> None:
    data = load_ogbench(TASK, maze)
    assert data.validation is not None
    _, *packages = load("ogbench").make_env_and_datasets(TASK, dataset_dir=str(maze))
    for ours, theirs in zip((data.train, data.validation), packages):
        for key in ("observations", "next_observations", "rewards", "masks", "terminals"):
            np.testing.assert_array_equal(getattr(ours, key).numpy(), theirs[key])


def test_maze_rewards_are_those_the_environment_gives_in_the_recorded_states(copy: Path) -> None:
    env = make_raw(TASK)
    env.reset()
    goal = np.asarray(env.unwrapped.cur_goal_xy)

    def near_the_goal(arrays: dict[str, np.ndarray]) -> None:
        offsets = np.linspace([0.0, 0.0], [1.5, 0.5], 50)
        arrays["qpos"][10:60] = goal + offsets  # within and beyond the tolerance

    _edit(copy, near_the_goal)
    data = load_ogbench(TASK, copy)
    with np.load(copy / f"{MAZE}-v0.npz") as file:
        states = file["qpos"][: ROWS - 1]
    expected = []
    for state in states:
        env.reset()
        env.unwrapped.set_state(state.astype(np.float64), np.zeros(2))
        _, reward, terminated, _, info = env.step(np.zeros(2))
        assert info["success"] == terminated
        expected.append((reward, 1.0 - terminated))
    found = np.stack([data.train.rewards.numpy(), data.train.masks.numpy()], axis=1)[: ROWS - 1]
    np.testing.assert_array_equal(found, np.array(expected))
    assert 0 < (found[:, 1] == 0).sum() < 60, "both outcomes occur"


def test_solving_the_task_sets_the_mask_and_never_the_terminal(copy: Path) -> None:
    env = make_raw(TASK)
    env.reset()
    _edit(copy, lambda arrays: arrays["qpos"].__setitem__(slice(20, 30), np.asarray(env.unwrapped.cur_goal_xy)))
    data = load_ogbench(TASK, copy)
    assert (data.train.masks[20:30] == 0).all() and (data.train.terminals[20:30] == 0).all()
    end = ROWS - 2
    assert data.train.terminals[end] == 1 and data.train.masks[end] == 1, "an episode's end is no end of the task"


def test_cube_rewards_are_those_the_environment_gives_in_the_recorded_states(tmp_path: Path) -> None:
    name = "cube-double-play-singletask-task2-v0"
    env = make_raw(name)
    env.reset()
    episode = make_episode("cube-double-play", 24, seed=0)
    targets = env.unwrapped._data.mocap_pos.copy()
    episode["qpos"][4:12, 14:17] = targets[0] + np.linspace(0, 0.06, 8)[:, None] * [
        1,
        0,
        0,
    ]  # one cube solved, then not
    episode["qpos"][8:16, 21:24] = targets[1]
    for part in ("", "-val"):
        np.savez(tmp_path / f"cube-double-play-v0{part}.npz", **episode)  # type: ignore[arg-type]
    data = load_ogbench(name, tmp_path)
    expected = []
    for qpos in episode["qpos"][:-1]:
        env.reset()
        world = env.unwrapped
        world._data.qpos[:] = qpos
        world._data.qvel[:] = 0
        load("mujoco").mj_forward(world._model, world._data)
        world.pre_step()
        world.post_step()
        _, reward, terminated, _, _ = env.step(np.zeros(5))
        expected.append((reward, 1.0 - terminated))
    found = np.stack([data.train.rewards.numpy(), data.train.masks.numpy()], axis=1)
    np.testing.assert_array_equal(found, np.array(expected))
    assert {*data.train.rewards.tolist()} == {-2.0, -1.0, 0.0}
    assert data.about["origin"] == "unknown (local file)"


def test_what_made_the_data_and_the_reward_timing_stand_beside_it(maze: Path) -> None:
    about = load_ogbench(TASK, maze).about
    assert about["origin"] == "locally generated" and about["success_timing"] == "pre"
    assert about["packages"]["ogbench"] == about["made_with"]["ogbench"]
    assert about["rows_used"] == {"train": 4 * (ROWS - 1), "val": ROWS - 1}
    assert json.dumps(about)


def test_only_the_first_whole_episodes_are_used_when_asked(maze: Path) -> None:
    whole = load_ogbench(TASK, maze).train
    for wanted, episodes in ((1, 1), (ROWS - 1, 1), (ROWS, 2), (10**9, 4)):
        part = load_data(TASK, maze, max_transitions=wanted).train
        assert len(part) == episodes * (ROWS - 1)
        np.testing.assert_array_equal(part.observations, whole.observations[: len(part)])


@pytest.mark.usefixtures("offline")
def test_without_file_and_network_the_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_ogbench("cube-single-play-singletask-task2-v0", tmp_path)
    text = str(error.value)
    assert "cube-single-play-v0.npz is not in " + str(tmp_path) in text and "no route to host" in text
    assert f"tools/make_ogbench_data.py --env cube-single-play --out {tmp_path}" in text
    with pytest.raises(FileNotFoundError, match=r"humanoidmaze-medium-navigate-v0\.npz .* cannot be made here"):
        load_ogbench("humanoidmaze-medium-navigate-singletask-v0", tmp_path)
    with pytest.raises(ValueError, match="has no environment for 'cube-nonuple"):
        load_ogbench("cube-nonuple-play-singletask-v0", tmp_path)


def test_missing_files_are_downloaded_and_marked_as_official(
    maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def serve(url: str) -> Any:
        asked.append(url)
        return (maze / url.rsplit("/", 1)[1]).open("rb")

    monkeypatch.setattr(load("ogbench.utils").urllib.request, "urlopen", serve)
    about = load_ogbench(TASK, tmp_path).about
    assert [url.rsplit("/", 1)[1] for url in asked] == [f"{MAZE}-v0.npz", f"{MAZE}-v0-val.npz"]
    assert about["origin"] == "official"
    assert load_ogbench(TASK, tmp_path).about["origin"] == "official" and len(asked) == 2


def test_a_download_that_is_killed_or_cut_off_goes_on_and_keeps_its_mark(
    maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urllib_request = load("ogbench.utils").urllib.request

    def cut_off(url: str) -> Any:
        return io.BytesIO((maze / url.rsplit("/", 1)[1]).read_bytes()[:2000])

    monkeypatch.setattr(urllib_request, "urlopen", cut_off)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .* is not a readable npz file"):
        load_ogbench(TASK, tmp_path)
    monkeypatch.setattr(urllib_request, "urlopen", lambda url: (maze / url.rsplit("/", 1)[1]).open("rb"))
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / f"{MAZE}-v0-val.npz":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        load_ogbench(TASK, tmp_path)
    monkeypatch.setattr("os.replace", replace)
    assert load_ogbench(TASK, tmp_path).about["origin"] == "official"
    files = {f"{MAZE}-v0.npz", f"{MAZE}-v0-val.npz", f"{MAZE}-v0.json"}
    assert {path.name for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda a: a["qpos"].__setitem__((7, 1), np.nan), r"qpos\[7, 1\] is nan"),
        (lambda a: a["actions"].__setitem__((7, 1), np.inf), r"actions\[7, 1\] is inf"),
        (lambda a: a["actions"].__setitem__((7, 0), 2.0), r"actions\[7, 0\] is 2;"),
        (lambda a: a["observations"].__setitem__((7, 0), 1e38), r"observations\[7, 0\] is 1e\+38"),
        (lambda a: a["qvel"].__setitem__((7, 0), -np.inf), r"qvel\[7, 0\] is -inf"),
        (lambda a: a.update(terminals=a["terminals"] * 0.25), r"terminals\[119\] is 0\.25"),
        (lambda a: a["terminals"].__setitem__(0, True), r"terminals\[0\] ends an episode of one row"),
        (
            lambda a: a["terminals"].__setitem__(60, True) or a["terminals"].__setitem__(61, True),
            r"terminals\[61\] ends",
        ),
        (lambda a: a.update(actions=a["actions"][:, :1]), r"actions rows have shape \(1,\), .* gives \(2,\)"),
        (lambda a: a.update(qpos=a["qpos"][:-1]), "qpos has 479 rows, where 480 belong"),
        (lambda a: a.update(actions=a["actions"].astype(np.int8)), "actions is of type int8"),
        (lambda a: a.update({key: value[:0] for key, value in a.items()}), "the last row does not end an episode"),
    ],
)
def test_what_cannot_be_right_is_named(copy: Path, change: Callable[[dict[str, Any]], Any], reason: str) -> None:
    _edit(copy, change)
    with pytest.raises(FileError, match=f"^{copy}/{MAZE}-v0.npz: {reason}"):
        load_ogbench(TASK, copy)


@pytest.mark.usefixtures("offline")
def test_unusable_files_are_named(copy: Path, maze: Path) -> None:
    path = copy / f"{MAZE}-v0.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path} is not a readable npz file"):
        load_ogbench(TASK, copy)
    with np.load(maze / path.name) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **arrays | {"qpos": arrays["qpos"] + 1})
    with pytest.raises(ValueError, match=r"is not the file that .*pointmaze-medium-navigate-v0.json describes"):
        load_ogbench(TASK, copy)
    (copy / f"{MAZE}-v0.json").unlink()
    for changed, message in (
        ({"qpos": None}, "lacks qpos"),
        ({"terminals": np.zeros(4 * ROWS, bool)}, "last row does not end an episode"),
        (
            {"observations": np.zeros((4 * ROWS, 3), np.float32)},
            "observations rows have shape \\(3,\\), this environment gives \\(2,\\)",
        ),
        ({"observations": np.array([{}] * 4 * ROWS, object)}, "not a readable npz file"),
    ):
        np.savez(path, **{key: value for key, value in (arrays | changed).items() if value is not None})
        with pytest.raises(ValueError, match=message):
            load_ogbench(TASK, copy)


def _edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change the training file in place; it is then no longer the one its sidecar describes."""
    path = folder / f"{MAZE}-v0.npz"
    with np.load(path) as file:
        arrays = {key: file[key].copy() for key in file.files}
    change(arrays)
    np.savez(path, **arrays)
    (folder / f"{MAZE}-v0.json").unlink()
