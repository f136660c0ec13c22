"""What the driving policy does on a GPU follows CUDA's device rules, waits for nothing and gives the CPU's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode

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
from dpvla.batch import DrivingBatch
from dpvla.diffusion import DPMSolver, VPLinearSchedule
from dpvla.diffusion.samplers.sde import SDESolver
from dpvla.models.policies import new_policy
from dpvla.models.sampling import Sampling
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.imitation import ImitationStage
from dpvla.training.strategies.registry import make_strategy
from navsim_bridge.agents.policy_agent import PolicyAgent
from navsim_bridge.data import images
from tests.dpvla.models.tiny_policies import REGRESSION
from tests.gpu.pretended import PretendedGPU, value
from tests.gpu.tiny_driving import make_policy, numbers, training_on
from tests.scenes_in_memory import prefer_left

LOOP = LoopConfig(ema_decay=0.9, trackers=())


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of another attention kernel."""
    torch.testing.assert_close(value(found), value(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["tiny", "tiny_florence"])
def test_encoding_stays_on_the_gpu_and_waits_for_nothing(encoder: str) -> None:
    policy, source = make_policy(encoder)
    batch = source.batch(range(4))
    with torch.no_grad():
        expected = policy.encode(batch)
        gpu = PretendedGPU()
        with gpu():
            policy.to(gpu.device)
            moved = batch.to(gpu.device)
            gpu.forget()
            context = policy.encode(moved)
            assert context.device == gpu.device
            assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
        assert_near(context.tokens, expected.tokens)


@pytest.mark.parametrize("omega", [0.0, 1.5, None])
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("clip_ratio", [None, 1.5])
def test_sampling_copies_the_noise_in_and_nothing_else(
    omega: float | None, adapters: bool, clip_ratio: float | None
) -> None:
    policy, source = make_policy(clip_ratio=clip_ratio)
    batch = source.batch(range(2))

    def sample(batch: DrivingBatch) -> Tensor:
        return policy.sample(
            policy.encode(batch), 3, omega, generator=numbers(), sampling=None if adapters else Sampling()
        )

    with torch.no_grad():
        expected = sample(batch)
        gpu = PretendedGPU()
        with gpu():
            policy.to(gpu.device)
            moved = batch.to(gpu.device)
            gpu.forget()
            plans = sample(moved)
            assert plans.device == gpu.device
            assert not gpu.syncs and gpu.copies_in == 1
        assert_near(plans, expected)


@pytest.mark.parametrize("num_steps", [2, 10])
def test_the_solver_sends_nothing_to_the_gpu_and_waits_for_nothing(num_steps: int) -> None:
    solver, noise = DPMSolver(VPLinearSchedule(), num_steps), torch.randn(2, 3, 8, 4, generator=numbers())
    expected = solver.sample(lambda x, t: torch.tanh(x) * t, noise)
    gpu = PretendedGPU()
    with gpu():
        moved = noise.to(gpu.device)
        gpu.forget()
        samples = solver.sample(lambda x, t: torch.tanh(x) * t, moved)
        assert samples.device == gpu.device
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
    assert torch.equal(value(samples), expected)


@pytest.mark.parametrize("kind", ["sde", "ddim"])
def test_a_stochastic_solver_sends_nothing_to_the_gpu_and_waits_for_nothing(kind: Literal["sde", "ddim"]) -> None:
    solver, noise = SDESolver(VPLinearSchedule(), 5, kind), torch.randn(2, 3, 6, 8, 4, generator=numbers())
    expected = solver.sample(lambda x, t: torch.tanh(x) * t, noise)
    gpu = PretendedGPU()
    with gpu():
        moved = noise.to(gpu.device)
        gpu.forget()
        chain = solver.sample(lambda x, t: torch.tanh(x) * t, moved)
        assert chain.states.device == chain.log_probs.device == gpu.device
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
    assert torch.equal(value(chain.states), expected.states)


def test_sampling_without_a_generator_draws_on_the_gpu() -> None:
    policy, source = make_policy()
    gpu = PretendedGPU()
    with gpu(), torch.no_grad():
        policy.to(gpu.device)
        context = policy.encode(source.batch(range(2)).to(gpu.device))
        gpu.forget()
        policy.sample(context, 3)
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs


@pytest.mark.parametrize("encoder, accumulate", [("tiny", 1), ("tiny", 2), ("tiny_florence", 1)])
def test_a_pretraining_update_waits_for_nothing(encoder: str, accumulate: int) -> None:
    policy, source = make_policy(encoder)
    gpu = PretendedGPU(backward=True)
    with training_on(gpu) as accelerator:
        config = ImitationConfig(batch_size=3, noise_draws=2, color_jitter=0.2)
        policy.to(gpu.device)
        stage = ImitationStage(policy, source, config, accelerator, 0, lambda directory: None)
        update = make_strategy(stage.module, replace(LOOP, accumulate=accumulate), accelerator)
        batch = next(stage.batches(0, lambda step, values: None, update.whole_weights))
        before = value(policy.head.output.weight.detach().clone())
        gpu.forget()
        info = update.step(batch, 1, 1e-3)
        assert not gpu.syncs and not gpu.pageable, (gpu.syncs, gpu.pageable)  # noise goes in, from pinned memory
        assert info["train/loss"].device == gpu.device
        assert update.not_finite() == []
    assert value(info["train/loss"]).isfinite() and value(info["train/grad_norm"]) > 0
    assert not torch.equal(value(policy.head.output.weight), before)


@pytest.mark.parametrize("name", REGRESSION)
def test_a_baseline_learns_and_plans_on_a_gpu_and_waits_for_nothing(name: str) -> None:
    torch.manual_seed(0)
    policy = new_policy(REGRESSION[name]()).eval()
    batch = policy.encoder.fake_batch(3, numbers())
    expected_loss = policy.imitation_loss(batch)[0]
    expected = policy.sample(policy.encode(batch), 2)
    gpu = PretendedGPU()
    with gpu():
        policy.to(gpu.device)
        moved = batch.to(gpu.device)
        gpu.forget()
        loss = policy.imitation_loss(moved)[0].detach()
        plans = policy.sample(policy.encode(moved), 2)
        assert loss.device == plans.device == gpu.device
        assert not gpu.syncs and gpu.copies_in <= 1, gpu.syncs  # noise without numbers
    assert_near(loss, expected_loss.detach())
    assert_near(plans, expected)


def test_imitation_evaluation_runs_on_a_gpu() -> None:
    policy, source = make_policy()
    found = {}
    for gpu in (None, PretendedGPU()):
        if gpu is None:
            accelerator = Accelerator(cpu=True)
            stage = ImitationStage(policy, source, ImitationConfig(), accelerator, 0, print, source, prefer_left)
            found["cpu"] = stage.evaluate(0)
            continue
        with training_on(gpu) as accelerator:
            policy.to(gpu.device)
            stage = ImitationStage(policy, source, ImitationConfig(), accelerator, 0, print, source, prefer_left)
            found["gpu"] = stage.evaluate(0)
    assert found["gpu"] == pytest.approx(found["cpu"], rel=1e-4)


@pytest.mark.parametrize(
    "algorithm_config, accumulate",
    [
        (DipoleConfig(), 1),
        (DipoleConfig(anchor="behavior"), 1),
        (DipoleConfig(), 2),
        (WeightedRegressionConfig(), 1),
        (CFGRLConfig(), 1),
        (BestOfGroupConfig(), 1),
        (GRPOConfig(), 1),
        (DPPOConfig(num_steps=3, steps_per_update=1, baseline="critic"), 2),
    ],
)
def test_a_cycle_runs_on_a_gpu_and_its_update_waits_for_nothing(
    algorithm_config: AlgorithmConfig, accumulate: int, tmp_path: Path
) -> None:
    algorithm = make_algorithm(algorithm_config)
    policy, source = make_policy(adapters=algorithm.adapters)
    gpu = PretendedGPU(backward=True)
    config = RolloutConfig(group_size=3, batch_size=2, scenes_per_call=4, epochs_per_cycle=1)
    with training_on(gpu) as accelerator:
        policy.to(gpu.device)
        stage = RolloutStage(
            policy, algorithm, source, prefer_left, config, accelerator, 0, tmp_path, lambda directory, cycles: None
        )
        update = make_strategy(stage.module, replace(LOOP, ema_decay=0.0, accumulate=accumulate), accelerator)
        logged: dict[str, float] = {}
        batch = next(stage.batches(0, lambda step, values: logged.update(values), update.whole_weights))
        assert logged["rollout/score"] > 0
        assert batch.plans.device == batch.context.device == gpu.device
        assert {held.device for held in (*batch.targets.values(), *batch.roll_outs.values())} == {gpu.device}
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        before = [value(parameter.detach().clone()) for parameter in trained]
        gpu.forget()
        info = update.step(batch, 1, 1e-3)
        assert not gpu.syncs and not gpu.pageable, (gpu.syncs, gpu.pageable)  # noise goes in, from pinned memory
    assert value(info["train/loss"]).isfinite()
    moved = [not torch.equal(value(new), old) for new, old in zip(trained, before, strict=True)]
    assert all(moved[: len(policy.adapter_parameters())]) and moved[-1]  # of a new critic, the last layer alone


def test_the_agent_plans_on_a_gpu_what_it_plans_on_the_cpu() -> None:
    policy, source = make_policy()
    agent = PolicyAgent(policy, "nowhere", omega=1.0).proposing_each([0.0, 1.0], samples=2)
    expected = agent._sample(source.batch(range(3)), agent.sources)  # type: ignore[arg-type]
    gpu = PretendedGPU()
    with gpu():
        policy.to(gpu.device)
        gpu.forget()
        plans = agent._sample(source.batch(range(3)), agent.sources)  # type: ignore[arg-type]
        assert sum(gpu.syncs.values()) == 1  # the plans come back, of all sources together
    assert plans.shape == (3, 4, 8, 3)
    assert plans == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [(96, 48), (48, 48)])
def test_jpegs_decoded_on_the_gpu_stay_there_and_are_those_of_the_cpu(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for nvJPEG itself, which torchvision's decoder stands in for here."""
    paths = []
    for number in range(3):
        pixels = torch.randint(0, 256, (9, 16, 3), generator=numbers(), dtype=torch.uint8).numpy() // (number + 1)
        paths.append(tmp_path / f"{number}.jpg")
        Image.fromarray(pixels).resize((192, 108), Image.Resampling.BICUBIC).save(paths[-1])
    expected = images.read_images(paths, size)
    decode, gpu = images.decode_jpeg, PretendedGPU()

    def nvjpeg(contents: list[Tensor], mode: ImageReadMode, device: torch.device) -> list[Tensor]:
        return [decoded.to(device) for decoded in ready]

    ready = [decode(torch.from_numpy(np.fromfile(path, np.uint8)), mode=ImageReadMode.RGB) for path in paths]
    monkeypatch.setattr(images, "decode_jpeg", nvjpeg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with gpu():
        gpu.forget()
        found = images.read_images_on_gpu(paths, size, gpu.device)
        assert found.device == gpu.device and found.dtype == torch.uint8
        assert not gpu.syncs and gpu.copies_in == len(paths)
    assert (value(found).int() - torch.from_numpy(expected).int()).abs().max() <= 2


def test_the_rules_are_cudas() -> None:
    gpu = PretendedGPU()
    with gpu():
        x = torch.ones(2, 1, 1, device=gpu.device)
        assert (x * torch.tensor(2.0)).device == gpu.device
        with pytest.raises(Exception, match=r"same device|different devices"):  # torch 2.14, 2.10
            x * torch.ones(1, 1, 1)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, device=gpu.device, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        x.sum().item()
        assert gpu.syncs["aten._local_scalar_dense.default"] == 1
