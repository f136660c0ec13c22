"""Stochastic samplers on distributions whose exact denoiser is known, and the log-probabilities of their chains."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from dpvla.diffusion import DPMSolver, VPLinearSchedule
from dpvla.diffusion.samplers.dpm import diffusers_scheduler
from dpvla.diffusion.samplers.sde import Chain, SDESolver, steps_of
from tests.dpvla.diffusion.test_dpm import SCHEDULE, gaussian_denoiser

Kind = Literal["sde", "ddim"]
KINDS: tuple[Kind, ...] = ("sde", "ddim")


def noise_of(solver: SDESolver, count: int, shape: tuple[int, int] = (1, 1), seed: int = 0) -> Tensor:
    return torch.randn(count, solver.num_steps + 1, *shape, generator=torch.Generator().manual_seed(seed))


def exact(solver: SDESolver, mean: float, std: float) -> tuple[float, float]:
    """Mean and deviation of the last state for a Gaussian target: every state is linear in what was drawn."""
    count = solver.num_steps + 1
    basis = torch.cat([torch.zeros(1, count), torch.eye(count)]).double()[..., None, None]
    ends = solver.sample(gaussian_denoiser(mean, std), basis).states[:, -1, 0, 0]
    return float(ends[0]), float((ends[1:] - ends[0]).norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_samples_have_the_mean_and_spread_that_ten_steps_give(kind: Kind, floor: float) -> None:
    solver = SDESolver(SCHEDULE, 10, kind, min_sampling_std=floor)
    mean, std = exact(solver, 0.3, 0.5)
    count = 20_000
    ends = solver.sample(gaussian_denoiser(0.3, 0.5), noise_of(solver, count)).states[:, -1]
    assert float(ends.mean()) == pytest.approx(mean, abs=4 * std / count**0.5)
    assert float(ends.std()) == pytest.approx(std, rel=4 / (2 * count) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("std", [0.2, 1.0])
def test_many_steps_give_the_target_itself(kind: Kind, eta: float, std: float) -> None:
    found = exact(SDESolver(SCHEDULE, 400, kind, eta), 0.3, std)
    assert found == (pytest.approx(0.3, abs=2e-3), pytest.approx(std, rel=0.03))


@pytest.mark.parametrize("std, kept, of_ddim", [(1.0, 1.04, 0.64), (0.5, 1.02, 0.64), (0.2, 0.99, 0.64)])
def test_order_two_keeps_the_spread_in_ten_steps_and_order_one_does_not(
    std: float, kept: float, of_ddim: float
) -> None:
    """What the module says, and why ``sde`` is the default."""
    spreads = [exact(SDESolver(SCHEDULE, 10, kind), 0.0, std)[1] / std for kind in KINDS]
    assert spreads == [pytest.approx(kept, abs=0.01), pytest.approx(of_ddim, abs=0.01)]


def nonlinear(x: Tensor, t: Tensor) -> Tensor:
    return (2 * torch.tanh(0.7 * x) - torch.sin(x)) * (1.2 - t)


@pytest.mark.parametrize("num_steps", [2, 3, 10])
def test_without_noise_ddim_is_the_deterministic_path(num_steps: int) -> None:
    """Step by step as DDIM is written: x0 and the noise that it implies, mixed anew."""
    solver = SDESolver(SCHEDULE, num_steps, "ddim", eta=0.0)
    noise = noise_of(solver, 5, (8, 4))
    chain = solver.sample(nonlinear, noise)
    x = noise[:, 0].double()
    levels = [*(float(t) for t in solver.times), None]
    for place, (now, then) in enumerate(pairwise(levels)):
        t = torch.tensor(now, dtype=torch.float64)
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        after = None if then is None else torch.tensor(then, dtype=torch.float64)
        x0 = nonlinear(x, t)
        eps = (x - alpha * x0) / sigma
        x = x0 if after is None else SCHEDULE.alpha(after) * x0 + SCHEDULE.sigma(after) * eps
        torch.testing.assert_close(chain.states[:, place + 1].double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinearSchedule(beta_min=0.5, beta_max=12.0)])
def test_without_noise_order_two_is_dpm_solver(schedule: VPLinearSchedule) -> None:
    solver = SDESolver(schedule, 10, "sde", eta=0.0)
    noise = noise_of(solver, 5, (8, 4))
    expected = DPMSolver(schedule, 10).sample(nonlinear, noise[:, 0])
    torch.testing.assert_close(solver.sample(nonlinear, noise).states[:, -1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "order"), [("sde", 2), ("ddim", 1)])
def test_with_eta_one_steps_are_those_of_sde_dpm_solver(kind: Kind, order: int) -> None:
    """Against the formulas of the SDE variant, which are written in log-SNR."""
    solver = SDESolver(SCHEDULE, 10, kind)
    at = solver.times.double()
    alphas, sigmas, log_snrs = SCHEDULE.alpha(at).tolist(), SCHEDULE.sigma(at).tolist(), SCHEDULE.log_snr(at).tolist()
    for i, step in enumerate(solver.steps[:-1]):
        h = log_snrs[i + 1] - log_snrs[i]
        gain = alphas[i + 1] * (1 - math.exp(-2 * h))
        assert step.of_x == pytest.approx(sigmas[i + 1] / sigmas[i] * math.exp(-h))
        assert step.of_x0 == pytest.approx(gain)
        assert step.std == pytest.approx(sigmas[i + 1] * math.sqrt(1 - math.exp(-2 * h)))
        ratio = h / (log_snrs[i] - log_snrs[i - 1]) if i else 0.0
        assert step.of_slope == pytest.approx(0.5 * gain * ratio * (order == 2))
    assert solver.steps[-1][1:] == (0.0, 1.0, 0.0, 0.0)


def recomputed(solver: SDESolver, chain: Chain) -> Tensor:
    """Log-probabilities of all steps from the states and the denoiser alone."""
    x = chain.states[:, :-1]
    x0 = torch.stack([nonlinear(x[:, i], t) for i, t in enumerate(solver.times)], dim=1)
    return solver.log_probs(x, chain.states[:, 1:], x0, x0.roll(1, dims=1), solver.table)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KINDS), st.integers(2, 12), st.floats(0.05, 1.0), st.floats(0.0, 0.3), st.floats(0.01, 0.3))
def test_recomputed_log_probabilities_are_the_stored_ones(
    kind: Kind, num_steps: int, eta: float, floor: float, judged: float
) -> None:
    solver = SDESolver(SCHEDULE, num_steps, kind, eta, floor, judged, 3.0)
    chain = solver.sample(nonlinear, noise_of(solver, 4, (8, 4), num_steps))
    assert chain.states.dtype == chain.log_probs.dtype == torch.float32
    torch.testing.assert_close(recomputed(solver, chain), chain.log_probs, rtol=0, atol=1e-5)


def test_a_log_probability_is_the_mean_of_normal_ones_with_the_floor_and_the_clamp() -> None:
    solver = SDESolver(SCHEDULE, 4, "ddim", min_sampling_std=0.04, min_logprob_std=0.2)
    x, x0 = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.25, 0.125]])
    after = torch.tensor([[0.3, 0.1]])
    # The last step's mean is x0, and its deviation is the floor.
    expected = Normal(x0, 0.2).log_prob(after).mean()
    found = solver.log_probs(x, after, x0, torch.full_like(x0, 9.0), solver.table[-1])
    torch.testing.assert_close(found, expected)
    step = solver.steps[1]
    mean = step.of_x * x + step.of_x0 * x0
    assert step.std > 0.2
    found = solver.log_probs(x, after, x0, x0, solver.table[1])
    torch.testing.assert_close(found, Normal(mean, step.std).log_prob(after).mean())
    far = solver.log_probs(x, after + 50, x0, x0, solver.table[1])
    assert float(far) == -5.0  # of every coordinate: published so
    near = SDESolver(SCHEDULE, 4, "ddim", min_logprob_std=0.01)
    assert float(near.log_probs(x, x0, x0, x0, near.table[-1])) == 2.0


def test_deviations_have_the_floor_and_noise_its_clip() -> None:
    solver = SDESolver(SCHEDULE, 6, "sde", min_sampling_std=0.1, noise_clip=1.5)
    still = torch.zeros(1, 7, 1, 1)
    loud = still.clone()
    loud[:, -1] = 40.0
    ends = [solver.sample(nonlinear, noise).states[:, -1] for noise in (still, loud)]
    assert float(ends[1] - ends[0]) == pytest.approx(1.5 * 0.1)
    assert solver.sampled[-1] == 0.1 and solver.sampled[1] == solver.steps[1].std > 0.1


def test_a_denoiser_in_low_precision_is_refused() -> None:
    solver = SDESolver(SCHEDULE, 4)
    with pytest.raises(TypeError, match="bfloat16"):
        solver.sample(lambda x, t: x.bfloat16(), noise_of(solver, 2))


@pytest.mark.parametrize("wrong", [{"eta": 1.5}, {"eta": -0.1}, {"min_logprob_std": 0.0}])
def test_settings_without_a_density_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="eta must lie in"):
        SDESolver(SCHEDULE, 4, "sde", **wrong)


def test_the_steps_are_made_once() -> None:
    assert SDESolver(SCHEDULE, 7).steps is SDESolver(VPLinearSchedule(), 7).steps is steps_of(SCHEDULE, 7, "sde", 1.0)


@pytest.mark.parametrize("kind, order", [("ddim", 1), ("sde", 2)])
def test_the_chain_is_that_of_diffusers_sde_dpm_solver(kind: Kind, order: int) -> None:
    """With eta 1: at the same states, x0 and noise."""
    solver = SDESolver(SCHEDULE, 10, kind)
    noise = noise_of(solver, 4, (2, 3), seed=3)
    chain = solver.sample(gaussian_denoiser(0.3, 0.5), noise).states
    scheduler = diffusers_scheduler(SCHEDULE, 10)
    scheduler.register_to_config(algorithm_type="sde-dpmsolver++", solver_order=order)
    x = noise[:, 0]
    for i, (t, rounded) in enumerate(zip(solver.times, scheduler.timesteps)):
        x0 = gaussian_denoiser(0.3, 0.5)(x, t)
        x = scheduler.step(x0, rounded, x, variance_noise=noise[:, i + 1]).prev_sample
        torch.testing.assert_close(x, chain[:, i + 1], atol=2e-4, rtol=2e-4)
