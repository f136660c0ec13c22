"""Each agent's loss on fixed tensors against the same formula computed by hand in NumPy, network by network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpvla.state_based.agents.cfgrl import CFGRL, CFGRLConfig
from dpvla.state_based.agents.flow_bc import FlowBC, FlowBCConfig
from dpvla.state_based.agents.fql import FQL, FQLConfig
from dpvla.state_based.agents.idql import IDQL, IDQLConfig, vp_betas
from dpvla.state_based.agents.ifql import IFQL, IFQLConfig
from dpvla.state_based.agents.iql import IQL, IQLConfig
from dpvla.state_based.agents.rebrac import ReBRAC, ReBRACConfig
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.agents.values import bootstrapped, expectile_loss
from dpvla.state_based.networks.stacked import StackedMLP
from tests.dpvla.state_based.agent_of import config_of
from tests.dpvla.state_based.agents.formulas import SMALL, Rows, flow_euler, qs, small_agent, total, value_parts
from tests.dpvla.state_based.agents.plain_networks import (
    Array,
    KnownDraws,
    activation,
    layer_norm,
    linear,
    mlp,
    plain,
    small_batch,
)


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
