"""The guided sampler against closed forms: with exact velocities it must sample what Theorem 1 says, where that holds.

Theorem 1 is exact for each of the two policies. Combining them while sampling is the classifier-free-guidance
approximation: exact at omega = 0, close at omega · beta · range(G) = 1.3 (the case here), off beyond, where only the
equality with an independent integrator is a fair test.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpvla.diffusion import flow
from dpvla.state_based.agents.dipole import Dipole, DipoleAgentConfig
from dpvla.state_based.networks.draws import FreshDraws

MODES, SPREAD = (-0.7, 0.0, 0.6), 0.1  # of the behavior policy over one action number a; G(a) = a
ACTIONS = np.linspace(-1.3, 1.3, 261)


def behavior() -> np.ndarray:
    return np.sum([np.exp(-0.5 * ((ACTIONS - mode) / SPREAD) ** 2) for mode in MODES], axis=0)


def normalized(density: np.ndarray) -> np.ndarray:
    return density / density.sum()


def positive_and_negative(beta: float) -> tuple[np.ndarray, np.ndarray]:
    """mu · sigmoid(beta G) and mu · (1 - sigmoid(beta G)) on the grid of actions."""
    good = 1 / (1 + np.exp(-beta * ACTIONS))
    return normalized(behavior() * good), normalized(behavior() * (1 - good))


def exact_velocity(density: np.ndarray, x: np.ndarray, t: float) -> np.ndarray:
    """E[a - noise | x_t = x] for actions of ``density``: (E[a | x_t = x] - x) / (1 - t)."""
    log_weight = np.log(density + 1e-300) - 0.5 * ((x[:, None] - t * ACTIONS) / (1 - t)) ** 2
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    return ((weight @ ACTIONS) / weight.sum(1) - x) / (1 - t)


class ExactPolicies(nn.Module):
    """Stands for the two trained networks: exact velocities; of many points, read off a fine table."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.densities = positive_and_negative(beta)

    def forward(self, observations: Tensor, x_t: Tensor, t: Tensor, member: int | None = None) -> Tensor:
        now, points = float(t.flatten()[0]), x_t[0, :, 0].double().numpy()
        where = points if len(points) < 600 else np.linspace(points.min(), points.max(), 600)
        both = [np.interp(points, where, exact_velocity(density, where, now)) if where is not points
                else exact_velocity(density, where, now)
                for density in (self.densities if member is None else self.densities[member : member + 1])]  # fmt: skip
        return torch.from_numpy(np.stack(both)).to(x_t.dtype)[None, :, :, None]


def agent_with_exact_policies(beta: float, omega: float, steps: int) -> Dipole:
    config = DipoleAgentConfig(hidden=(4,), omega=omega, flow_steps=steps, samples=1)
    agent = Dipole(config, observation_dim=1, action_dim=1, seeds=[0])
    agent.policies = ExactPolicies(beta)  # type: ignore[assignment]
    return agent


@pytest.mark.parametrize(("omega", "largest"), [(0.0, 0.01), (1.0, 0.02)])
def test_with_exact_policies_the_samples_have_the_closed_form_distribution(omega: float, largest: float) -> None:
    beta = 1.0
    agent = agent_with_exact_policies(beta, omega, steps=200)
    samples = agent.act(torch.zeros(1, 10_000, 1), FreshDraws([0], "cpu", 1))[0, :, 0].numpy()
    target = normalized(behavior() / (1 + np.exp(-beta * ACTIONS)) * np.exp(omega * beta * ACTIONS))
    edges = np.linspace(-1.2, 1.2, 49)
    found = np.histogram(samples, edges)[0] / len(samples)
    expected = np.histogram(ACTIONS, edges, weights=target)[0]
    divergence = sum(f * np.log(f / max(e, 1e-12)) for f, e in zip(found, expected) if f > 0)
    assert divergence < largest
    wrong = normalized(behavior() * (1 - 1 / (1 + np.exp(-beta * ACTIONS))) * np.exp(omega * beta * ACTIONS))
    assert abs(samples.mean() - target @ ACTIONS) < 0.035 < abs(wrong @ ACTIONS - target @ ACTIONS)


@pytest.mark.parametrize("omega", [0.0, 1.0, 4.0])
def test_the_guided_sampler_equals_an_independent_integrator_action_by_action(omega: float) -> None:
    beta, steps, count = 2.0, 10, 300
    agent = agent_with_exact_policies(beta, omega, steps)
    found = agent.act(torch.zeros(1, count, 1), FreshDraws([3], "cpu", 5))[0, :, 0].numpy()

    x = FreshDraws([3], "cpu", 5).normal(count, 1)[0, :, 0].double().numpy()
    good, bad = positive_and_negative(beta)
    for step in range(steps):  # in terms of expected actions instead of velocities
        t = step / steps
        expected_good = exact_velocity(good, x, t) * (1 - t) + x
        expected_bad = exact_velocity(bad, x, t) * (1 - t) + x
        guided = expected_good + omega * (expected_good - expected_bad)
        x = x + (guided - x) / (1 - t) / steps
    assert np.abs(found - np.clip(x, -1, 1)).max() < 1e-4
    assert np.abs(found).max() <= 1


def test_a_straight_flow_is_solved_exactly_and_reaches_the_data_at_t_1() -> None:
    noise, data = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.allclose(flow.solve(lambda x, t: data - noise, noise, 7), data, atol=1e-6)
    times: list[float] = []
    flow.solve(lambda x, t: times.append(float(t[0])) or torch.zeros_like(x), noise, 4)  # type: ignore[func-returns-value]
    assert times == [0.0, 0.25, 0.5, 0.75]
    assert torch.equal(flow.noised(data, noise, torch.ones(5, 1)), data)
    assert torch.equal(flow.noised(data, noise, torch.zeros(5, 1)), noise)
