"""The sampler on distributions whose exact denoiser is known: spread, guidance, Theorem 1."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dpvla.diffusion import DPMSolver, VPLinearSchedule, clip_x0, combine
from dpvla.diffusion.samplers.dpm import diffusers_scheduler, solver_steps

SCHEDULE = VPLinearSchedule()
MODES = torch.tensor([-0.7, 0.0, 0.6], dtype=torch.float64)
MODE_STD = 0.1
BINS = 48


def gaussian_denoiser(mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise


def test_the_denoiser_is_called_ten_times_from_pure_noise_to_t_min() -> None:
    times = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t))
        return 0.5 * x

    DPMSolver(SCHEDULE, 10).sample(denoise, torch.randn(4))
    assert len(times) == 10
    assert times[0] == pytest.approx(1.0, abs=1e-5)
    assert times[-1] == pytest.approx(1e-3, rel=1e-3)


def test_the_grid_is_uniform_in_log_snr() -> None:
    steps = SCHEDULE.log_snr(DPMSolver(SCHEDULE, 10).times.double()).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-3, atol=0)


@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinearSchedule(beta_min=0.5, beta_max=12.0)])
@pytest.mark.parametrize("num_steps", [2, 3, 5, 10, 14, 15, 20, 100])
def test_samples_are_those_of_diffusers_in_every_bit(schedule: VPLinearSchedule, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(num_steps)
    noise, mix = (torch.randn(shape, generator=generator) for shape in ((6, 3, 8, 4), (4, 4)))

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return (3 * torch.tanh(0.3 * x @ mix) - 2 * torch.sin(x)).clamp(-2, 2)  # what differs by a bit soon differs

    solver, scheduler = DPMSolver(schedule, num_steps), diffusers_scheduler(schedule, num_steps)
    x = noise
    for t, index in zip(solver.times, scheduler.timesteps):
        x = scheduler.step(denoise(x, t), index, x, return_dict=False)[0]
    assert torch.equal(solver.sample(denoise, noise), x)


def test_the_table_is_made_once() -> None:
    assert DPMSolver(SCHEDULE, 7).steps is DPMSolver(VPLinearSchedule(), 7).steps
    assert DPMSolver(SCHEDULE, 8).steps is not DPMSolver(VPLinearSchedule(beta_max=19.0), 8).steps
    assert all(type(number) is float for step in solver_steps(SCHEDULE, 7) for number in step)


def test_the_callers_noise_and_what_the_denoiser_keeps_stay_as_they_are() -> None:
    noise, kept = torch.randn(5), []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        kept.extend([(x, x.clone()), (0.5 * x, 0.5 * x)])
        return kept[-1][0]

    before = noise.clone()
    DPMSolver(SCHEDULE, 4).sample(denoise, noise)
    assert torch.equal(noise, before)
    assert all(torch.equal(tensor, then) for tensor, then in kept)


@pytest.mark.parametrize("std, tolerance", [(0.2, 0.04), (0.05, 0.06), (0.5, 0.05)])
def test_ten_steps_keep_the_spread_of_a_gaussian(std: float, tolerance: float) -> None:
    # diffusers' default grid gives 0.50 of the spread at std 0.2 and 0.15 at 0.05.
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    samples = DPMSolver(SCHEDULE, 10).sample(gaussian_denoiser(0.3, std), noise)
    assert samples.std().item() == pytest.approx(std, rel=tolerance)
    assert samples.mean().item() == pytest.approx(0.3, abs=0.02)


def test_a_denoiser_in_low_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"bfloat16"):
        DPMSolver(SCHEDULE, 10).sample(lambda x, t: x.bfloat16(), torch.randn(3))


# ---------------------------------------------------------------- Theorem 1 with exact scores, one dimension


def weighted_density(points: Tensor, log_weight: Callable[[Tensor], Tensor]) -> Tensor:
    """mu(a) exp(log_weight(a)) on a grid, normalized to sum 1; mu is a mixture of three Gaussians."""
    mu = torch.exp(-0.5 * ((points[:, None] - MODES) / MODE_STD) ** 2).sum(1)
    density = mu * torch.exp(log_weight(points))
    return density / density.sum()


class TiltedDenoisers:
    """Exact x0 predictions of pi+ and pi- by quadrature over a fine grid, tabulated in x for speed."""

    def __init__(self, beta: float) -> None:
        self.points = torch.linspace(-1.3, 1.2, 1001, dtype=torch.float64)
        sigmoid = torch.nn.functional.logsigmoid
        self.positive = weighted_density(self.points, lambda a: sigmoid(beta * a))
        self.negative = weighted_density(self.points, lambda a: sigmoid(-beta * a))

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = SCHEDULE.alpha(t).double(), SCHEDULE.sigma(t).double()
        knots = torch.linspace(float(x.min()) - 1e-6, float(x.max()) + 1e-6, 600, dtype=torch.float64)
        exponent = -0.5 * ((knots[:, None] - alpha * self.points) / sigma) ** 2
        kernel = torch.exp(exponent - exponent.amax(1, keepdim=True))

        def mean(density: Tensor) -> Tensor:
            return _interpolate(knots, (kernel * density) @ self.points / (kernel @ density), x)

        return mean(self.positive), mean(self.negative)


def _interpolate(knots: Tensor, values: Tensor, x: Tensor) -> Tensor:
    step = knots[1] - knots[0]
    place = ((x - knots[0]) / step).clamp(0, len(knots) - 1.000001)
    left = place.long()
    share = place - left
    return values[left] * (1 - share) + values[left + 1] * share


def kl_to_target(samples: Tensor, beta: float, omega: float) -> float:
    """KL(samples || mu sigma(beta a) exp(omega beta a)) over 48 bins."""
    fine = torch.linspace(-1.3, 1.2, 48 * 50, dtype=torch.float64)
    target = weighted_density(fine, lambda a: torch.nn.functional.logsigmoid(beta * a) + omega * beta * a)
    target = target.view(BINS, 50).sum(1)
    counts = torch.histc(samples, BINS, -1.3, 1.2)
    share = counts / len(samples)
    seen = share > 0
    return float((share[seen] * (share[seen] / target[seen].clamp_min(1e-12)).log()).sum())


@pytest.mark.parametrize("omega, bound", [(0.0, 0.01), (1.0, 0.02)])
def test_the_guided_sampler_draws_from_the_optimal_policy_of_theorem_1(omega: float, bound: float) -> None:
    denoisers = TiltedDenoisers(beta=1.0)
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = DPMSolver(SCHEDULE, 200).sample(lambda x, t: combine(*denoisers(x, t), omega), noise)
    assert kl_to_target(samples, 1.0, omega) < bound
    # The same samples are far from the target of a wrong sign or of swapped policies.
    assert kl_to_target(samples, -1.0, omega) > 3 * bound


def test_greater_omega_is_greedier() -> None:
    denoisers = TiltedDenoisers(beta=1.0)
    noise = torch.randn(5_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    solver = DPMSolver(SCHEDULE, 20)

    def mean(omega: float) -> float:
        return float(solver.sample(lambda x, t: combine(*denoisers(x, t), omega), noise).mean())

    means = [mean(omega) for omega in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert means == sorted(means)
    assert means[-1] - means[0] > 0.3


def test_the_guided_sampler_equals_an_independent_integrator() -> None:
    """Against the probability-flow ODE dx/dlambda in x / alpha, integrated by Runge-Kutta 4, sample by sample."""
    positive, negative = gaussian_denoiser(0.4, 0.2), gaussian_denoiser(-0.1, 0.3)
    omega = 3.0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return combine(positive(x, t), negative(x, t), omega)

    noise = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = DPMSolver(SCHEDULE, 600).sample(denoise, noise)

    # With y = x / alpha and s = sigma / alpha the ODE is dy/ds = (y - x0(x, t)) / s.
    first, last = (float(SCHEDULE.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (1.0, 1e-3))
    grid = torch.linspace(-first, -last, 4001, dtype=torch.float64)  # log s

    def slope(log_s: float, y: Tensor) -> Tensor:
        t = SCHEDULE.time_of_log_snr(torch.tensor(-log_s, dtype=torch.float64))
        return y - denoise(SCHEDULE.alpha(t) * y, t)  # dy / dlog s

    y = noise / SCHEDULE.alpha(torch.ones((), dtype=torch.float64))
    for start, end in zip(grid[:-1].tolist(), grid[1:].tolist()):
        h = end - start
        k1 = slope(start, y)
        k2 = slope(start + h / 2, y + h / 2 * k1)
        k3 = slope(start + h / 2, y + h / 2 * k2)
        k4 = slope(end, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    t_min = torch.tensor(1e-3, dtype=torch.float64)
    theirs = denoise(SCHEDULE.alpha(t_min) * y, t_min)  # the solver's last step also goes to zero noise
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_clip_keeps_within_its_bound() -> None:
    x0 = torch.tensor([0.5, 3.0, -4.0, 1.0])
    clipped = clip_x0(x0, torch.tensor(2.0))
    assert clipped.tolist() == [0.5, 2.0, -2.0, 1.0]
