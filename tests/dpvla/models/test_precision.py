"""Precision: bfloat16 close to float32, frozen weights held in bfloat16 exactly as autocast has them, TF32 if asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import ADAPTERS, Dipole
from dpvla.models import DPVLA
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.training.config import LoopConfig
from dpvla.training.launch import make_accelerator
from navsim_bridge.agents.policy_agent import load_policy
from tests.dpvla.models.tiny_policies import CONFIGS, make_batch, make_policy, randomize_adapters
from tests.gpu.pretended import PretendedGPU
from tests.scenes_in_memory import ScenesInMemory, prefer_left

BF16_TOLERANCE = 0.1
"""Plans in bf16 differ from float32's by less than this share of the plans' own spread (README, "Precision")."""


def with_adapters(name: str, precision: str) -> DPVLA:
    policy = make_policy(CONFIGS[name]())
    policy.add_adapters(ADAPTERS, 4)
    randomize_adapters(policy)
    policy.precision = precision  # type: ignore[assignment]
    return policy


def plans_of(policy: DPVLA) -> Tensor:
    with torch.no_grad():
        return policy.sample(policy.encode(make_batch(policy.config)), 16, generator=torch.Generator().manual_seed(3))


def loss_and_gradients(policy: DPVLA) -> list[Tensor]:
    batch = make_batch(policy.config)
    assert batch.plan is not None
    plans = batch.plan[:, None] + torch.randn(4, 3, 8, 3, generator=torch.Generator().manual_seed(1))
    policy.freeze_encoder()
    torch.manual_seed(5)
    with policy.autocast():
        rolled_out = RolloutBatch(
            policy.encode(batch), {"plans": plans}, {"advantages": torch.tensor([[1.0, 0, -1]] * 4)}
        )
        loss, _ = Dipole(DipoleConfig()).loss(policy, rolled_out)
    loss.backward()
    gradients = [parameter.grad for parameter in policy.adapter_parameters()]
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("name", CONFIGS)
def test_plans_in_bf16_are_those_of_float32_within_the_stated_tolerance(name: str) -> None:
    exact, rounded = (plans_of(with_adapters(name, precision)) for precision in ("no", "bf16"))
    spread = exact.std(dim=1).norm(dim=-1).mean()
    off = (rounded - exact).norm(dim=-1)
    assert 0 < off.mean() < BF16_TOLERANCE * spread


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_weights_in_bf16_give_what_autocast_gives_bit_for_bit(name: str) -> None:
    whole, held = with_adapters(name, "bf16"), with_adapters(name, "bf16")
    held.freeze_encoder()
    held.hold_frozen()
    in_bf16 = sum(p.numel() for p in held.parameters() if p.dtype == torch.bfloat16)
    assert in_bf16 > 0.7 * sum(p.numel() for p in held.parameters())
    assert {parameter.dtype for parameter in held.adapter_parameters()} == {torch.float32}
    assert torch.equal(plans_of(held), plans_of(whole))
    found = loss_and_gradients(held)
    assert len(found) == 1 + len(held.adapter_parameters())
    assert all(map(torch.equal, found, loss_and_gradients(whole)))


@pytest.mark.parametrize("precision", ["no", "tf32"])
def test_without_autocast_nothing_is_rounded(precision: str) -> None:
    policy = with_adapters("tiny", precision)
    policy.freeze_encoder()
    policy.hold_frozen()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_what_is_trained_is_never_rounded() -> None:
    policy = make_policy(CONFIGS["tiny"]())
    policy.precision = "bf16"
    policy.freeze_encoder()  # without adapters the whole head is trained
    policy.hold_frozen()
    assert {parameter.dtype for parameter in policy.head.parameters()} == {torch.float32}
    assert torch.bfloat16 in {parameter.dtype for parameter in policy.encoder.parameters()}


def test_it_runs_on_a_gpu_and_waits_for_nothing() -> None:
    policy = with_adapters("tiny_florence", "bf16")
    policy.freeze_encoder()
    policy.hold_frozen()
    gpu = PretendedGPU()
    with gpu(), torch.no_grad():
        policy.to(gpu.device)
        batch = make_batch(policy.config, 2).to(gpu.device)
        gpu.forget()
        context = policy.encode(batch)
        plans = policy.sample(context, 3)
        targets = {"advantages": torch.ones(2, 3, device=gpu.device)}
        with policy.autocast():
            loss, _ = Dipole(DipoleConfig()).loss(policy, RolloutBatch(context, {"plans": plans}, targets))
        assert not gpu.syncs, gpu.syncs
    assert plans.device == loss.device == gpu.device and loss.dtype == plans.dtype == torch.float32


@pytest.mark.parametrize("linked", [True, False])
def test_checkpoints_of_a_bf16_run_hold_the_model_in_float32(linked: bool, tmp_path: Path) -> None:
    policy = with_adapters("tiny", "bf16")
    policy.save_pretrained(tmp_path / "start")
    source = ScenesInMemory(2, policy.config.encoder.sensors)
    stage = RolloutStage(
        policy,
        Dipole(DipoleConfig()),
        source,
        prefer_left,
        RolloutConfig(group_size=3, batch_size=2),
        Accelerator(cpu=True),
        0,
        tmp_path / "start" if linked else None,
        lambda directory, cycles: None,
    )
    assert (torch.bfloat16 in {p.dtype for p in policy.parameters()}) == linked
    stage.save(tmp_path / "run/checkpoints/step_00000001")
    saved = tmp_path / "run/checkpoints/step_00000001/model"
    start = load_file(tmp_path / "start/model.safetensors")
    assert all(torch.equal(tensor, start[name]) for name, tensor in load_file(saved / "model.safetensors").items())
    assert json.loads((saved / "config.json").read_text())["values"]["float32"] > 100_000


def test_a_file_says_in_what_its_numbers_are(tmp_path: Path) -> None:
    policy = with_adapters("tiny", "bf16")
    policy.freeze_encoder()
    policy.hold_frozen()
    policy.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())["values"]
    assert values["bfloat16"] > values["float32"] > 0
    loaded = DPVLA.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}  # ready to be trained
    loaded.load_state_dict(policy.state_dict(), strict=False)


def test_an_agent_holds_its_weights_in_the_precision_of_training(tmp_path: Path) -> None:
    policy = make_policy(CONFIGS["tiny"]())
    policy.precision = "bf16"
    policy.save_pretrained(tmp_path)
    agent = load_policy(tmp_path)
    assert isinstance(agent, DPVLA)
    assert torch.bfloat16 in {parameter.dtype for parameter in agent.parameters()}
    assert torch.equal(plans_of(agent), plans_of(policy))


def test_tf32_is_what_was_asked_for_and_ends_with_it(tmp_path: Path) -> None:
    policy = make_policy(CONFIGS["tiny"]())
    policy.precision = "tf32"
    before = torch.backends.cudnn.allow_tf32
    with policy.autocast():
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32 == before
    policy.precision = "no"  # convolutions, too, which torch would compute in TF32 by itself
    with policy.autocast():
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    policy.precision = "tf32"
    policy.save_pretrained(tmp_path)
    assert DPVLA.from_pretrained(tmp_path).precision == "tf32"
    try:
        accelerator = make_accelerator(LoopConfig(precision="tf32", trackers=()), tmp_path)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        assert accelerator.mixed_precision == "no"
    finally:
        make_accelerator(LoopConfig(trackers=()), tmp_path)
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
