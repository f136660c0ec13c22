"""With precision bf16 all that runs the networks runs them in bfloat16; plans and solver stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.config import Anchor, DipoleConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.models import DPVLA
from dpvla.models.plan_coding import PlanCoding
from dpvla.rl.rollout import collect
from dpvla.rl.token_cache import TokenCache, chunks
from dpvla.training.config import ImitationConfig
from dpvla.training.imitation import ImitationStage
from navsim_bridge.agents.policy_agent import PolicyAgent
from tests.gpu.pretended import PretendedGPU
from tests.gpu.tiny_driving import make_policy, numbers, training_on
from tests.scenes_in_memory import ScenesInMemory, prefer_left


class Seen:
    """What the networks computed in, and what plans were written and read in."""

    def __init__(self) -> None:
        self.encoder: set[torch.dtype] = set()
        self.head: set[torch.dtype] = set()
        self.solver: set[torch.dtype] = set()
        self.plans: set[torch.dtype] = set()


@contextmanager
def watching(policy: DPVLA) -> Iterator[Seen]:
    seen = Seen()

    def note(kinds: set[torch.dtype]) -> Callable[..., None]:
        return lambda module, inputs, output: kinds.add(output.dtype)

    handles = [
        module.register_forward_hook(note(kinds))
        for kinds, part in ((seen.encoder, policy.encoder), (seen.head, policy.head))
        for module in part.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    denoise, encode, decode, step = policy.head.denoise, PlanCoding.encode, PlanCoding.decode, policy.solver.sample

    def denoised(x_t: Tensor, *rest: Any) -> Tensor:
        seen.solver.add(x_t.dtype)
        return denoise(x_t, *rest)

    def coded(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: PlanCoding, values: Tensor, status: Tensor) -> Tensor:
            result = original(self, values, status)
            seen.plans.update((values.dtype, status.dtype, result.dtype))
            return result

        return call

    def solved(*arguments: Any) -> Tensor:
        result = step(*arguments)
        seen.solver.add(result.dtype)
        return result

    with (
        patch.object(policy.head, "denoise", denoised),
        patch.object(policy.solver, "sample", solved),
        patch.object(PlanCoding, "encode", coded(encode)),
        patch.object(PlanCoding, "decode", coded(decode)),
    ):
        yield seen
    for handle in handles:
        handle.remove()


def encode_and_sample(policy: DPVLA, source: ScenesInMemory, accelerator: Accelerator) -> Tensor:
    context = policy.encode(source.batch(range(2)).to(accelerator.device))
    return policy.sample(context, 2, generator=numbers())


def roll_out(policy: DPVLA, source: ScenesInMemory, accelerator: Accelerator) -> Tensor:
    options: dict[str, Any] = {"cycle": 0, "group_size": 2, "seed": 0, "progress": False}
    assert list(chunks(3, 2)) == [range(0, 2), range(2, 3)]
    tokens = TokenCache(policy, source, torch.arange(3), accelerator, 2, limit_gb=1.0)
    return collect(Dipole(DipoleConfig()), policy, tokens, source, prefer_left, **options).roll_outs["plans"]


def evaluate(policy: DPVLA, source: ScenesInMemory, accelerator: Accelerator) -> None:
    config = ImitationConfig(validation_scenes=2)
    assert ImitationStage(policy, source, config, accelerator, 0, print, source, prefer_left).evaluate(0)


def plan_as_agent(policy: DPVLA, source: ScenesInMemory, accelerator: Accelerator) -> None:
    agent = PolicyAgent(policy, "nowhere")
    agent._sample(source.batch(range(2)), agent.sources)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "run, encoder",
    [
        (encode_and_sample, "tiny"),
        (encode_and_sample, "tiny_florence"),
        (roll_out, "tiny"),
        (evaluate, "tiny"),
        (plan_as_agent, "tiny"),
    ],
)
def test_networks_compute_in_the_precision_of_training_and_plans_in_float32(
    run: Callable[..., Tensor | None], encoder: str
) -> None:
    policy, source = make_policy(encoder)
    policy.precision = "bf16"
    gpu = PretendedGPU()
    with training_on(gpu) as accelerator, torch.no_grad():
        policy.to(gpu.device)
        with watching(policy) as seen:
            plans = run(policy, source, accelerator)
    assert seen.encoder == seen.head == {torch.bfloat16}
    assert seen.solver == seen.plans == {torch.float32}
    assert plans is None or plans.dtype == torch.float32


def test_without_it_everything_is_float32() -> None:
    policy, source = make_policy()
    gpu = PretendedGPU()
    with training_on(gpu) as accelerator, torch.no_grad():
        policy.to(gpu.device)
        with watching(policy) as seen:
            encode_and_sample(policy, source, accelerator)
    assert seen.encoder == seen.head == seen.solver == seen.plans == {torch.float32}


@pytest.mark.parametrize("anchor", ["none", "behavior"])
def test_losses_are_float32_under_autocast(anchor: Anchor) -> None:
    policy, source = make_policy()
    policy.precision = "bf16"
    gpu = PretendedGPU()
    with gpu(), torch.no_grad():
        policy.to(gpu.device)
        batch = source.batch(range(2)).to(gpu.device)
        with watching(policy) as seen, policy.autocast():
            imitation, _ = policy.imitation_loss(batch, draws=2)
            assert batch.plan is not None
            plans = batch.plan[:, None].expand(-1, 3, -1, -1)
            targets = {"advantages": torch.ones(2, 3, device=gpu.device)}
            algorithm = Dipole(DipoleConfig(anchor=anchor))
            behavior = policy.snapshot_head() if algorithm.needs_behavior else None
            rolled_out = RolloutBatch(policy.encode(batch), {"plans": plans}, targets, behavior)
            dipole, _ = algorithm.loss(policy, rolled_out)
    assert imitation.dtype == dipole.dtype == torch.float32
    assert seen.encoder == seen.head == {torch.bfloat16}
    assert seen.plans == {torch.float32}
