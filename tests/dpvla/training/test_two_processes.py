"""Training shared by two processes."""

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from dpvla.config import ConfigError
from dpvla.manifest import renew_manifests
from dpvla.rl.buffer import RolloutBuffer
from dpvla.tensors import CheckpointError
from dpvla.training.checkpoint import checkpoint_step, checkpoints, latest_checkpoint, marked_best
from dpvla.training.loop import train
from dpvla.training.order import lane_batches, permutation
from dpvla.training.shares import share
from tests.dpvla.training.test_resume import LOOP, assert_same_files, dipole, imitation
from tests.dpvla.training.two_processes import watched
from tests.paths import ROOT


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests" / "dpvla" / "training" / "two_processes.py")
    done = subprocess.run([*command, script, str(out)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (out / "said").write_text(done.stdout + done.stderr)
    return out


def newest(run: Path) -> Path:
    found = latest_checkpoint(run)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", ["imitation", "dipole"])
def test_a_stopped_run_of_two_processes_ends_bit_for_bit_as_in_one_go(runs: Path, stage: str) -> None:
    assert_same_files(newest(runs / stage / "straight"), newest(runs / stage / "broken"))


def test_what_two_processes_see_is_what_one_sees(runs: Path, tmp_path: Path) -> None:
    with (runs / "dipole/straight/metrics.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["heldout/score"] or row["rollout/score"]]
    accelerator = Accelerator(cpu=True)
    stage = watched(newest(runs / "imitation" / "straight"))(accelerator, tmp_path)
    _, values = stage._roll_out(0)
    expected = values | dict(stage.evaluate(0))
    for name in ("heldout/score", "rollout/from_pretrained_m", "rollout/other/score", "rollout/reversing"):
        first = next(float(row[name]) for row in found if row[name])
        assert first == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    assert [row["step"] for row in found if row["heldout/score"]] == ["0", "4", "8"]
    assert marked_best(runs / "dipole" / "straight") in checkpoints(runs / "dipole" / "straight")


def test_every_scene_is_rolled_out_once_and_stands_where_one_process_has_it(runs: Path) -> None:
    buffer = RolloutBuffer.load(newest(runs / "dipole" / "straight") / "trainer_state" / "buffer.safetensors")
    assert buffer.indices.tolist() == permutation(10, 7, 1)[:6].tolist()
    plans = buffer.roll_outs["plans"].flatten(1)
    assert len(plans.unique(dim=0)) == 6


@pytest.mark.parametrize("stage", ["imitation", "dipole"])
def test_one_process_goes_on_where_two_stopped(runs: Path, tmp_path: Path, stage: str) -> None:
    shutil.copytree(runs / stage / "broken", tmp_path / "run")
    shutil.rmtree(newest(tmp_path / "run"))
    step, accelerator = checkpoint_step(newest(tmp_path / "run")), Accelerator(cpu=True)
    model = newest(runs / "imitation" / "straight")
    make = partial(imitation, scenes=9) if stage == "imitation" else dipole(model, "behavior")
    again = make(accelerator, tmp_path)
    last = train(again, replace(LOOP, steps=again.steps), tmp_path / "run", accelerator)  # type: ignore[attr-defined]
    assert checkpoint_step(last) == again.steps > step  # type: ignore[attr-defined]


def test_a_buffer_that_lacks_scenes_cannot_be_shared(runs: Path, tmp_path: Path) -> None:
    """Earlier versions left out what their processes could not share equally; then a cycle has other updates."""
    shutil.copytree(runs / "dipole" / "broken", tmp_path / "run")
    path = newest(tmp_path / "run") / "trainer_state" / "buffer.safetensors"
    save_file({name: value[:5] if value.dim() else value for name, value in load_file(path).items()}
              | {"processes": torch.tensor(5)}, path)  # fmt: skip
    renew_manifests(newest(tmp_path / "run"))
    accelerator = Accelerator(cpu=True)
    stage = dipole(newest(runs / "imitation" / "straight"))(accelerator, runs)
    with pytest.raises(CheckpointError, match=r"holds 5 scenes, a cycle has 6.*its 5 processes"):
        train(stage, replace(LOOP, steps=stage.steps + 8), tmp_path / "run", accelerator)


def test_a_run_that_counted_batches_otherwise_cannot_go_on(runs: Path, tmp_path: Path) -> None:
    """Version 0.1.0 counted the scenes of each process, and did not say how many there were."""
    shutil.copytree(runs / "dipole" / "broken", tmp_path / "old")
    for path in (tmp_path / "old").rglob("run.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["provenance"].pop("processes") == 2
        path.write_text(yaml.safe_dump(content))
    for path in (tmp_path / "old").rglob("buffer.safetensors"):
        save_file(load_file(path) | {"processes": torch.tensor(2)}, path)
        renew_manifests(path.parent.parent)
    accelerator = Accelerator(cpu=True)
    stage = dipole(newest(runs / "imitation" / "straight"))(accelerator, runs)
    with pytest.raises(CheckpointError, match=r"version 0\.1\.0, whose batch_size counted .* each of its 2"):
        train(stage, replace(LOOP, steps=stage.steps + 8), tmp_path / "old", accelerator)


def test_shares_of_a_batch_are_its_scenes_with_weights_that_give_its_mean() -> None:
    rows = [5, 3, 8, 1, 9]
    for processes in (1, 2, 3, 8):
        shared = [share(rows, process, processes, idle=3) for process in range(processes)]
        assert sorted(row for mine, weight in shared for row in mine if weight) == sorted(rows)
        means = [weight * sum(mine) / len(mine) for mine, weight in shared]
        assert sum(means) / processes == pytest.approx(sum(rows) / len(rows))
    assert share(rows, 7, 8, idle=3) == ([3], 0.0)


def test_lanes_keep_their_scenes_and_every_epoch_has_each_once() -> None:
    batches = lane_batches(11, 4, 0, 1)
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        assert [len(rows) for rows in epoch] == [4, 4, 3]
        assert sorted(row for rows in epoch for row in rows) == list(range(11))
        assert all([row % 4 for row in rows] == list(range(len(rows))) for rows in epoch)
    assert epochs[0] != epochs[1] and next(lane_batches(11, 4, 4, 1)) == epochs[1][1]


def test_logged_losses_are_means_over_all_processes(runs: Path) -> None:
    with (runs / "ranks/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/loss"]) for row in rows if row["train/loss"]] == [1.5]
    assert [float(row["a"]) for row in rows if row["a"]] == [1.5]


def test_what_is_said_of_an_evaluation_is_said_once(runs: Path) -> None:
    assert (runs / "said").read_text().count("validation/loss 0.5000") == 1


def test_a_batch_counts_the_scenes_of_all_processes(runs: Path) -> None:
    """Six scenes in batches of four are two updates an epoch, as in one process; each process has two of the four."""
    accelerator = Accelerator(cpu=True)
    one = dipole(newest(runs / "imitation" / "straight"))(accelerator, runs)
    last = newest(runs / "dipole" / "straight")
    assert last.name == f"step_{one.steps:08d}"
    three = type("Three", (), {"num_processes": 3, "process_index": 0})
    with pytest.raises(ConfigError, match=r"rollouts\.batch_size 4 cannot be shared by 3 processes.*over all of them"):
        dipole(newest(runs / "imitation" / "straight"))(three, runs)  # type: ignore[arg-type]
