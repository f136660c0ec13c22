"""An algorithm and a strategy of one's own, plugged in by name: trained, resumed and evaluated by the real tools."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpvla.models.config import LoRAConfig
from dpvla.models.sampling import Sampling
from dpvla.training.start import open_start
from tests.paths import ROOT
from tests.tools.real_tools import call, refused

TOY = ("--plugin", str(ROOT / "tests/tools/plugins/toy_algorithm.py"), "--algorithm", "best")
EXAMPLE = ("--plugin", str(ROOT / "examples/algorithm.py"), "--algorithm", "weighted")
SGD = ("--plugin", str(ROOT / "examples/strategy.py"), "--loop.strategy", "sgd", "--loop.strategy.momentum", "0.5")
RECIPE = {
    "split": "navtrain",
    "checkpoint": "runs/pre",
    "rollouts": {"group_size": 3, "cycles": 2, "epochs_per_cycle": 1, "scenes_per_cycle": 4, "batch_size": 2},
    "lora": {"rank": 4, "alpha": 4},
    "loop": {"lr": 1e-3, "log_every": 1, "save_every": 1, "keep_checkpoints": 9, "trackers": []},
}


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Path:
    (toy_place / "rl.yaml").write_text(yaml.safe_dump(RECIPE))
    return toy_place


def fine_tune(place: Path, out: str, *options: str, status: tuple[int, ...] = (0,)) -> Path:
    call("rl_finetune.py", "--config", "rl.yaml", "--out", f"runs/{out}", *options, cwd=place, status=status)
    return sorted((place / "runs" / out / "checkpoints").glob("step_*"))[-1]


def assert_same_weights(one: Path, two: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(two) for path in two.rglob("*.safetensors")) and names
    for name in names:
        left, right = load_file(one / name), load_file(two / name)
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left), name


@pytest.mark.parametrize("options", [TOY, EXAMPLE], ids=["toy", "example"])
def test_an_algorithm_of_ones_own_is_trained_stopped_and_gone_on_with_exactly(
    place: Path, options: tuple[str, ...]
) -> None:
    name = options[-1]
    straight = fine_tune(place, f"{name}_straight", *options)
    fine_tune(place, f"{name}_stopped", *options, "--loop.stop-after-step", "3", status=(130,))
    stopped = fine_tune(place, f"{name}_stopped", *options)
    assert straight.name == stopped.name == "step_00000004"
    assert_same_weights(straight, stopped)
    run = yaml.safe_load((straight / "run.yaml").read_text())
    last = run["trained_on"][-1]
    assert (last["stage"], last["weights"]) == ((name, "model") if name == "best" else (name, "adapters"))
    assert run["config"]["algorithm"]["name"] == name
    with (straight.parents[1] / "metrics.csv").open() as file:
        logged = next(csv.reader(file))
    assert ("rl/chosen" if name == "best" else "rl/largest_weight") in logged and "rollout/reward_spread" in logged


def test_a_run_whose_one_adapter_has_the_size_of_an_earlier_version_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(LoRAConfig, "times", staticmethod(lambda names: 1))
        straight = fine_tune(place, "small_straight", *EXAMPLE)
        fine_tune(place, "small_stopped", *EXAMPLE, "--loop.stop-after-step", "3", status=(130,))
    stopped = fine_tune(place, "small_stopped", *EXAMPLE)
    assert_same_weights(straight, stopped)
    start = ("--checkpoint", str(stopped), *EXAMPLE, "--out", "runs/small_second")
    said = refused("rl_finetune.py", "--config", "rl.yaml", *start, cwd=place)
    assert (
        "have rank 4 and alpha 4, this run asks for 8 and 8: give --lora.rank 2 --lora.alpha 2, or --adapters" in said
    )


def test_the_whole_head_moves_where_an_algorithm_has_no_adapters_and_the_encoder_does_not(place: Path) -> None:
    after = load_file(fine_tune(place, "best_straight", *TOY) / "model" / "model.safetensors")
    start = sorted((place / "runs/pre/checkpoints").glob("step_*"))[-1]
    before = load_file(start / "model" / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all(key.startswith("head.") for key in moved)
    assert not (fine_tune(place, "best_straight", *TOY) / "adapters").exists()


def test_later_sampling_is_what_the_algorithm_says(place: Path) -> None:
    checkpoint = fine_tune(place, "weighted_straight", *EXAMPLE)
    assert sorted(path.name for path in (checkpoint / "adapters").iterdir()) == [
        "manifest.json",
        "policy",
        "sampling.json",
    ]
    policy = open_start(checkpoint).load()
    assert policy.sampling == Sampling(("policy",)) and policy.head.adapters == ("policy",)
    evaluate = ("--agent", "dpvla", "--checkpoint", str(checkpoint), "--split", "navtest")
    call("evaluate.py", *evaluate, "--out", "weighted_scores", cwd=place)
    assert json.loads((place / "weighted_scores" / "summary.json").read_text())["omega"] is None
    said = refused("evaluate.py", *evaluate, "--out", "no", "--omega", "2", cwd=place)
    assert "--omega has nothing to combine" in said


def test_adapters_of_another_algorithm_are_refused_with_what_to_do(place: Path) -> None:
    start = ("--checkpoint", str(fine_tune(place, "weighted_straight", *EXAMPLE)))
    said = refused("rl_finetune.py", "--config", "rl.yaml", *start, "--out", "runs/other", cwd=place)
    assert "has the adapters policy, this algorithm trains positive, negative: give --adapters merge" in said
    merged = fine_tune(place, "after_weighted", *start, "--adapters", "merge")
    stages = [stage["stage"] for stage in yaml.safe_load((merged / "run.yaml").read_text())["trained_on"]]
    assert stages == ["imitation", "weighted", "dipole"]


def test_an_algorithm_that_is_not_plugged_in_is_told(place: Path) -> None:
    new = ("--config", "rl.yaml", "--out", "runs/no_such_algorithm")
    said = refused("rl_finetune.py", *new, "--algorithm", "dipol", cwd=place)
    assert "unknown algorithm 'dipol'; nearest valid name: 'dipole'" in said and "--plugin" in said
    said = refused("rl_finetune.py", *new, "--algorithm.omga", "2", cwd=place)
    assert "algorithm.omega" in said and not (place / "runs/no_such_algorithm").exists()


def test_a_run_goes_on_with_its_algorithm_alone(place: Path) -> None:
    fine_tune(place, "kept", "--loop.stop-after-step", "1", status=(130,))
    said = refused("rl_finetune.py", "--config", "rl.yaml", "--out", "runs/kept", "--algorithm.beta", "3", cwd=place)
    assert "algorithm.beta = 1.0, this one has 3.0" in said
    said = refused("rl_finetune.py", "--config", "rl.yaml", "--out", "runs/kept", *EXAMPLE, cwd=place)
    assert "runs/kept holds a run with algorithm.name = 'dipole', this one has 'weighted'" in said


def test_a_strategy_of_ones_own_trains_stops_and_goes_on_exactly(place: Path) -> None:
    found = []
    for out, stops in (("sgd_straight", ["0"]), ("sgd_stopped", ["2", "0"])):
        for stop in stops:
            call("pretrain.py", "--config", "pretrain.yaml", "--out", f"runs/{out}", *SGD, "--loop.steps", "4",
                 "--loop.stop-after-step", stop, cwd=place, status=(0, 130))  # fmt: skip
        found.append(sorted((place / "runs" / out / "checkpoints").glob("step_*"))[-1])
    assert_same_weights(*found)
    assert (found[0] / "trainer_state" / "momentum.safetensors").is_file()
    new = ("--config", "pretrain.yaml", "--out", "runs/no_such_strategy")
    assert "averages no weights" in refused("pretrain.py", *new, *SGD, "--loop.ema-decay", "0.9", cwd=place)
    assert "unknown strategy 'fsdp'" in refused("pretrain.py", *new, "--loop.strategy", "fsdp", cwd=place)
    assert not (place / "runs/no_such_strategy").exists()
