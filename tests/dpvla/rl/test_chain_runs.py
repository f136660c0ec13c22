"""Runs of GRPO and DPPO through the real stage: exact resume, a critic that goes on with them, what is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dpvla.algorithms.config import ChainConfig, DPPOConfig, GRPOConfig
from dpvla.algorithms.registry import make_algorithm
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.training.start import open_start
from tests.dpvla.training.test_resume import assert_same_files, describe, rows, run
from tests.gpu.tiny_driving import make_policy
from tests.scenes_in_memory import prefer_left

CONFIGS: dict[str, ChainConfig] = {
    "grpo": GRPOConfig(num_steps=3, steps_per_update=2),
    "critic": DPPOConfig(baseline="critic", clip=0.1),
}


def make(config: ChainConfig, **more: Any) -> Callable[[Accelerator, Path], RolloutStage]:
    def stage(accelerator: Accelerator, out: Path) -> RolloutStage:
        policy, source = make_policy()
        algorithm = make_algorithm(config)
        with torch.no_grad():
            policy.merge_adapters()
        policy.add_adapters(algorithm.adapters, 4)
        usual = RolloutConfig(group_size=4, cycles=2, epochs_per_cycle=2, batch_size=4, scenes_per_call=4)
        rollouts = replace(usual, **more)
        return RolloutStage(policy, algorithm, source, prefer_left, rollouts, accelerator, 7, None, describe)

    return stage


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_stopped_inside_and_between_cycles_ends_bit_for_bit_as_in_one_go(tmp_path: Path, name: str) -> None:
    straight = run(make(CONFIGS[name]), tmp_path / "straight", [])
    broken = run(make(CONFIGS[name]), tmp_path / "broken", [2, 4, 7])
    assert_same_files(straight, broken)
    assert rows(tmp_path / "straight")[-1] == rows(tmp_path / "broken")[-1]
    steps = CONFIGS[name].num_steps or 2
    buffer = RolloutBuffer.load(straight / "trainer_state" / "buffer.safetensors")
    assert buffer.roll_outs["chain"].shape == (6, 4, steps + 1, 8, 4)
    assert buffer.roll_outs["log_probs"].shape == (6, 4, steps)
    critic = [key for key in load_file(straight / "trainer_state" / "weights.safetensors") if "beside" in key]
    assert len(critic) == 8 * (name == "critic")
    policy = open_start(straight).load()
    assert policy.head.adapters == ("policy",) and policy.beside is None


def test_samples_move_towards_the_reward(tmp_path: Path) -> None:
    config = GRPOConfig(num_steps=3, min_sampling_std=0.1, reference_weight=0.0)
    run(make(config, group_size=16, cycles=3, epochs_per_cycle=8, batch_size=6), tmp_path, [])
    found = [float(row["rollout/score"]) for row in rows(tmp_path) if row["rollout/score"]]
    assert len(found) == 3 and found[-1] > found[0] + 0.02, found
