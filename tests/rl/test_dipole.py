"""Weights and advantages of DIPOLE, and that one backward reaches both adapters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpvla.dipole import ADAPTERS, dichotomous_weights, dipole_loss, group_advantages
from dpvla.models import DPVLA, DPVLAConfig, SceneContext


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
        torch.nn.init.normal_(block.modulation.weight, std=0.05)  # type: ignore[union-attr]
    made.add_adapters(4, 4)
    made.freeze_base()
    return made


def scene(policy: DPVLA, count: int) -> SceneContext:
    tokens = torch.randn(count, 7, policy.encoder.token_width)
    command = torch.zeros(count, dtype=torch.long)
    return SceneContext(tokens, None, command, torch.randn(count, 4), torch.randn(count, 3, 3))


def loss_of(policy: DPVLA, context: SceneContext, advantages: Tensor, beta: float) -> Tensor:
    plans = torch.randn(len(context), advantages.shape[1], 8, 3, generator=torch.Generator().manual_seed(1))
    t, noise = policy.draw(*advantages.shape, generator=torch.Generator().manual_seed(2))
    return dipole_loss(policy, context, plans, advantages, t, noise, beta)[0]


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
