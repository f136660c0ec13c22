"""Recomputed and compiled layers learn what plain ones do, under the same names."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from dpvla.config import ConfigError
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.layers import repeated_layers
from dpvla.random_rows import RandomRows
from dpvla.training.strategies import layer_options
from dpvla.training.strategies.layer_options import apply_layer_options
from tests.dpvla.models.tiny_policies import CONFIGS
from tests.scenes_in_memory import ScenesInMemory


def learn(
    recompute: str, compiled: bool = False, model: str = "tiny_florence"
) -> tuple[Tensor, dict[str, Tensor], Counter[str]]:
    """Loss, gradients, and how often layers ran forward, by kind."""
    torch.manual_seed(0)
    policy = DPVLA.from_config(CONFIGS[model]())
    source = ScenesInMemory(3, policy.encoder.sensors)
    policy.plan_coding.fit(source.plans(), source.ego_status())
    for parameter in policy.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ran: Counter[str] = Counter()
    for layer in repeated_layers(policy):
        first = next(module for module in layer.modules() if isinstance(module, torch.nn.LayerNorm))
        first.register_forward_hook(partial(_count, ran, type(layer).__name__))
    apply_layer_options(policy, recompute, compiled)
    batch = replace(source.batch(range(3)), random=RandomRows.of(range(3), 1))
    loss, _ = policy.imitation_loss(batch, draws=2)
    loss.backward()
    return loss, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, ran


def _count(ran: Counter[str], kind: str, *_: object) -> None:
    ran[kind] += 1


def test_recomputed_layers_run_again_in_the_backward_pass_and_give_the_same_gradients() -> None:
    plain, gradients, once = learn("none")
    assert once["Block"] == 3 and once["BartEncoderLayer"] == 2 and once["Florence2VisionBlock"] == 5
    for part, twice in (
        ("head", {"Block"}),
        ("encoder", {"BartEncoderLayer", "Florence2VisionBlock"}),
        ("both", set(once)),
    ):
        loss, same, ran = learn(part)
        assert {kind for kind in ran if ran[kind] == 2 * once[kind]} == twice
        assert torch.equal(loss, plain) and same.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(same[name], gradient)


def test_compiled_layers_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_options, "BACKEND", "aot_eager")  # everything but the code that a compiler writes
    plain, gradients, _ = learn("none", model="tiny")
    torch._dynamo.reset()
    loss, same, _ = learn("head", compiled=True, model="tiny")
    torch.testing.assert_close(loss, plain)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6)


def test_an_encoder_without_layers_says_so() -> None:
    policy = DPVLA.from_config(DPVLAConfig.tiny())
    with pytest.raises(ConfigError, match=r"loop\.recompute both: the encoder names no repeated layers"):
        apply_layer_options(policy, "both", False)
