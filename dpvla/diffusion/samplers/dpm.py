"""DPM-Solver++ of order 2 on a grid uniform in log-SNR: diffusers' steps, read once into a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpvla.diffusion.schedule import VPLinearSchedule

TRAIN_STEPS = 1000
"""Knots at which diffusers is told the schedule; with t = (i + 1) / 1000 the first one is t = 0.001."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``(x_t, t) -> x0``; t is a 0-dim float32 tensor on the CPU."""


class Step(NamedTuple):
    """One step: the denoiser is asked at ``t`` for x0, then x is

    ``of_x x - of_x0 x0 - of_slope (inverse_ratio (x0 - the x0 before))``.
    """

    t: float
    of_x: float
    of_x0: float
    of_slope: float  # 0 in the first step and the last, which are of order 1
    inverse_ratio: float  # this step's length in log-SNR over that of the one before


class DPMSolver:
    """Deterministic sampler with exactly ``num_steps`` calls of the denoiser.

    diffusers' default time grid loses half of the sample spread at 10 steps on this schedule, and group advantages
    live on that spread, so the grid is uniform in log-SNR (``use_lu_lambdas``). diffusers would round the matching
    times to integers; the denoiser is given the exact continuous t instead. The last step goes to zero noise.

    The steps are numbers of the host: a GPU gets them with its kernels, nothing is copied to it or waited for.
    """

    def __init__(self, schedule: VPLinearSchedule, num_steps: int = 10) -> None:
        if num_steps < 2:
            raise ValueError(f"the solver needs at least 2 steps, found {num_steps}")
        if abs(schedule.t_min * TRAIN_STEPS - 1) > 1e-6:
            raise ValueError(f"the solver needs t_min = {1 / TRAIN_STEPS}, found {schedule.t_min}")
        self.schedule = schedule
        self.num_steps = num_steps
        self.steps = solver_steps(schedule, num_steps)
        self.times = torch.tensor([step.t for step in self.steps])  # (step,) float32 from 1 down to t_min

    @torch.no_grad()
    def sample(self, denoise: Denoiser, noise: Tensor) -> Tensor:
        """Solve from ``x_1 = noise`` (standard normal) to clean samples, in float32 at least."""
        x = noise if noise.dtype == torch.float64 else noise.float()
        last: Tensor | None = None
        for t, step in zip(self.times, self.steps):
            x0 = denoise(x, t)
            if x0.dtype != x.dtype:
                raise TypeError(f"the denoiser returned {x0.dtype} for {x.dtype}: the solver would lose precision")
            x = (x * step.of_x).sub_(x0 * step.of_x0)
            if last is not None and step.of_slope:
                x.sub_((x0 - last).mul_(step.inverse_ratio).mul_(step.of_slope))
            last = x0
        return x


@cache
def solver_steps(schedule: VPLinearSchedule, num_steps: int) -> tuple[Step, ...]:
    """The steps of diffusers' scheduler, formed in its order and precision (float32), so that all bits are equal."""
    scheduler = diffusers_scheduler(schedule, num_steps)
    times = schedule.time_of_log_snr(-scheduler.sigmas[:-1].double().log()).float().tolist()
    alphas, sigmas = zip(*(scheduler._sigma_to_alpha_sigma_t(level) for level in scheduler.sigmas))
    log_snrs = [alpha.log() - sigma.log() for alpha, sigma in zip(alphas, sigmas)]
    steps = []
    for i, t in enumerate(times):
        length = log_snrs[i + 1] - log_snrs[i]
        of_x, of_x0 = sigmas[i + 1] / sigmas[i], alphas[i + 1] * (torch.exp(-length) - 1)
        of_slope = inverse_ratio = torch.zeros(())
        if 0 < i < num_steps - 1:
            of_slope, inverse_ratio = 0.5 * of_x0, 1 / ((log_snrs[i] - log_snrs[i - 1]) / length)
        steps.append(Step(t, *(float(number) for number in (of_x, of_x0, of_slope, inverse_ratio))))
    return tuple(steps)


def diffusers_scheduler(schedule: VPLinearSchedule, num_steps: int) -> Any:  # diffusers decorates away the type
    """The scheduler whose steps these are, ready for its first one."""
    from diffusers import DPMSolverMultistepScheduler  # takes seconds, and many callers never sample

    # Betas whose running product is the continuous alpha(t)^2 at the knots (a linspace is 7 % off at t = 1).
    knots = torch.arange(1, TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
    log_alpha_squared = 2 * schedule.log_alpha(knots)
    decays = torch.diff(log_alpha_squared, prepend=torch.zeros(1, dtype=torch.float64))
    scheduler: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=(-torch.expm1(decays)).numpy(),
        solver_order=2,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
        use_lu_lambdas=True,
    )
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)  # timesteps, which it rounds, may repeat: it would take the second
    return scheduler
