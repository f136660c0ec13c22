"""Weights and advantages of DIPOLE, and that one backward reaches both adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import ADAPTERS, Dipole, delta_squared
from dpvla.cli import parse
from dpvla.config import from_dict
from dpvla.diffusion.guidance import dichotomous_weights
from dpvla.layers.blocks import Block
from dpvla.models import DPVLA, DPVLAConfig, SceneContext
from dpvla.models.adapters import adapter_parameters
from dpvla.models.config import PlanCodingConfig
from tools.rl_finetune import FinetuneConfig


def test_advantages_have_zero_mean_and_unit_spread_in_every_group() -> None:
    rewards = torch.rand(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages, flat = group_advantages(rewards)
    torch.testing.assert_close(advantages.mean(-1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(advantages.std(-1, unbiased=False), torch.ones(5, dtype=torch.float64))
    assert not flat.any()


def test_a_group_without_spread_has_no_advantage_and_half_weights() -> None:
    advantages, flat = group_advantages(torch.tensor([[0.3, 0.3, 0.3], [0.0, 1.0, 0.5]]))
    assert flat.tolist() == [True, False]
    assert advantages[0].tolist() == [0, 0, 0]
    positive, negative = dichotomous_weights(advantages, beta=3.0)
    assert positive[0].tolist() == negative[0].tolist() == [0.5, 0.5, 0.5]


def test_advantages_do_not_change_when_rewards_are_scaled_or_moved() -> None:
    rewards = torch.rand(3, 6, dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards)[0], group_advantages(4 * rewards - 1)[0])


def test_a_reward_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        group_advantages(torch.tensor([[0.1, float("nan")]]))


def test_weights_sum_to_one_and_rise_with_the_advantage() -> None:
    positive, negative = dichotomous_weights(torch.linspace(-3, 3, 9), beta=2.0, shift=-1.0)
    torch.testing.assert_close(positive + negative, torch.ones(9))
    assert (positive.diff() > 0).all()
    assert float(positive[4]) == pytest.approx(1 / (1 + torch.e), abs=1e-6)  # sigmoid(k) at G = 0


@pytest.fixture(scope="module")
def policy() -> DPVLA:
    torch.manual_seed(0)
    made = DPVLA.from_config(DPVLAConfig.tiny())
    made.plan_coding.fit(torch.randn(32, 8, 3), torch.randn(32, 4))
    torch.nn.init.normal_(made.head.output.weight, std=0.1)  # a fresh head's output is zero whatever goes in
    for block in made.head.blocks:
        assert isinstance(block, Block)
        torch.nn.init.normal_(block.modulation.weight, std=0.05)
    made.add_adapters(ADAPTERS, 4, 4)
    made.freeze_encoder()
    return made


def scene(policy: DPVLA, count: int) -> SceneContext:
    tokens = torch.randn(count, 7, policy.encoder.token_width)
    command = torch.zeros(count, dtype=torch.long)
    return SceneContext(tokens, None, command, torch.randn(count, 4), torch.randn(count, 3, 3))


def loss_at(
    policy: DPVLA,
    context: SceneContext,
    plans: Tensor,
    advantages: Tensor,
    t: Tensor,
    noise: Tensor,
    beta: float,
    shift: float = 0.0,
    behavior: Tensor | None = None,
) -> Tensor:
    """DIPOLE's loss at given noise; ``behavior``: what the head that rolled out says of the noised plans."""

    class AtThisNoise(Dipole):
        def _behavior(self, *_: object) -> Tensor | None:
            return behavior

    batch = RolloutBatch(context, {"plans": plans}, {"advantages": advantages})
    with patch.object(policy, "draw", lambda *_: (t, noise)):
        return AtThisNoise(DipoleConfig(beta=beta, shift=shift)).loss(policy, batch)[0]


def loss_of(policy: DPVLA, context: SceneContext, advantages: Tensor, beta: float) -> Tensor:
    plans = torch.randn(len(context), advantages.shape[1], 8, 3, generator=torch.Generator().manual_seed(1))
    scenes, candidates = advantages.shape
    t, noise = policy.draw(scenes, candidates, torch.Generator().manual_seed(2))
    return loss_at(policy, context, plans, advantages, t, noise, beta)


def test_one_backward_gives_gradient_to_every_matrix_of_both_adapters(policy: DPVLA) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.normal_(std=0.05)  # B = 0 would hide the gradient of A
    policy.zero_grad()
    loss_of(policy, scene(policy, 3), torch.randn(3, 5), beta=1.0).backward()
    for parameter in policy.adapter_parameters():
        assert parameter.grad is not None
        for index, name in enumerate(ADAPTERS):
            assert float(parameter.grad[index].abs().sum()) > 0, name
    assert all(p.grad is None for p in policy.encoder.parameters())
    policy.zero_grad()


def test_equal_adapters_get_gradients_that_sum_to_plain_imitation(policy: DPVLA) -> None:
    """sigma + (1 - sigma) = 1: with equal policies the two losses together are the unweighted one."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter[0].normal_(std=0.05)
            parameter[1].copy_(parameter[0])
    context = scene(policy, 2)
    weighted = loss_of(policy, context, torch.randn(2, 4), beta=2.0)
    policy.zero_grad()
    weighted.backward()
    split = [p.grad.sum(0) for p in policy.adapter_parameters() if p.grad is not None]
    policy.zero_grad()
    (2 * loss_of(policy, context, torch.zeros(2, 4), beta=0.0)).backward()  # both weights are 1/2
    plain = [p.grad.sum(0) / 2 for p in policy.adapter_parameters() if p.grad is not None]
    for a, b in zip(split, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    policy.zero_grad()


def parts(policy: DPVLA, scenes: int, candidates: int) -> tuple[SceneContext, Tensor, Tensor, Tensor]:
    """Context, plans, noise levels and noise; the normalized plans are standard normal."""
    context = scene(policy, scenes)
    values = torch.randn(scenes, candidates, 8, policy.plan_coding.num_channels)
    t, noise = policy.draw(scenes, candidates)
    return context, policy.plan_coding.decode(values, context.ego_status), t, noise


def test_the_anchor_changes_the_gradient_as_its_formula_says(policy: DPVLA) -> None:
    """w (output - v) + c (v - v_b), summed over both adapters."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.normal_(std=0.05)
    context, plans, t, noise = parts(policy, 3, 4)
    advantages, drew = torch.randn(3, 4), torch.randn(3, 4, 8, policy.plan_coding.num_channels)
    policy.zero_grad()
    loss_at(policy, context, plans, advantages, t, noise, 2.0, 0.5, drew).backward()
    found = [p.grad.clone() for p in policy.adapter_parameters() if p.grad is not None]
    policy.zero_grad()
    output, target = policy.denoise_plans(context, plans, t, noise, ADAPTERS)
    factor = policy.loss_factor(t)[..., None, None]
    w = torch.stack(dichotomous_weights(advantages, 2.0, 0.5))[..., None, None]
    c = torch.stack(dichotomous_weights(torch.zeros(()), 2.0, 0.5)).view(2, 1, 1, 1, 1)
    gradient = 2 * factor * (w * (output - target) + c * (target - drew)) / drew.numel()
    output.backward(gradient.detach())
    for ours, expected in zip(found, policy.adapter_parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(ours, expected.grad, rtol=1e-4, atol=1e-6)
    policy.zero_grad()


def test_the_anchor_has_mean_zero_for_an_exact_denoiser_of_its_own_samples() -> None:
    """For standard normal plans the exact denoiser is v = 0; any other network's output is uncorrelated with v."""
    torch.manual_seed(6)
    config = replace(DPVLAConfig.tiny(), plan=PlanCodingConfig(channels="x_y_heading", baseline="none"))
    policy = DPVLA.from_config(config)
    policy.plan_coding.fit(0.1 * torch.randn(4096, 8, 3), torch.zeros(4096, 4))
    torch.nn.init.normal_(policy.head.output.weight, std=0.3)
    policy.add_adapters(ADAPTERS, 4, 4)
    with torch.no_grad():
        context, plans, t, noise = parts(policy, 64, 64)
        output, target = policy.denoise_plans(context, plans, t, noise, ADAPTERS)
        products = (output[0] * target).mean(dim=(-2, -1)).flatten()
        wrong = (output[0] * policy.plan_coding.encode(plans, context.ego_status)).mean(dim=(-2, -1)).flatten()
    error = float(products.std() / len(products) ** 0.5)
    assert abs(float(products.mean())) < 4 * error
    assert abs(float(wrong.mean())) > 10 * error  # the test could see a correlation


class OneNumberEach:
    """Stands in for a policy whose two outputs are two numbers, at any noised plan."""

    def __init__(self, target: Tensor) -> None:
        self.outputs, self._target = torch.zeros(2, dtype=torch.float64, requires_grad=True), target

    def draw(self, scenes: int, candidates: int) -> None: ...

    def denoise_plans(self, *_: object) -> tuple[Tensor, Tensor]:
        return self.outputs.view(2, 1, 1, 1, 1).expand(2, *self._target.shape), self._target

    def loss_factor(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@pytest.mark.parametrize("anchored", [False, True])
def test_where_the_losses_have_their_minimum_for_a_denoiser_that_is_not_exact(anchored: bool) -> None:
    """What the docstring of the loss states; with the term the two policies mix to the one that rolled out."""
    torch.manual_seed(8)
    target = 1.7 + torch.randn(5, 4, 8, 3, dtype=torch.float64)
    advantages = target.mean((-2, -1)) + torch.randn(5, 4, dtype=torch.float64)
    v_b, shift = 0.9, 0.4  # the behavior misses the mean of its own samples by delta
    policy = OneNumberEach(target)
    t = torch.ones(5, 4, dtype=torch.float64)
    drew = torch.full_like(target, v_b) if anchored else None
    nothing: Any = None
    loss = loss_at(policy, nothing, torch.zeros(5, 4), advantages, t, nothing, 2.0, shift, drew)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(loss, policy.outputs)
    w = torch.stack(dichotomous_weights(advantages, 2.0, shift))
    c = torch.stack(dichotomous_weights(torch.zeros((), dtype=torch.float64), 2.0, shift))
    mean = w.mean((1, 2))
    minimum = -slope / (2 * mean)  # of a parabola with this slope at 0
    v = target.mean((-2, -1))
    covariance, delta = (w * v).mean((1, 2)) - mean * v.mean(), v.mean() - v_b
    stated = v_b + covariance / mean + (1 - c / mean if anchored else 1) * delta
    torch.testing.assert_close(minimum, stated)
    mixed = float((mean * minimum).sum())
    assert mixed == pytest.approx(v_b if anchored else v_b + float(delta))


def test_delta_squared_is_that_of_a_known_delta_and_no_part_of_the_chance() -> None:
    """delta(t) grows with t; what samples miss by chance is 40 times as large, and its square is not counted."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(4000, 12, generator=generator)
    delta = (0.5 * t)[..., None, None].expand(-1, -1, 8, 3)
    missed = delta + 2 * torch.randn(delta.shape, generator=generator)
    products = torch.stack([delta_squared(*part) for part in zip(missed.split(100), t.split(100))])
    error = float(products.std() / len(products) ** 0.5)
    assert abs(float(products.mean()) - 0.25 / 3) < 4 * error < 0.02  # the mean of (0.5 t)^2
    shuffled = torch.randperm(12, generator=generator)
    torch.testing.assert_close(
        delta_squared(missed[:, shuffled], t[:, shuffled]), delta_squared(missed, t), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("missed", [[1.0, 2.0, 4.0], [-1.0, 2.0, -4.0]])
def test_delta_squared_multiplies_neighbors_in_noise(missed: list[float]) -> None:
    values = torch.tensor(missed).view(1, 3, 1, 1).expand(1, 3, 8, 3)
    low, middle, high = missed[0], missed[2], missed[1]  # by their noise levels
    expected = (low * middle + middle * high) / 2
    assert float(delta_squared(values, torch.tensor([[0.1, 0.9, 0.5]]))) == pytest.approx(expected)


def test_without_preference_a_policy_that_equals_the_behavior_stays_as_it_is(policy: DPVLA) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter[0].normal_(std=0.05)
            parameter[1].copy_(parameter[0])
    context, plans, t, noise = parts(policy, 2, 3)
    with torch.no_grad():
        behavior = policy.denoise_plans(context, plans, t, noise, ADAPTERS, policy.snapshot_head())[0][0]
    for given, moves in ((behavior, False), (None, True)):
        policy.zero_grad()
        loss_at(policy, context, plans, torch.zeros(2, 3), t, noise, 0.0, 0.0, given).backward()
        norm = sum(float(p.grad.norm()) for p in policy.adapter_parameters() if p.grad is not None)
        assert (norm > 1e-2) == moves and (norm < 1e-5) != moves
    policy.zero_grad()


def test_a_snapshot_keeps_its_adapters_and_shares_the_base(policy: DPVLA) -> None:
    head = policy.snapshot_head()
    before = [p.clone() for p in adapter_parameters(head)]
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.add_(1)
    for kept, now, moved in zip(before, adapter_parameters(head), policy.adapter_parameters(), strict=True):
        assert torch.equal(kept, now) and not now.requires_grad and not torch.equal(now, moved)
    assert head.input.weight is policy.head.input.weight


def test_the_anchor_is_read_by_its_former_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"algorithm": {"name": "dipole", "control_variate": True}}
    assert from_dict(FinetuneConfig, old, "run.yaml").algorithm == DipoleConfig(anchor="behavior")
    older = {"dipole": {"control_variate": False, "beta": 2.0}}
    assert from_dict(FinetuneConfig, older, "run.yaml").algorithm == DipoleConfig(beta=2.0)
    (tmp_path / "a.yaml").write_text("algorithm: {control_variate: true}")
    file = ["--config", str(tmp_path / "a.yaml")]
    for words, anchor in (
        ([], "behavior"),
        (["--algorithm.no-control-variate"], "none"),
        (["--algorithm.no_control_variate", "--algorithm.control_variate"], "behavior"),
        (["--dipole.no-control-variate"], "none"),
        (["--algorithm.anchor", "none"], "none"),
    ):
        assert parse(FinetuneConfig, [*file, *words]).algorithm == DipoleConfig(anchor=anchor), words  # type: ignore[arg-type]
    assert "--algorithm.no-control-variate is now --algorithm.anchor=none\n" in capsys.readouterr().err
    for value, said in (
        ("1", "algorithm.control_variate must be true or false, found 1"),
        ("true, anchor: none", "algorithm.control_variate and algorithm.anchor are the same; give algorithm.anchor al"),
    ):
        (tmp_path / "b.yaml").write_text(f"algorithm: {{control_variate: {value}}}")
        with pytest.raises(SystemExit):
            parse(FinetuneConfig, ["--config", str(tmp_path / "b.yaml")])
        assert said in capsys.readouterr().err
