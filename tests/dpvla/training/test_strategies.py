"""Every strategy learns the same, on one process and on two, writes the same files and reads every other's."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from dpvla.tensors import save_tensors
from dpvla.training.checkpoint import checkpoint_step, latest_checkpoint
from dpvla.training.strategies.average import WeightAverage
from tests.paths import ROOT

STRATEGIES = ["ddp", "fsdp2"]
if importlib.util.find_spec("deepspeed") is not None:
    STRATEGIES += ["zero2", "zero3"]
ALL = [f"{name}-{count}" for name in STRATEGIES for count in (1, 2)]
needs_deepspeed = pytest.mark.skipif("zero2" not in STRATEGIES, reason="needs the extra deepspeed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("strategies")
    script = str(ROOT / "tests" / "dpvla" / "training" / "strategy_processes.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-W", "ignore", script, str(out), *STRATEGIES], env=environment,
                          capture_output=True, text=True, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def newest(run: Path) -> Path:
    found = latest_checkpoint(run)
    assert found is not None
    return found


def logged(run: Path) -> dict[str, list[float]]:
    """What is logged, by name; every step's."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if not name.startswith("speed/") and name != "step"]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def same(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize("stage", ["imitation", "dipole"])
@pytest.mark.parametrize("run", ALL)
def test_losses_norms_roll_outs_and_validation_are_those_of_one_process(runs: Path, stage: str, run: str) -> None:
    same(logged(runs / f"{stage}-{run}"), logged(runs / f"{stage}-ddp-1"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_passes_an_update_are_one(runs: Path, name: str) -> None:
    same(logged(runs / f"passes-{name}-2"), logged(runs / "imitation-ddp-1"))


@pytest.mark.parametrize("stage", ["imitation", "dipole"])
@pytest.mark.parametrize("run", ALL)
def test_files_are_those_of_one_process(runs: Path, stage: str, run: str) -> None:
    mine, one = newest(runs / f"{stage}-{run}"), newest(runs / f"{stage}-ddp-1")
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(mine)) for path in mine.rglob("*") if path.is_file()) == names
    assert {"trainer_state/ema.safetensors", "trainer_state/optimizer.safetensors"} < {*names}
    adapters = {f"adapters/{adapter}/adapter_model.safetensors" for adapter in ("positive", "negative")}
    assert stage == "imitation" or adapters < {*names}
    for name in names:
        if name.endswith(".safetensors"):
            left, right = load_file(mine / name), load_file(one / name)
            assert left.keys() == right.keys(), name
            for key, value in left.items():
                assert value.dtype == right[key].dtype
                torch.testing.assert_close(value, right[key], rtol=1e-4, atol=2e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("count", [1, 2])
def test_every_strategy_goes_on_from_what_every_other_wrote(runs: Path, count: int) -> None:
    found = json.loads((runs / f"go_on_from_all-{count}.json").read_text())
    assert found.keys() == {f"imitation-{wrote} > {name}-{count}" for wrote in ALL for name in STRATEGIES}
    expected = found[f"imitation-ddp-1 > ddp-{count}"]
    for pair, values in found.items():
        assert values == pytest.approx(expected, rel=1e-6), pair


@pytest.mark.parametrize("count", [1, 2])
def test_every_strategy_computes_in_bf16_where_it_is_asked_to(runs: Path, count: int) -> None:
    """Weights held in bf16 go with nothing else; DeepSpeed turns off the autocast of a GPU around its engine."""
    found = json.loads((runs / f"update_in_bf16-{count}.json").read_text())
    assert found.keys() == set(STRATEGIES)
    for name, values in found.items():  # ZeRO-3 has linear layers of its own, which round once more
        assert values == pytest.approx(found["ddp"], rel=1e-2 if name == "zero3" else 1e-5), name


@pytest.mark.parametrize("stage", ["imitation", "dipole"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_goes_on_with_other_processes_learns_what_it_would_have(runs: Path, stage: str, count: int) -> None:
    stopped, straight = runs / f"stopped-{stage}-{count}", runs / f"{stage}-ddp-{count}"
    assert checkpoint_step(newest(stopped)) == checkpoint_step(newest(straight)) > 2
    same(logged(stopped), logged(straight))


def test_averages_are_those_of_diffusers() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    ours, theirs = WeightAverage(parameters, 0.9), EMAModel(parameters, decay=0.9)
    for _ in range(200):
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.1 * torch.randn_like(parameter))
        ours.step(parameters)
        theirs.step(parameters)
    assert all(torch.equal(a, b) for a, b in zip(ours.averages, theirs.shadow_params))
    before = [parameter.detach().clone() for parameter in parameters]
    with ours.standing_in(parameters):
        assert all(torch.equal(parameter, average) for parameter, average in zip(parameters, ours.averages))
    assert all(torch.equal(parameter, value) for parameter, value in zip(parameters, before))


def test_writing_weights_leaves_their_memory_free_to_go(tmp_path: Path) -> None:
    """A view by numpy would hold it, and gathered weights could not be parted again."""
    tensor = torch.arange(6.0)
    save_tensors(tmp_path / "x.safetensors", {"x": tensor, "none": torch.zeros(0)})
    tensor.untyped_storage().resize_(0)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.arange(6.0))
