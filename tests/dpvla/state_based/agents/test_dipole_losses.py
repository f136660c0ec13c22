"""DIPOLE's loss and actions in every reading of the paper, against the same formula in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpvla.state_based.agents.dipole import Dipole, DipoleAgentConfig
from dpvla.state_based.agents.values import td_loss
from dpvla.state_based.networks.stacked import StackedMLP
from tests.dpvla.state_based.agents.formulas import SMALL, Rows, flow_euler, qs, small_agent, total, value_parts
from tests.dpvla.state_based.agents.plain_networks import (
    Array,
    KnownDraws,
    mlp,
    plain,
    shake,
    small_batch,
)

PAPER = {"activation": "tanh", "omega": 1.0, "next_omega": None, "td_targets": "one", "clip_advantage": False,
         "clip_choice": False, "next_choice": "target"}  # fmt: skip
DIPOLES = {
    "release": {},
    "release, mean for V": {"clip_q": False, "omega": 3.0, "next_omega": 0.5},
    "release, best of several": {"clip_q": False, "next_action": "best_of_n", "next_samples": 4, "samples": 2},
    "release, dataset action": {"next_action": "dataset"},
    "value target": PAPER | {"q_target": "value"},
    "policy target": PAPER,
    "best of n": PAPER | {"next_action": "best_of_n", "samples": 3},
    "dataset action": PAPER | {"next_action": "dataset"},
    "mean of Qs, online advantage": PAPER | {"clip_q": False, "advantage_from": "online", "omega": 2.5},
}


@pytest.mark.parametrize("changes", DIPOLES.values(), ids=DIPOLES.keys())
def test_dipole_loss_is_the_formula_for_every_reading_of_the_paper(changes: dict[str, Any]) -> None:
    config = DipoleAgentConfig(beta=1.5, shift=-0.5, flow_steps=3, expectile=0.7, **(SMALL | changes))
    agent: Dipole = small_agent(config)
    batch, draws = small_batch(), KnownDraws()
    rows, found = Rows.of(batch), total(agent, batch, draws)
    values, name = agent.values, config.activation

    def one(q: Array, clip: bool = config.clip_q) -> Array:
        return np.minimum(*q) if clip else (q[0] + q[1]) / 2

    def guided(s: Array, x: Array, t: Array) -> Array:
        good, bad = (mlp(agent.policies, s, x, t, name=name, member=m) for m in (0, 1))
        omega = config.omega if config.next_omega is None else config.next_omega
        return (1 + omega) * good - omega * bad

    next_value, drawn = None, 0
    if config.q_target == "policy" and config.next_action == "dataset":
        next_value = qs(values.critic.target, rows.following, rows.next_a, name)
        v = mlp(values.value, rows.following, name=name, norm="after")[:, 0]
        next_value = np.where(rows.known == 1, next_value, v)
    elif config.q_target == "policy":
        count = (config.next_samples or config.samples) if config.next_action == "best_of_n" else 1
        s, drawn = np.repeat(rows.following, count, 0), 1
        actions = flow_euler(lambda x, t: guided(s, x, t), draws.normals[0], 3)
        judge = values.critic.target if config.next_choice == "target" else values.critic.online
        best = one(qs(judge, s, actions, name), config.clip_q or config.clip_choice).reshape(-1, count).argmax(-1)
        next_value = qs(values.critic.target, s, actions, name).reshape(2, -1, count)[:, np.arange(len(best)), best]
    if next_value is not None and config.td_targets == "one":
        next_value = one(next_value)

    expected, _, _, v = value_parts(values, rows, next_value)
    judge = values.critic.target if config.advantage_from == "target" else values.critic.online
    advantage = one(qs(judge, rows.s, rows.a, name), config.clip_q or config.clip_advantage) - v
    good = 1 / (1 + np.exp(-(1.5 * advantage - 0.5)))
    noise, t = draws.normals[drawn], draws.uniforms[0]
    for weight, member in ((good, 0), (1 - good, 1)):
        velocity = mlp(agent.policies, rows.s, (1 - t) * noise + t * rows.a, t, name=name, member=member)
        expected += (weight * ((velocity - (rows.a - noise)) ** 2).mean(-1)).mean()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("clip_choice", [False, True])
def test_dipole_acts_by_the_smaller_q_or_as_clip_q_has_it(clip_choice: bool) -> None:
    agent: Dipole = small_agent(
        DipoleAgentConfig(
            samples=4, flow_steps=2, omega=1.5, next_omega=0.0, clip_q=False, clip_choice=clip_choice, **SMALL
        )
    )
    batch, draws = small_batch(), KnownDraws(7)
    acted = plain(agent.act(batch.observations, draws))[0]
    s = np.repeat(Rows.of(batch).s, 4, 0)

    def guided(x: Array, t: Array) -> Array:
        good, bad = (mlp(agent.policies, s, x, t, name="gelu", member=m) for m in (0, 1))
        return 2.5 * good - 1.5 * bad

    samples = flow_euler(guided, draws.normals[0], 2)
    both = qs(agent.values.critic.online, s, samples, "gelu")
    choices = [q.reshape(-1, 4).argmax(-1) for q in (both.mean(0), both.min(0))]
    assert (choices[0] != choices[1]).any()
    assert np.allclose(acted, samples.reshape(-1, 4, 2)[np.arange(6), choices[clip_choice]])


@pytest.mark.parametrize("layer_norm", ["none", "after", "before"])
def test_one_member_of_a_stack_alone_is_the_same_as_among_others(layer_norm: Any) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    stack = StackedMLP(generators, 2, 3, (5, 4), 2, "gelu", layer_norm).double()
    shake(stack)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    for member in (0, 1):
        assert torch.allclose(stack(x, member=member), stack(x)[:, member : member + 1])


def test_both_qs_of_the_release_come_to_the_mean_of_both_targets() -> None:
    q = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[[1.0, 4.0, -2.0], [3.0, 0.0, -2.0]]], dtype=torch.float64)
    loss = td_loss(q, targets)
    assert float(loss.detach()) == pytest.approx((1 + 9 + 16 + 0 + 4 + 4) / 3)
    loss.sum().backward()
    assert q.grad is not None
    assert torch.allclose(q.grad, (-2 * targets.mean(1, keepdim=True) / 3).expand(1, 2, 3))
    assert float(td_loss(q, targets[:, 0]).detach()) == pytest.approx(2 * (1 + 16 + 4) / 3)


def test_dipoles_two_gradients_add_up_to_plain_imitation_when_the_networks_are_equal() -> None:
    agent: Dipole = small_agent(DipoleAgentConfig(beta=2.0, shift=-1.0, **SMALL))
    for parameter in agent.policies.parameters():
        parameter.data[1] = parameter.data[0]
    batch = small_batch()
    advantage = torch.randn(1, 6, dtype=torch.float64)
    agent.policy_loss(batch, advantage, KnownDraws())[0].sum().backward()
    weighted = [parameter.grad.sum(0) for parameter in agent.policies.parameters() if parameter.grad is not None]
    agent.zero_grad()
    never = torch.full_like(advantage, -1e9)  # weight 0 for the positive policy, 1 for the negative one
    agent.policy_loss(batch, never, KnownDraws())[0].sum().backward()
    plain_gradients = [p.grad[1] for p in agent.policies.parameters() if p.grad is not None]
    assert len(weighted) == len(plain_gradients) == 6
    assert all(torch.allclose(a, b) for a, b in zip(weighted, plain_gradients))
    assert all(not p.grad[0].any() for p in agent.policies.parameters() if p.grad is not None)
