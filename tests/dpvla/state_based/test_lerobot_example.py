"""The example for LeRobot's data sets, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples import lerobot_dataset
from tests.dpvla.state_based.lerobot_files import episode_of, write_lerobot

SMALL = "hidden=[32,32] q_target=value batch_size=64 beta=8 flow_steps=5 omega=3 samples=8"


@pytest.fixture(scope="module")
def pushes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One number is pushed up or down by 0 to 200 units; up earns 1, down -1, and the task ends at once."""
    episodes = []
    for number in range(100):
        episode = episode_of(3, number)
        push = np.random.default_rng(number).uniform(0, 200, (3, 1)).astype(np.float32)
        episode |= {"action": push, "next.reward": np.sign(push[:, 0] - 100).astype(np.float32)}
        episodes.append(episode | {"next.success": np.ones(3, bool)})
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "pushes", episodes)


def test_dipole_learns_from_a_lerobot_data_set_and_goes_on_where_it_was_stopped(pushes: Path, tmp_path: Path) -> None:
    for out, steps in (("straight", [250]), ("broken", [100, 250])):
        for count in steps:
            given = f"--data {pushes} --out {tmp_path / out} --steps {count} --launch.threads 1 --options {SMALL}"
            lerobot_dataset.main(given.split())
    ends = [tmp_path / out / "checkpoints/step_00000250/model/model.safetensors" for out in ("straight", "broken")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    robot = lerobot_dataset.Robot(str(tmp_path / "broken"))
    states = np.random.default_rng(0).normal(0, 3, (40, 5))
    pushed = np.array([robot.act(state) for state in states])
    assert pushed.shape == (40, 1) and (pushed >= 0).all() and (pushed <= 200).all()
    assert (pushed > 100).mean() > 0.8, "nearly always up"


def test_a_folder_without_a_data_set_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none/meta/info\.json"):
        lerobot_dataset.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
