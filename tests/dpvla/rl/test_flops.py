"""FLOPs from shapes alone are those of the real thing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.config import (
    AlgorithmConfig,
    BestOfGroupConfig,
    CFGRLConfig,
    DipoleConfig,
    DPPOConfig,
    GRPOConfig,
    WeightedRegressionConfig,
)
from dpvla.algorithms.registry import make_algorithm
from dpvla.models.flops import count_flops, on_meta
from dpvla.random_rows import RandomRows
from dpvla.rl.flops import SceneFlops, scene_flops
from tests.gpu.tiny_driving import make_policy


@pytest.mark.parametrize(
    "encoder, config",
    [
        ("tiny", DipoleConfig()),
        ("tiny", DipoleConfig(anchor="behavior")),
        ("tiny_florence", DipoleConfig()),
        ("tiny_florence", DipoleConfig(anchor="behavior")),
        ("tiny", WeightedRegressionConfig()),
        ("tiny", CFGRLConfig()),
        ("tiny", BestOfGroupConfig()),
        ("tiny", DipoleConfig(roll_out_sampler="sde")),
        ("tiny", GRPOConfig(num_steps=4)),
        ("tiny", DPPOConfig(num_steps=5, steps_per_update=2, baseline="critic")),
    ],
)
def test_counts_without_numbers_are_those_of_real_passes(encoder: str, config: AlgorithmConfig) -> None:
    algorithm = make_algorithm(config)
    policy, source = make_policy(encoder, adapters=algorithm.adapters)
    policy.beside = algorithm.networks(policy)
    policy.freeze_encoder()
    policy.sampling = algorithm.sampling()
    found = scene_flops(policy, algorithm, 3)
    with sdpa_kernel(SDPBackend.MATH):  # torch counts nothing of the CPU's own attention
        batch = source.batch([0])
        assert count_flops(lambda: policy.encode(batch)) == found.encode
        context = policy.encode(batch)
        roll_outs: dict[str, Tensor] = {}
        with torch.no_grad():
            made = count_flops(lambda: roll_outs.update(algorithm.roll_out(policy, context, 3, RandomRows([0]))))
        assert made == found.roll_out
        behavior = policy.snapshot_head() if algorithm.needs_behavior else None
        targets = algorithm.targets({"score": torch.rand(1, 3, dtype=torch.float64)}, roll_outs)
        rolled = RolloutBatch(context, roll_outs, targets, behavior, RandomRows([0]))
        assert count_flops(lambda: algorithm.loss(policy.train(), rolled)[0].backward()) == found.update


def test_counting_leaves_the_policy_alone_and_takes_no_memory() -> None:
    policy, _ = make_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    copy = on_meta(policy)
    assert {tensor.device.type for name, tensor in copy.state_dict().items() if "fitted" not in name} == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_a_cycle_counts_encodings_roll_out_and_epochs() -> None:
    assert SceneFlops(encode=100, roll_out=10, update=1).cycle(epochs=9) == 119
    assert SceneFlops(100, 10, 1).cycle(9, encodings=10) == 1019
    assert SceneFlops(100, 10, 1).cycle(9, encodings=0) == 19
