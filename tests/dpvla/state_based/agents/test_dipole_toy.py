"""DIPOLE trained on eight Gaussians on a circle, reward = x: how often each mode is drawn follows the closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpvla.state_based.agents.dipole import Dipole, DipoleAgentConfig
from dpvla.state_based.data.batch import Batch
from dpvla.state_based.networks.draws import FreshDraws

RADIUS = 0.8  # so that no mode is cut off at ± 1
ANGLES = torch.arange(8) * (2 * math.pi / 8)
CENTERS = RADIUS * torch.stack((ANGLES.cos(), ANGLES.sin()), 1)
SPREAD = 0.1 * RADIUS
CONFIG = DipoleAgentConfig(hidden=(96, 96, 96), beta=1.0, flow_steps=32, samples=1)
STEPS, ROWS = 2000, 512


def rewards(actions: Tensor) -> Tensor:
    return actions[..., 0] / RADIUS


@pytest.fixture(scope="module")
def trained() -> Dipole:
    agent = Dipole(CONFIG, observation_dim=1, action_dim=2, seeds=[0])
    parameters = list(agent.policies.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(1, ROWS)
    for step in range(STEPS):
        modes = torch.randint(8, (1, ROWS), generator=generator)
        actions = CENTERS[modes] + SPREAD * torch.randn(1, ROWS, 2, generator=generator)
        batch = Batch(zeros[..., None], actions, zeros, zeros[..., None], zeros)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        loss, _ = agent.policy_loss(batch, rewards(actions), FreshDraws([0], "cpu", step))
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return agent


def sample(agent: Dipole, omega: float, count: int) -> Tensor:
    agent.config = replace(CONFIG, omega=omega)
    return agent.act(torch.zeros(1, count, 1), FreshDraws([1], "cpu", 0))[0]


def closed_form(omega: float) -> tuple[Tensor, float]:
    """Share of each mode and expected reward under ``mu sigmoid(r) exp(omega r)``, by sampling mu densely."""
    generator = torch.Generator().manual_seed(1)
    actions = CENTERS[:, None] + SPREAD * torch.randn(8, 20_000, 2, generator=generator)
    weight = torch.sigmoid(rewards(actions)) * (omega * rewards(actions)).exp()
    share = weight.sum(1) / weight.sum()
    return share, float((weight * rewards(actions)).sum() / weight.sum())


@pytest.mark.parametrize(("omega", "largest"), [(0.0, 0.01), (1.0, 0.02)])
def test_modes_are_drawn_as_often_as_the_closed_form_says(trained: Dipole, omega: float, largest: float) -> None:
    actions = sample(trained, omega, 4000)
    found = torch.bincount(torch.cdist(actions, CENTERS).argmin(1), minlength=8) / len(actions)
    expected, reward = closed_form(omega)
    divergence = float((found * (found / expected).clamp_min(1e-9).log()).sum())
    assert divergence < largest
    assert abs(float(rewards(actions).mean()) - reward) < 0.05


def test_the_expected_reward_grows_with_the_greediness(trained: Dipole) -> None:
    means = [float(rewards(sample(trained, omega, 1000)).mean()) for omega in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert means == sorted(means) and means[-1] > means[0] + 0.3
