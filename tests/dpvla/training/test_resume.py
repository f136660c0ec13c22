"""The loop: training in one go equals training, stopping and going on; bad states are refused."""

from __future__ import annotations

import csv
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dpvla.algorithms.config import (
    AlgorithmConfig,
    Anchor,
    BestOfGroupConfig,
    CFGRLConfig,
    DipoleConfig,
    WeightedRegressionConfig,
)
from dpvla.algorithms.registry import make_algorithm
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.config import LoRAConfig
from dpvla.models.policies import new_policy
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.tensors import CheckpointError
from dpvla.training.checkpoint import latest_checkpoint, resolve_checkpoint
from dpvla.training.config import ImitationConfig, LoopConfig, learning_rate
from dpvla.training.imitation import ImitationStage
from dpvla.training.loop import train
from dpvla.training.order import epoch_batches, steps_per_epoch
from dpvla.training.stage import Stage
from tests.dpvla.models.tiny_policies import REGRESSION
from tests.scenes_in_memory import ScenesInMemory, prefer_left
from tests.written_runs import write_run

SENSORS = DPVLAConfig.tiny().encoder.sensors
LOOP = LoopConfig(lr=3e-3, warmup_steps=2, lr_schedule="cosine", ema_decay=0.9, seed=7, log_every=2, save_every=3,
                  trackers=())  # fmt: skip


def describe(directory: Path, cycles: int | None = None) -> None:
    write_run(directory, LOOP, 7, ())


def imitation(accelerator: Accelerator, out: Path, scenes: int = 10) -> ImitationStage:
    source = ScenesInMemory(scenes, SENSORS)
    torch.manual_seed(0)
    policy = DPVLA.from_config(DPVLAConfig.tiny())
    policy.plan_coding.fit(source.plans(), source.ego_status())
    config = ImitationConfig(epochs=3, batch_size=4, noise_draws=2)
    return ImitationStage(policy, source, config, accelerator, 7, describe, source, prefer_left)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    accelerator = Accelerator(cpu=True)
    stage = imitation(accelerator, out)
    return train(stage, replace(LOOP, steps=stage.steps), out, accelerator)


def dipole(start: Path, anchor: Anchor = "none") -> Callable[[Accelerator, Path], RolloutStage]:
    return learning(start, DipoleConfig(anchor=anchor))


def learning(
    start: Path, algorithm_config: AlgorithmConfig, epochs: int = 2
) -> Callable[[Accelerator, Path], RolloutStage]:
    def make(accelerator: Accelerator, out: Path) -> RolloutStage:
        torch.manual_seed(0)
        policy = DPVLA.from_pretrained(start / "model")
        algorithm = make_algorithm(algorithm_config)
        policy.add_adapters(algorithm.adapters, *LoRAConfig(4, 4).of(algorithm.adapters))
        config = RolloutConfig(
            group_size=4, cycles=2, epochs_per_cycle=epochs, scenes_per_cycle=6, batch_size=4, scenes_per_call=5
        )
        source = ScenesInMemory(10, SENSORS)
        return RolloutStage(policy, algorithm, source, prefer_left, config, accelerator, 7, start / "model", describe)

    return make


def run(make: Callable[[Accelerator, Path], Stage], out: Path, stops: list[int]) -> Path:
    """Train to the end, stopping after each of ``stops`` and starting again from the files alone."""
    for stop in [*stops, 0]:
        accelerator = Accelerator(cpu=True)
        stage = make(accelerator, out)
        config = replace(LOOP, steps=stage.steps, stop_after_step=stop)  # type: ignore[attr-defined]
        if stop:
            with pytest.raises(KeyboardInterrupt, match=f"step {stop}"):
                train(stage, config, out, accelerator)
        else:
            return train(stage, config, out, accelerator)
    raise AssertionError


def assert_same_files(a: Path, b: Path) -> None:
    names = sorted(p.relative_to(a) for p in a.rglob("*.safetensors"))
    assert names == sorted(p.relative_to(b) for p in b.rglob("*.safetensors")) and names
    for name in names:
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), f"{name}: {key}"


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in csv.DictReader(file)]


def test_imitation_stopped_twice_ends_bit_for_bit_as_in_one_go(tmp_path: Path) -> None:
    straight = run(imitation, tmp_path / "straight", [])
    broken = run(imitation, tmp_path / "broken", [4, 5])
    assert_same_files(straight, broken)
    assert rows(tmp_path / "straight")[-1] == rows(tmp_path / "broken")[-1]


@pytest.mark.parametrize("name", REGRESSION)
def test_a_baseline_stopped_twice_ends_bit_for_bit_as_in_one_go(name: str, tmp_path: Path) -> None:
    def make(accelerator: Accelerator, out: Path) -> ImitationStage:
        torch.manual_seed(0)
        policy = new_policy(REGRESSION[name]())  # the encoder of one of them has dropout and batch norm
        source = ScenesInMemory(8, policy.encoder.sensors)
        return ImitationStage(policy, source, ImitationConfig(3, 4), accelerator, 7, describe, source, prefer_left)

    straight = run(make, tmp_path / "straight", [])
    broken = run(make, tmp_path / "broken", [2, 5])
    assert_same_files(straight, broken)
    assert rows(tmp_path / "straight")[-1] == rows(tmp_path / "broken")[-1]


@pytest.mark.parametrize("anchor", ["none", "behavior"])
def test_dipole_stopped_inside_and_between_cycles_ends_bit_for_bit_as_in_one_go(
    tmp_path: Path, pretrained: Path, anchor: Anchor
) -> None:
    straight = run(dipole(pretrained, anchor), tmp_path / "straight", [])
    broken = run(dipole(pretrained, anchor), tmp_path / "broken", [2, 4, 7])
    assert_same_files(straight, broken)
    logged = [[(row["step"], bool(row["rollout/score"])) for row in rows(tmp_path / name) if row["rollout/score"]]
              for name in ("straight", "broken")]  # fmt: skip
    assert logged[0] == logged[1] and len(logged[0]) == 2
    assert {"trainer_state/buffer.safetensors", "adapters/positive/adapter_model.safetensors"} <= {
        str(p.relative_to(broken)) for p in broken.rglob("*.safetensors")
    }


@pytest.mark.parametrize(
    "config", [WeightedRegressionConfig(normalize=True), CFGRLConfig(), BestOfGroupConfig(only_when="beats_mean")]
)
def test_an_algorithm_stopped_inside_a_cycle_ends_bit_for_bit_as_in_one_go(
    tmp_path: Path, pretrained: Path, config: AlgorithmConfig
) -> None:
    straight = run(learning(pretrained, config, epochs=1), tmp_path / "straight", [])
    broken = run(learning(pretrained, config, epochs=1), tmp_path / "broken", [3])
    assert_same_files(straight, broken)
    assert rows(tmp_path / "straight")[-1] == rows(tmp_path / "broken")[-1]


def test_dipole_moves_samples_towards_the_reward(tmp_path: Path, pretrained: Path) -> None:
    def make(accelerator: Accelerator, out: Path) -> RolloutStage:
        stage = dipole(pretrained)(accelerator, out)
        config = replace(stage.config, group_size=16, cycles=3, epochs_per_cycle=12, scenes_per_cycle=10)
        return RolloutStage(
            stage.policy,
            stage.algorithm,
            stage.source,
            prefer_left,
            config,
            accelerator,
            7,
            pretrained / "model",
            describe,
        )

    run(make, tmp_path / "run", [])
    rewards = [float(row["rollout/score"]) for row in rows(tmp_path / "run") if row["rollout/score"]]
    assert len(rewards) == 3
    assert rewards[2] > rewards[0] + 0.02


def test_buffer_comes_back_from_its_file(tmp_path: Path) -> None:
    roll_outs = {"plans": torch.randn(3, 4, 8, 3), "chain": torch.randn(3, 4, 2, 8, 4)}
    scores = {"score": torch.rand(3, 4), "comfort": torch.ones(3, 4)}
    buffer = RolloutBuffer(5, torch.tensor([2, 0, 1]), roll_outs, scores)
    buffer.save(tmp_path / "buffer.safetensors")
    back = RolloutBuffer.load(tmp_path / "buffer.safetensors")
    assert back.cycle == 5
    assert back.roll_outs.keys() == roll_outs.keys() and back.scores.keys() == scores.keys()
    assert all(torch.equal(back.roll_outs[name], value) for name, value in roll_outs.items())
    assert all(torch.equal(back.scores[name], value) for name, value in scores.items())


def test_groups_below_the_floor_are_counted_and_those_with_one_reward_apart() -> None:
    scores = {"score": torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.51], [0.1, 0.5, 0.9], [0.3, 0.3, 0.4]]).double()}
    found = RolloutBuffer(0, torch.arange(4), {"plans": torch.zeros(4, 3, 8, 3)}, scores).statistics(0.01)
    assert found["rollout/zero_spread_groups"] == 0.5
    assert found["rollout/equal_reward_groups"] == 0.25


def terminated_twice(*given: object) -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_termination_signal_saves_and_stops_and_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    def make(accelerator: Accelerator, out: Path) -> ImitationStage:
        stage = imitation(accelerator, out)
        stage.module.register_forward_hook(terminated_twice)
        return stage

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="step 1"):
        run(make, tmp_path, [])
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step_00000001"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_trains_no_further(tmp_path: Path, pretrained: Path) -> None:
    first = run(dipole(pretrained), tmp_path, [])
    before = (first / "adapters/positive/adapter_model.safetensors").read_bytes()
    assert run(dipole(pretrained), tmp_path, []) == first
    assert (first / "adapters/positive/adapter_model.safetensors").read_bytes() == before


def test_every_epoch_holds_every_scene_once_and_order_depends_on_step_alone() -> None:
    batches = epoch_batches(10, 4, 0, 1)
    epochs = [[next(batches) for _ in range(steps_per_epoch(10, 4))] for _ in range(2)]
    assert [sorted(itertools.chain(*epoch)) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert next(epoch_batches(10, 4, 4, 1)) == epochs[1][1]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def make(accelerator: Accelerator, out: Path) -> ImitationStage:
        stage = imitation(accelerator, out)
        if (out / "checkpoints").exists():
            assert isinstance(stage.policy, DPVLA)
            stage.policy.head.output.weight.register_hook(lambda gradient: gradient * torch.nan)
        return stage

    accelerator = Accelerator(cpu=True)
    stage = make(accelerator, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(stage, replace(LOOP, steps=9, stop_after_step=3), tmp_path, accelerator)
    with pytest.raises(
        FloatingPointError,
        match=r"not finite at step 4; nothing of it was saved.*--loop.lr goes on from .*step_00000003",
    ):
        run(make, tmp_path, [])
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step_00000003"
    assert all(t.isfinite().all() for t in load_file(newest / "trainer_state" / "weights.safetensors").values())


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = replace(LOOP, steps=10)
    assert learning_rate(config, 1) == pytest.approx(LOOP.lr / 2)
    assert learning_rate(config, 2) == pytest.approx(LOOP.lr)
    assert learning_rate(config, 10) == pytest.approx(0, abs=1e-12)


def test_a_damaged_checkpoint_names_its_file(tmp_path: Path, pretrained: Path) -> None:
    run(dipole(pretrained), tmp_path, [])
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    damaged = newest / "trainer_state" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        run(dipole(pretrained), tmp_path, [])


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resolve_checkpoint(tmp_path)
