"""Kept roll-outs: every cycle's plans and scores, the same after a kill, and read back with what is wrong named."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpvla import files
from dpvla.checkpoint_layout import KEPT_ROLL_OUTS
from dpvla.files import FileError
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.kept import KeptRollOuts
from dpvla.sub_scores import ScoringRule
from dpvla.training.loop import train
from tests.dpvla.rl.test_cycles import make_stage
from tests.dpvla.training.test_resume import LOOP
from tests.scenes_in_memory import prefer_left

RULE = ScoringRule({"metric": "left"}, ())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In one go."""
    return trained(tmp_path_factory.mktemp("kept") / "run", [0])


def trained(out: Path, stops: list[int]) -> Path:
    for stop in stops:
        stage = make_stage(None)
        stage.keep_roll_outs(out / KEPT_ROLL_OUTS, RULE)
        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            train(stage, replace(LOOP, steps=stage.steps, stop_after_step=stop), out, stage.accelerator)
    return out


def test_every_cycle_is_kept_with_scenes_plans_and_scores(run: Path) -> None:
    kept = KeptRollOuts.read(run)
    cycles, source = kept.cycles(), make_stage(None).source
    assert kept.rule == RULE and kept.scenes == tuple(source.tokens)
    assert [buffer.cycle for buffer in cycles] == [0, 1]
    for buffer in cycles:
        assert sorted(buffer.indices.tolist()) == list(range(len(source))) and buffer.roll_outs.keys() == {"plans"}
        scores = prefer_left([kept.scenes[i] for i in buffer.indices], buffer.roll_outs["plans"])
        torch.testing.assert_close(buffer.scores["score"], scores["score"])
    assert not torch.equal(cycles[0].roll_outs["plans"], cycles[1].roll_outs["plans"])


@pytest.mark.parametrize("lost", ["", "cycle_00001.safetensors"])
def test_a_run_that_is_stopped_keeps_the_same_to_the_byte(run: Path, tmp_path: Path, lost: str) -> None:
    """Also where the kill came between a cycle's roll-outs and the update that would have been saved with them."""
    broken = trained(tmp_path / "broken", [3, 6])
    if lost:
        (broken / KEPT_ROLL_OUTS / lost).unlink()
        shutil.rmtree(broken / "checkpoints" / "step_00000006")
    trained(broken, [0])
    names = {path.name for path in (run / KEPT_ROLL_OUTS).iterdir()}
    assert names == {path.name for path in (broken / KEPT_ROLL_OUTS).iterdir()} and len(names) == 4
    for name in names:
        assert (run / KEPT_ROLL_OUTS / name).read_bytes() == (broken / KEPT_ROLL_OUTS / name).read_bytes(), name


def test_what_an_algorithm_keeps_beside_plans_is_left_out(tmp_path: Path) -> None:
    kept = KeptRollOuts(tmp_path, {"encoder": {}, "architecture": "", "weights": "", "precision": "no"}, RULE, ("a",))
    said = kept.begin(1, 1, 2)
    assert "1 cycles" in said and "MB" in said
    chain = {"plans": torch.zeros(1, 2, 8, 3), "chain": torch.zeros(1, 2, 10, 8, 4)}
    kept.write(RolloutBuffer(0, torch.tensor([0]), chain, {"score": torch.zeros(1, 2, dtype=torch.float64)}))
    assert KeptRollOuts.read(tmp_path).cycles()[0].roll_outs.keys() == {"plans"}


def test_without_room_nothing_is_written(tmp_path: Path) -> None:
    kept = KeptRollOuts(tmp_path / "kept", {}, RULE, ("a",))
    with pytest.raises(OSError, match=r"GB are free at .*kept: nothing is written"):
        kept.begin(10**6, 10**6, 10**3)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("none", "has kept no roll-outs .*--rollouts.keep"),
        ("cut", "cycle_00000.safetensors is damaged, it has 40 bytes"),
        ("missing", "cycle_00001.safetensors is missing"),
        ("unbegun", "stopped before its first cycle was kept"),
        ("other", "description.json is damaged"),
    ],
)
def test_what_is_wrong_with_kept_roll_outs_is_said(run: Path, tmp_path: Path, fault: str, says: str) -> None:
    folder = tmp_path / "run" / KEPT_ROLL_OUTS
    shutil.copytree(run / KEPT_ROLL_OUTS, folder)
    if fault == "none":
        shutil.rmtree(folder)
    elif fault == "cut":
        (folder / "cycle_00000.safetensors").write_bytes((folder / "cycle_00000.safetensors").read_bytes()[:40])
    elif fault == "missing":
        (folder / "cycle_00001.safetensors").unlink()
    elif fault == "unbegun":
        (folder / "manifest.json").unlink()
    else:
        content = files.read_json(folder / "description.json")
        files.write_json(folder / "description.json", content | {"scenes": content["scenes"][::-1]})
    with pytest.raises(FileError, match=says):
        KeptRollOuts.read(tmp_path / "run").cycles()
