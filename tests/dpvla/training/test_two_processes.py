"""Training shared by two processes."""

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

from dpvla.config import ConfigError
from dpvla.rl.buffer import RolloutBuffer
from dpvla.tensors import CheckpointError
from dpvla.training.checkpoint import latest_checkpoint
from dpvla.training.loop import train
from dpvla.training.order import epoch_batches
from tests.dpvla.training.test_resume import LOOP, assert_same_files, dipole
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


def test_processes_roll_out_different_scenes_and_both_are_kept(runs: Path) -> None:
    buffer = RolloutBuffer.load(newest(runs / "dipole" / "straight") / "trainer_state" / "buffer.safetensors")
    assert buffer.processes == 2 and len(buffer) == 6
    assert len(set(buffer.indices.tolist())) == 6
    assert [buffer.part(0), buffer.part(1)] == [slice(0, 3), slice(3, 6)]
    assert not torch.equal(buffer.roll_outs["plans"][0], buffer.roll_outs["plans"][3])


def test_another_number_of_processes_cannot_go_on(runs: Path) -> None:
    accelerator = Accelerator(cpu=True)
    stage = dipole(newest(runs / "imitation" / "straight"))(accelerator, runs)
    with pytest.raises(CheckpointError, match="2 processes, this one has 1"):
        train(stage, replace(LOOP, steps=stage.steps + 8), runs / "dipole" / "broken", accelerator)


def test_a_run_that_counted_batches_otherwise_cannot_go_on(runs: Path, tmp_path: Path) -> None:
    """Version 0.1.0 counted the scenes of each process, and did not say how many there were."""
    shutil.copytree(runs / "dipole" / "broken", tmp_path / "old")
    for path in (tmp_path / "old").rglob("run.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["provenance"].pop("processes") == 2
        path.write_text(yaml.safe_dump(content))
    accelerator = Accelerator(cpu=True)
    stage = dipole(newest(runs / "imitation" / "straight"))(accelerator, runs)
    with pytest.raises(CheckpointError, match=r"version 0\.1\.0, whose batch_size counted .* each of its 2"):
        train(stage, replace(LOOP, steps=stage.steps + 8), tmp_path / "old", accelerator)


def test_a_last_batch_is_filled_up_for_every_process() -> None:
    batches = epoch_batches(9, 4, 0, 1, multiple_of=2)
    epoch = [next(batches) for _ in range(3)]
    assert [len(rows) for rows in epoch] == [4, 4, 2]
    assert {row for rows in epoch for row in rows} == set(range(9))
    assert epoch[2][1] == epoch[0][0]


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
    three = type("Three", (), {"num_processes": 3})
    with pytest.raises(ConfigError, match=r"rollouts\.batch_size 4 cannot be shared by 3 processes.*over all of them"):
        dipole(newest(runs / "imitation" / "straight"))(three, runs)  # type: ignore[arg-type]
