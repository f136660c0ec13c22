"""Choosing among plans on a GPU follows CUDA's device rules, waits for nothing and takes the CPU's choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from dpvla.checkpoint_layout import KEPT_ROLL_OUTS
from dpvla.rl.kept import KeptRollOuts
from dpvla.selector.stage import SelectorStage
from dpvla.training.strategies.registry import make_strategy
from tests.dpvla.selector.test_network import context, some_plans
from tests.dpvla.selector.test_selector import selector
from tests.dpvla.selector.test_stage import kept, make_stage
from tests.gpu.pretended import PretendedGPU, value
from tests.gpu.test_policy_on_gpu import LOOP
from tests.gpu.tiny_driving import training_on


@pytest.mark.parametrize("masked", [False, True])
def test_a_choice_copies_nothing_in_and_waits_for_nothing(masked: bool) -> None:
    made, scenes, plans = selector(), context(3, masked), some_plans(3, 5)
    plans[0, 2] = torch.nan
    expected = made.choose(scenes, plans)
    gpu = PretendedGPU()
    with gpu():
        made.to(gpu.device)
        moved, on_gpu = scenes.to(gpu.device), plans.to(gpu.device)
        gpu.forget()
        chosen = made.choose(moved, on_gpu)
        assert chosen.device == gpu.device
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
    assert torch.equal(value(chosen), expected)


@pytest.fixture(scope="module")
def roll_outs(tmp_path_factory: pytest.TempPathFactory) -> KeptRollOuts:
    return kept(tmp_path_factory.mktemp("roll_outs") / KEPT_ROLL_OUTS)


def moved(stage: SelectorStage, accelerator: Accelerator) -> SelectorStage:
    """The same on the accelerator's device."""
    for network in (stage.policy, stage.selector):
        network.to(accelerator.device)
    return SelectorStage(
        stage.selector, stage.policy, stage.source, stage.pool, stage.config, accelerator, 7, stage.describe
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_waits_for_nothing(roll_outs: KeptRollOuts, accumulate: int) -> None:
    gpu, made = PretendedGPU(backward=True), make_stage(roll_outs)
    with training_on(gpu) as accelerator:
        stage = moved(made, accelerator)
        update = make_strategy(stage.module, replace(LOOP, accumulate=accumulate), accelerator)
        batches = stage.batches(0, lambda step, values: None, update.whole_weights)
        before = [value(parameter.detach().clone()) for parameter in stage.selector.parameters()]
        batch = next(batches)
        assert batch.plans.device == batch.scores.device == batch.context.device == gpu.device
        gpu.forget()
        info = update.step(batch, 1, 1e-3)
        assert not gpu.syncs and not gpu.pageable, (gpu.syncs, gpu.pageable)
    assert value(info["train/loss"]).isfinite()
    assert any(not torch.equal(value(new), old) for new, old in zip(stage.selector.parameters(), before))


def test_held_out_scenes_are_judged_on_a_gpu_as_on_the_cpu(roll_outs: KeptRollOuts) -> None:
    made = make_stage(roll_outs)
    expected = made.evaluate(0)
    with training_on(PretendedGPU()) as accelerator:
        found = moved(made, accelerator).evaluate(0)
    assert found == pytest.approx(expected, abs=1e-4) and "heldout/share" in found
