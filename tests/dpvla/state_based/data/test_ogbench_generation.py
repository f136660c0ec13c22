"""Data sets made with the package's scripted oracles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvla.files import DirectoryInUseError, FileError
from dpvla.state_based.data.local_data import OtherDataError
from dpvla.state_based.data.ogbench import episodes, generation
from dpvla.state_based.data.ogbench.episodes import VISIBLE_Y, make_episode
from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, generate, write_shard
from dpvla.state_based.data.ogbench.load import load_ogbench
from tests.other_process import locked_elsewhere
from tools import make_ogbench_data

MAZE = "pointmaze-medium-navigate"
TASK = f"{MAZE}-singletask-task1-v0"


def _config(out: Path, **changes: Any) -> OGBenchGeneration:
    settings = {"env": MAZE, "episodes": 10, "steps": 30, "workers": 1, "quiet": True}
    return OGBenchGeneration(out=str(out), **{**settings, **changes})


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npz")}


def _listening(made: list[int]) -> Callable[..., None]:
    """``write_shard`` that also notes the episodes' numbers."""

    def listen(*job: Any) -> None:
        made.append(job[4])
        write_shard(*job)

    return listen


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training episodes of 30 rows and one for validation."""
    folder = tmp_path_factory.mktemp("maze")
    generate(_config(folder))
    return folder


def test_files_have_the_packages_names_keys_and_types(maze: Path) -> None:
    for name, count in ((f"{MAZE}-v0.npz", 10), (f"{MAZE}-v0-val.npz", 1)):
        with np.load(maze / name) as file:
            kinds = {key: file[key].dtype.name for key in file.files}
            rows = {len(file[key]) for key in file.files}
            ends = np.flatnonzero(file["terminals"])
        floats = dict.fromkeys(("observations", "actions", "qpos", "qvel"), "float32")
        assert kinds == {**floats, "terminals": "bool"}
        assert rows == {count * 30}
        assert ends.tolist() == [30 * (i + 1) - 1 for i in range(count)]
    assert not [path for path in maze.iterdir() if path.name.startswith(".")], "shards are gone"


def test_the_sidecar_says_how_the_data_was_made(maze: Path) -> None:
    about = json.loads((maze / f"{MAZE}-v0.json").read_text())
    assert about["origin"] == "locally generated" and "not the official data" in about["note"]
    assert about["packages"].keys() == {"ogbench", "gymnasium", "mujoco", "dm_control"}
    assert about["rows"] == {"train": 300, "val": 30} and about["seed"] == 0
    assert "git_commit" in about["provenance"]


def test_episodes_differ_and_so_do_seeds_and_parts(maze: Path, tmp_path: Path) -> None:
    generate(_config(tmp_path, seed=1, episodes=1))
    with np.load(maze / f"{MAZE}-v0.npz") as file, np.load(tmp_path / f"{MAZE}-v0.npz") as other:
        starts = np.concatenate([file["actions"][::30], other["actions"][::30]])
    with np.load(maze / f"{MAZE}-v0-val.npz") as file:
        starts = np.concatenate([starts, file["actions"][::30]])
    assert len(np.unique(starts, axis=0)) == 12


def test_workers_do_not_change_a_byte(maze: Path, tmp_path: Path) -> None:
    generate(_config(tmp_path, workers=2))
    assert _bytes(tmp_path) == _bytes(maze)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def dies_after_four(*job: Any) -> None:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(job[4])
        write_shard(*job)

    monkeypatch.setattr(generation, "write_shard", dies_after_four)
    with pytest.raises(KeyboardInterrupt):
        generate(_config(tmp_path))
    assert not list(tmp_path.glob("*.npz"))
    (tmp_path / f".{MAZE}-v0.parts" / ".train-000004.npz.half").write_bytes(b"cut")
    monkeypatch.setattr(generation, "write_shard", _listening(made))
    generate(_config(tmp_path))
    assert made == [*range(10), 0], "ten training episodes and one for validation, each once"
    assert _bytes(tmp_path) == _bytes(maze)


def test_a_finished_set_grows_without_making_its_episodes_again(
    maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(_config(tmp_path, episodes=6))
    made: list[int] = []
    monkeypatch.setattr(generation, "write_shard", _listening(made))
    generate(_config(tmp_path))
    assert made == [6, 7, 8, 9]
    generate(_config(tmp_path))
    assert made == [6, 7, 8, 9], "nothing to do"
    assert _bytes(tmp_path) == _bytes(maze)


def test_two_at_once_are_one_writer_and_the_mark_stays(maze: Path, tmp_path: Path) -> None:
    shards = tmp_path / f".{MAZE}-v0.parts"
    shards.mkdir()
    with locked_elsewhere(shards), pytest.raises(DirectoryInUseError, match=r"parts is being written by process \d+"):
        generate(_config(tmp_path))
    assert not list(tmp_path.glob("*.npz"))
    about = generate(_config(tmp_path))
    assert about["origin"] == "locally generated" and _bytes(tmp_path) == _bytes(maze)
    assert not shards.exists(), "and the lock with it"


def test_parts_that_a_killed_run_left_behind_a_finished_set_are_removed(maze: Path, tmp_path: Path) -> None:
    generate(_config(tmp_path))
    shards = tmp_path / f".{MAZE}-v0.parts"
    shards.mkdir()
    shards.joinpath("train-000009.npz").write_bytes(b"of the finished set")
    generate(_config(tmp_path))
    assert not shards.exists() and _bytes(tmp_path) == _bytes(maze)
    shards.mkdir()
    under_way = shards / "train-000010.npz"
    under_way.write_bytes(b"of a larger set under way")
    generate(_config(tmp_path))
    assert under_way.exists()


def test_parts_of_which_nothing_tells_are_not_taken(maze: Path, tmp_path: Path) -> None:
    """A kill may leave parts without their settings, and their data set may be removed then."""
    generate(_config(tmp_path / "other", seed=1, episodes=1))
    shards = tmp_path / f".{MAZE}-v0.parts"
    shards.mkdir()
    (tmp_path / "other" / f"{MAZE}-v0.npz").rename(shards / "train-000000.npz")
    generate(_config(tmp_path))
    assert _bytes(tmp_path) == _bytes(maze)


def _edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"files": None}, "files: expected a mapping, found None"),
        ({"files": {f"{MAZE}-v0.npz": 3}}, rf"files\.{MAZE}-v0\.npz: expected a text, found 3"),
        ({"origin": []}, r"origin: expected a text, found \[\]"),
        ({"episodes": {"train": 10}}, r"episodes\.val: is missing"),
        ({"episodes": {"train": -3, "val": 1}}, r"episodes\.train: expected a number at least 1, found -3"),
        ({"rows": "many"}, "rows: expected a mapping, found 'many'"),
        ({"seed": "0"}, "seed: expected a whole number, found '0'"),
        ({"packages": {"ogbench": 1.2}}, r"packages\.ogbench: expected a text, found 1\.2"),
    ],
)
def test_a_damaged_sidecar_is_named(changes: dict[str, Any], reason: str, maze: Path, tmp_path: Path) -> None:
    shutil.copytree(maze, tmp_path / "copy")
    sidecar = tmp_path / f"copy/{MAZE}-v0.json"
    _edited(sidecar, **changes)
    for use in (lambda: generate(_config(tmp_path / "copy")), lambda: load_ogbench(TASK, tmp_path / "copy")):
        with pytest.raises(FileError, match=f"^{sidecar}: {reason}"):
            use()
    assert _bytes(tmp_path / "copy") == _bytes(maze)


def test_a_damaged_file_is_not_taken_for_finished_and_is_made_again_once_it_is_gone(maze: Path, tmp_path: Path) -> None:
    shutil.copytree(maze, tmp_path / "copy")
    path = tmp_path / f"copy/{MAZE}-v0.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez_compressed(path, **arrays | {"qpos": arrays["qpos"] + 1})
    with pytest.raises(FileError, match=f"^{path} is not the file that .* describes; .* or else the file, and get or"):
        generate(_config(tmp_path / "copy"))
    path.unlink()
    generate(_config(tmp_path / "copy"))
    assert _bytes(tmp_path / "copy") == _bytes(maze)


def test_other_settings_and_foreign_files_are_not_overwritten(maze: Path, tmp_path: Path) -> None:
    with pytest.raises(OtherDataError, match="seed 0, this run has 3"):
        generate(_config(maze, seed=3))
    foreign = tmp_path / f"{MAZE}-v0.npz"
    foreign.write_bytes(b"official")
    with pytest.raises(OtherDataError, match="not made by this tool"):
        generate(_config(tmp_path))
    assert foreign.read_bytes() == b"official"


def test_wrong_settings_are_explained() -> None:
    with pytest.raises(ValueError, match="cannot make 'humanoidmaze-medium-navigate' here; choose from: cube-single"):
        OGBenchGeneration(env="humanoidmaze-medium-navigate")
    with pytest.raises(ValueError, match="steps must be at least 2"):
        OGBenchGeneration(steps=1)
    assert OGBenchGeneration(env="pointmaze-giant-navigate").counts == {"train": 500, "val": 50}
    assert OGBenchGeneration(env="cube-double-play").rows == 1001


def test_the_tool_makes_and_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ogbench_data.main(
        ["--env", MAZE, "--episodes", "1", "--steps", "20", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    )
    assert "rows train 20, val 20; locally generated" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make_ogbench_data.main(["--env", "cube-triple-play", "--out", str(tmp_path)])
    assert "cannot make 'cube-triple-play' here" in capsys.readouterr().err


@pytest.mark.parametrize("name, sizes", [("cube-double-play", (37, 28, 26, None)), ("scene-play", (40, 25, 24, 2))])
def test_play_episodes_repeat_whatever_was_driven_before(name: str, sizes: tuple[int, int, int, int | None]) -> None:
    first = make_episode(name, 40, seed=1)
    make_episode(name, 25, seed=2)
    again = make_episode(name, 40, seed=1)
    assert all((first[key] == again[key]).all() for key in first)
    shapes = tuple(
        first[key].shape[1] if key in first else None for key in ("observations", "qpos", "qvel", "button_states")
    )
    assert shapes == sizes
    assert first["actions"].shape == (40, 5) and np.abs(first["actions"]).max() <= 1


def test_the_cube_is_moved_and_rows_follow_the_physics() -> None:
    episode = make_episode("cube-single-play", 150, seed=1)
    assert np.linalg.norm(np.ptp(episode["qpos"][:, 14:17], axis=0)) > 0.05, "the oracle moves the cube [m]"
    arm, observed = episode["qpos"][:, :6], episode["observations"][:, :6]
    np.testing.assert_array_equal(arm, observed)  # both from before the row's action


def test_scene_episodes_with_a_hidden_cube_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    qpos = np.zeros((3, 25))
    visible = episodes._cube_stays_visible
    assert visible(qpos)
    for y, z, expected in ((0.3, 0.0, False), (-0.31, 0.02, False), (-0.31, 0.07, True), (VISIBLE_Y[0], 0.02, False)):
        qpos[1, 15:17] = y, z
        assert visible(qpos) is expected
    tries: list[int] = []

    def third_is_fine(*_: Any) -> dict[str, np.ndarray]:
        tries.append(len(tries))
        moved = np.zeros((3, 25))
        moved[2, 15] = 0.5 if len(tries) < 3 else 0.0
        return {"qpos": moved, "try": np.array(len(tries))}

    monkeypatch.setattr(episodes, "_play_once", third_is_fine)
    monkeypatch.setattr(episodes, "_oracles", lambda env: {"drawer": None})
    assert episodes.play(None, 3)["try"] == 3


def test_maze_goals_are_corners_crossings_and_dead_ends() -> None:
    maze = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    free, goals = episodes._cells(maze)
    assert free == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert goals == [(1, 1), (1, 3), (3, 3)]
