"""Traffic for states that lie on a GPU: moved on the CPU, for one wait."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.pdm import EPDMSBatch
from navsim_bridge.pdm.score import simulate_plans
from navsim_bridge.traffic.registry import TRAFFIC, make_traffic
from tests.gpu.pretended import PretendedGPU, value
from tests.navsim_bridge.traffic.made_up import with_traffic
from tests.paths import GOLDEN_V2


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic_for_states_on_a_gpu_is_that_on_the_cpu_and_costs_one_wait(name: str) -> None:
    scene = with_traffic(read_golden_epdms(GOLDEN_V2 / "public_109_carpark.npz").scene, followers=2)
    batch = EPDMSBatch.from_scenes([scene, dataclasses.replace(scene, token="another")])
    plans = torch.zeros((2, 3, 8, 3), dtype=torch.float64)
    plans[:, 1, :, 0] = torch.arange(1, 9) * 3.0
    states = simulate_plans(batch.scenes, plans)[:, 1:]
    policy = make_traffic(name)
    expected = policy.simulate(batch, states)
    gpu = PretendedGPU()
    with gpu():
        moved, there = batch.to(gpu.device), states.to(gpu.device)
        gpu.forget()
        objects = policy.simulate(moved, there)
        assert objects.object_boxes.device == gpu.device
        waits = dict(gpu.syncs)
    assert sum(waits.values()) == (0 if policy.as_recorded else 1), waits
    for field in dataclasses.fields(expected):
        torch.testing.assert_close(value(getattr(objects, field.name)), getattr(expected, field.name), rtol=0, atol=0)
