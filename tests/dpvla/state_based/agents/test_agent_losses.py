"""Each agent's loss on fixed tensors against the same formula computed by hand in NumPy, network by network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.cfgrl import CFGRL, CFGRLConfig
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.dipole import Dipole, DipoleAgentConfig
from dpvla.state_based.agents.flow_bc import FlowBC, FlowBCConfig
from dpvla.state_based.agents.fql import FQL, FQLConfig
from dpvla.state_based.agents.idql import IDQL, IDQLConfig, vp_betas
from dpvla.state_based.agents.ifql import IFQL, IFQLConfig
from dpvla.state_based.agents.iql import IQL, IQLConfig
from dpvla.state_based.agents.rebrac import ReBRAC, ReBRACConfig
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.agents.values import ImplicitQ, bootstrapped, expectile_loss, td_loss
from dpvla.state_based.data.batch import Batch
from dpvla.state_based.networks.stacked import StackedMLP
from tests.dpvla.state_based.agent_of import agent_of, config_of
from tests.dpvla.state_based.agents.plain_networks import (
    Array,
    KnownDraws,
    activation,
    layer_norm,
    linear,
    mlp,
    plain,
    shake,
    small_batch,
)

SMALL: dict[str, Any] = {"hidden": (5, 4), "batch_size": 6, "discount": 0.9}


def small_agent(config: AgentConfig) -> Any:
    agent = agent_of(config, 3, 2, [0]).double()
    shake(agent)
    return agent


@dataclass
class Rows:
    """A batch of one seed as NumPy arrays (row, ·)."""

    s: Array
    a: Array
    r: Array
    following: Array
    mask: Array
    next_a: Array
    known: Array

    @staticmethod
    def of(batch: Batch) -> Rows:
        assert batch.next_actions is not None and batch.next_action_known is not None
        return Rows(*(plain(x)[0] for x in (batch.observations, batch.actions, batch.rewards, batch.next_observations,
                                            batch.masks, batch.next_actions, batch.next_action_known)))  # fmt: skip


def qs(stack: nn.Module, s: Array, a: Array, name: str, norm: str = "after") -> Array:
    """(2, row)."""
    return np.stack([mlp(stack, s, a, name=name, norm=norm, member=m)[:, 0] for m in (0, 1)])  # type: ignore[arg-type]


def expectile(d: Array, tau: float) -> Array:
    return np.where(d >= 0, tau, 1 - tau) * d**2


def value_parts(values: ImplicitQ, rows: Rows, next_value: Array | None = None) -> tuple[float, Array, Array, Array]:
    """Loss of V and both Qs, and target Q, online Q and V on the rows; ``next_value`` (row,), or (number, row)."""
    config = values.config
    name, norm = config.activation, config.value_norm
    one = (lambda q: q.min(0)) if config.clip_q else (lambda q: q.mean(0))
    target_q = one(qs(values.critic.target, rows.s, rows.a, name, norm))
    v = mlp(values.value, rows.s, name=name, norm=norm)[:, 0]
    if next_value is None:
        next_value = mlp(values.value, rows.following, name=name, norm=norm)[:, 0]
    y = rows.r + config.discount * rows.mask * next_value
    q = qs(values.critic.online, rows.s, rows.a, name, norm)
    loss = expectile(target_q - v, config.expectile).mean() + ((q[:, None] - np.atleast_2d(y)) ** 2).sum(0).mean()
    return float(loss), target_q, one(q), v


def flow_euler(velocity: Any, noise: Array, steps: int) -> Array:
    x = noise
    for step in range(steps):
        x = x + velocity(x, np.full((len(x), 1), step / steps)) / steps
    return np.clip(x, -1, 1)


def total(agent: Agent, batch: Batch, draws: KnownDraws, phase: int = 0) -> float:
    loss, info = agent.loss(batch, draws, phase)
    assert loss.shape == (1,) and all(value.shape == (1,) and not value.requires_grad for value in info.values())
    return float(loss.detach())


def test_iql_loss_is_the_formula() -> None:
    agent: IQL = small_agent(IQLConfig(alpha=3.0, expectile=0.8, learned_std=True, **SMALL))
    batch = small_batch()
    rows = Rows.of(batch)
    value_loss, _, q, v = value_parts(agent.values, rows)
    weight = np.minimum(np.exp(3.0 * (q - v)), 100)
    mean = mlp(agent.policy, rows.s, name="gelu")
    std = np.exp(plain(agent.log_std)[0, 0])
    log_likelihood = (-0.5 * ((rows.a - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    assert (weight == 100).any() and (weight < 100).any()
    assert total(agent, batch, KnownDraws()) == pytest.approx(value_loss - (weight * log_likelihood).mean())
    assert np.allclose(plain(agent.act(batch.observations, KnownDraws(), 0.0))[0], np.clip(mean, -1, 1))


def test_ifql_loss_is_iqls_values_and_plain_flow_matching_and_it_takes_the_sample_of_largest_q() -> None:
    agent: IFQL = small_agent(IFQLConfig(samples=4, flow_steps=3, clip_q=False, **SMALL))
    batch, draws = small_batch(), KnownDraws()
    rows, found = Rows.of(batch), total(agent, small_batch(), draws)
    noise, t = draws.normals[0], draws.uniforms[0]
    velocity = mlp(agent.policy.network, rows.s, (1 - t) * noise + t * rows.a, t, name="gelu")
    expected = value_parts(agent.values, rows)[0] + ((velocity - (rows.a - noise)) ** 2).mean()
    assert found == pytest.approx(expected)

    draws = KnownDraws(7)
    acted = plain(agent.act(batch.observations, draws))[0]
    s = np.repeat(rows.s, 4, 0)
    samples = flow_euler(lambda x, t: mlp(agent.policy.network, s, x, t, name="gelu"), draws.normals[0], 3)
    best = qs(agent.values.critic.online, s, samples, "gelu").mean(0).reshape(-1, 4).argmax(-1)
    assert np.allclose(acted, samples.reshape(-1, 4, 2)[np.arange(6), best])


def test_flow_cloning_ignores_rewards_and_ends() -> None:
    agent: FlowBC = small_agent(FlowBCConfig(**SMALL))
    batch, draws = small_batch(), KnownDraws()
    rows, found = Rows.of(batch), total(agent, batch, draws)
    noise, t = draws.normals[0], draws.uniforms[0]
    velocity = mlp(agent.policy.network, rows.s, (1 - t) * noise + t * rows.a, t, name="gelu")
    assert found == pytest.approx(((velocity - (rows.a - noise)) ** 2).mean())
    assert found == total(agent, replace(batch, rewards=batch.rewards + 5, masks=0 * batch.masks), KnownDraws())


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


@pytest.mark.parametrize("scheme", ["dropout", "both"])
def test_cfgrl_loss_is_the_formula(scheme: Any) -> None:
    time_size = 4 if scheme == "both" else 0
    config = CFGRLConfig(scheme=scheme, null_share=0.4, time_size=time_size, time_grid=scheme == "both", flow_steps=3,
                         advantage_from="online" if scheme == "dropout" else "target", omega=0.5,
                         activation="mish", value_norm="before", policy_norm="before_but_last", **SMALL)  # fmt: skip
    agent: CFGRL = small_agent(config)
    batch, draws = small_batch(), KnownDraws(3)
    rows = Rows.of(batch)
    expected, target_q, online_q, v = value_parts(agent.values, rows)
    advantage = (online_q if scheme == "dropout" else target_q) - v
    agent.config = replace(config, threshold=float(np.sort(advantage)[2:4].mean()))
    positive = advantage >= agent.config.threshold
    assert positive.sum() == 3
    found = total(agent, batch, draws)
    noise, t = draws.normals[0], draws.uniforms[0]
    if scheme == "both":
        t = np.floor(t * 4) / 3

    def features(t: Array) -> Array:
        return t if scheme == "dropout" else np.concatenate([np.cos(t * [1e4, 1e2]), np.sin(t * [1e4, 1e2])], -1)

    def velocity(s: Array, x: Array, t: Array, label: Array) -> Array:
        embedded = plain(agent.labels)[0][label]
        return mlp(agent.policy, s, x, features(t), embedded, name="mish", norm="before_but_last")

    def error(label: Array) -> Array:
        x = (1 - t) * noise + t * rows.a
        return ((velocity(rows.s, x, t, label) - (rows.a - noise)) ** 2).mean(-1)

    if scheme == "dropout":
        expected += error(np.where(draws.uniforms[1] < 0.4, 0, np.where(positive, 2, 1))).mean()
    else:
        expected += (positive * error(np.full(6, 2)) + 0.4 * error(np.zeros(6, int))).mean()
    assert found == pytest.approx(expected)

    draws, w = KnownDraws(4), 1 + config.omega

    def guided(x: Array, t: Array) -> Array:
        null = velocity(rows.s, x, t, np.zeros(6, int))
        return null + w * (velocity(rows.s, x, t, np.full(6, 2)) - null)

    acted = plain(agent.act(batch.observations, draws))[0]
    assert np.allclose(acted, flow_euler(guided, draws.normals[0], 3))


def test_fql_loss_is_the_formula() -> None:
    for normalize in (False, True):
        agent: FQL = small_agent(FQLConfig(alpha=7.0, normalize_q=normalize, flow_steps=3, **SMALL))
        batch, draws = small_batch(), KnownDraws()
        rows, found = Rows.of(batch), total(agent, batch, draws)
        next_noise, flow_noise, noise = draws.normals
        t = draws.uniforms[0]
        next_a = np.clip(mlp(agent.policy, rows.following, next_noise, name="gelu"), -1, 1)
        y = rows.r + 0.9 * rows.mask * qs(agent.critic.target, rows.following, next_a, "gelu").mean(0)
        expected = ((qs(agent.critic.online, rows.s, rows.a, "gelu") - y) ** 2).mean()

        network = agent.flow.network
        x_t = (1 - t) * flow_noise + t * rows.a
        expected += ((mlp(network, rows.s, x_t, t, name="gelu") - (rows.a - flow_noise)) ** 2).mean()

        taught = flow_euler(lambda x, t: mlp(network, rows.s, x, t, name="gelu"), noise, 3)  # noqa: B023
        actions = mlp(agent.policy, rows.s, noise, name="gelu")
        expected += 7.0 * ((actions - taught) ** 2).mean()
        q = qs(agent.critic.online, rows.s, np.clip(actions, -1, 1), "gelu").mean(0)
        expected += -q.mean() / (np.abs(q).mean() if normalize else 1)
        assert found == pytest.approx(expected)


def test_rebrac_loss_is_the_formula() -> None:
    agent: ReBRAC = small_agent(ReBRACConfig(alpha_actor=0.3, alpha_critic=0.7, noise=0.4, noise_clip=0.3, **SMALL))
    batch, draws = small_batch(), KnownDraws()
    rows = Rows.of(batch)
    critic_only = total(agent, batch, draws, phase=0)
    noise = np.clip(0.4 * draws.normals[0], -0.3, 0.3)
    assert isinstance(agent.target_policy, StackedMLP)
    next_a = np.clip(np.tanh(mlp(agent.target_policy, rows.following, name="gelu")) + noise, -1, 1)
    penalty = rows.known * ((next_a - rows.next_a) ** 2).sum(-1)
    next_q = qs(agent.critic.target, rows.following, next_a, "gelu").min(0) - 0.7 * penalty
    y = rows.r + 0.9 * rows.mask * next_q
    expected = ((qs(agent.critic.online, rows.s, rows.a, "gelu") - y) ** 2).mean()
    assert critic_only == pytest.approx(expected)

    actions = np.tanh(mlp(agent.policy, rows.s, name="gelu"))
    q = qs(agent.critic.online, rows.s, actions, "gelu").min(0)
    expected += -q.mean() / np.abs(q).mean() + 0.3 * ((actions - rows.a) ** 2).sum(-1).mean()
    assert total(agent, batch, KnownDraws(), phase=1) == pytest.approx(expected)


def test_idql_loss_and_ddpm_sampling_are_the_formulas() -> None:
    config = IDQLConfig(samples=1, policy_size=6, policy_blocks=2, dropout=0.3, **SMALL)
    agent: IDQL = small_agent(config)
    batch, draws = small_batch(), KnownDraws()
    rows, found = Rows.of(batch), total(agent, batch, draws)
    beta = plain(vp_betas(5))
    assert np.allclose(beta, 1 - np.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * np.arange(1, 6) - 1) / 25))
    kept = np.cumprod(1 - beta)

    def noise_of(net: Any, s: Array, x: Array, step: Array, dropped: list[Array] | None = None) -> Array:
        angles = 2 * np.pi * step * plain(net.frequencies)[0]
        time = mlp(net.time, np.concatenate([np.cos(angles), np.sin(angles)], -1), name="mish")
        h = linear(net.first, np.concatenate([x, s, time], -1))
        for block in range(2):
            inner = h if dropped is None else h * (dropped[block] >= 0.3) / 0.7
            wide = activation("mish", linear(net.widen[block], layer_norm(net.norms[block], inner)))
            h = h + linear(net.narrow[block], wide)
        return linear(net.final, activation("mish", h))

    step = np.floor(draws.uniforms[0] * 5).astype(int)
    noise = draws.normals[0]
    x = np.sqrt(kept[step]) * rows.a + np.sqrt(1 - kept[step]) * noise
    error = noise_of(agent.policy, rows.s, x, step, draws.uniforms[1:]) - noise
    assert found == pytest.approx(value_parts(agent.values, rows)[0] + (error**2).mean(), rel=1e-6)

    draws = KnownDraws(2)
    acted = plain(agent.act(batch.observations, draws))[0]
    x = draws.normals[0]
    for number, k in enumerate((4, 3, 2, 1, 0)):
        predicted = noise_of(agent.average, rows.s, x, np.full((6, 1), k))
        x = (x - beta[k] / np.sqrt(1 - kept[k]) * predicted) / np.sqrt(1 - beta[k])
        x = np.clip(x + (np.sqrt(beta[k]) * draws.normals[number + 1] if k else 0), -1, 1)
    assert np.allclose(acted, x, atol=1e-5)


def test_expectile_one_half_is_the_mean_and_a_larger_one_lies_above() -> None:
    x = torch.randn(2000, dtype=torch.float64)
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)

    def best(tau: float) -> float:
        return float(grid[torch.stack([expectile_loss(x - v, tau).mean() for v in grid]).argmin()])

    assert best(0.5) == pytest.approx(float(x.mean()), abs=1e-3)
    assert best(0.9) > best(0.7) > best(0.5) + 0.1
    assert torch.equal(expectile_loss(x, 0.5), 0.5 * x.square())


def test_only_a_true_end_stops_bootstrapping_and_a_time_limit_does_not() -> None:
    batch = replace(small_batch(), rewards=torch.ones(1, 6, dtype=torch.float64))
    target = bootstrapped(batch, 0.9, torch.full((1, 6), 10.0, dtype=torch.float64))
    # row 1: success (mask 0); row 2: last of its episode by the time limit (mask 1)
    assert target[0].tolist() == [10.0, 1.0, 10.0, 10.0, 10.0, 10.0]


@pytest.mark.parametrize("name", ["rebrac", "fql"])
def test_the_policys_climb_on_q_leaves_the_critic_alone(name: str) -> None:
    agent = small_agent(config_of(name, **SMALL))
    batch = small_batch()
    loss, _ = agent.policy_loss(batch) if name == "rebrac" else agent.policy_loss(batch, KnownDraws())
    loss.sum().backward()
    moved = {n.split(".")[0] for n, p in agent.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"policy"}


@pytest.mark.parametrize("name", ["rebrac", "fql"])
def test_dividing_by_the_mean_q_rescales_the_climb_and_adds_no_gradient_of_its_own(name: str) -> None:
    changes = {"alpha_actor": 0.0} if name == "rebrac" else {"alpha": 0.0, "normalize_q": True}
    agent = small_agent(config_of(name, **(SMALL | changes)))
    batch, bias = small_batch(), agent.policy.final.bias
    draws = () if name == "rebrac" else (KnownDraws(),)
    loss, _ = agent.policy_loss(batch, *draws)
    found = torch.autograd.grad(loss.sum(), bias)[0]
    if name == "rebrac":
        q = agent.critic(batch.observations, torch.tanh(agent.policy(batch.observations)[:, 0])).amin(1)
    else:
        noise = KnownDraws().normal(6, 2)
        q = agent.critic(batch.observations, agent.policy(batch.observations, noise)[:, 0].clamp(-1, 1)).mean(1)
    expected = torch.autograd.grad(-q.mean() / float(q.detach().abs().mean()), bias)[0]
    assert torch.allclose(found, expected) and found.any()


@pytest.mark.parametrize("name", AGENTS)
def test_the_td_target_teaches_no_network_that_it_is_made_of(name: str) -> None:
    """Without rows of its own to fit, a network gets no gradient: the loss at s' alone reaches nothing."""
    agent = small_agent(config_of(name, **SMALL))
    batch = small_batch()
    following = batch.next_observations.clone().requires_grad_()
    loss, _ = agent.loss(replace(batch, next_observations=following), KnownDraws(), 0)
    assert not following.grad_fn
    gradient = torch.autograd.grad(loss.sum(), following, allow_unused=True)[0]
    assert gradient is None or not gradient.any()
    targets = [p for n, p in agent.named_parameters() if "target" in n or "average" in n]
    assert all(not p.requires_grad for p in targets)


def test_advantage_weighted_regression_does_not_move_the_values() -> None:
    agent: IQL = small_agent(IQLConfig(**SMALL))
    batch = small_batch()
    _, _, values = agent.values.loss(batch)
    assert not (values.qs.requires_grad or values.v.requires_grad or values.target_qs.requires_grad)
    agent.policy_loss(batch, values.advantage("online", True))[0].sum().backward()
    assert all(p.grad is None for p in agent.values.parameters())


@pytest.mark.parametrize("name", AGENTS)
def test_actions_lie_in_the_unit_box_and_are_shaped_like_the_observations(name: str) -> None:
    agent = small_agent(config_of(name, **SMALL))
    actions = agent.act(5 * small_batch(rows=9).observations, KnownDraws(), 1.0)
    assert actions.shape == (1, 9, 2) and float(actions.abs().max()) <= 1 and not actions.requires_grad
