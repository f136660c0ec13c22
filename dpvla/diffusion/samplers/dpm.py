"""DPM-Solver++ of order 2 on a grid uniform in log-SNR, through diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from dpvla.diffusion.schedule import VPLinearSchedule

TRAIN_STEPS = 1000
"""Knots at which diffusers is told the schedule; with t = (i + 1) / 1000 the first one is t = 0.001."""

ORDER = 2
"""Of the solver: how many outputs of the denoiser a step looks at."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``(x_t, t) -> x0``; t is a 0-dim float32 tensor on the CPU."""


class DPMSolver:
    """Deterministic sampler with exactly ``num_steps`` calls of the denoiser.

    diffusers' default time grid loses half of the sample spread at 10 steps on this schedule, and group advantages
    live on that spread, so the grid is uniform in log-SNR (``use_lu_lambdas``). diffusers would round the matching
    times to integers; the denoiser is given the exact continuous t instead. The last step goes to zero noise.
    """

    def __init__(self, schedule: VPLinearSchedule, num_steps: int = 10) -> None:
        if num_steps < 2:
            raise ValueError(f"the solver needs at least 2 steps, found {num_steps}")
        if abs(schedule.t_min * TRAIN_STEPS - 1) > 1e-6:
            raise ValueError(f"the solver needs t_min = {1 / TRAIN_STEPS}, found {schedule.t_min}")
        self.schedule = schedule
        self.num_steps = num_steps
        # Betas whose running product is the continuous alpha(t)^2 at the knots (a linspace is 7 % off at t = 1).
        knots = torch.arange(1, TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
        log_alpha_squared = 2 * schedule.log_alpha(knots)
        steps = torch.diff(log_alpha_squared, prepend=torch.zeros(1, dtype=torch.float64))
        self._prepared = _scheduler((-torch.expm1(steps)).numpy(), num_steps)
        levels = self._prepared.sigmas[:-1].double()
        self.times = schedule.time_of_log_snr(-levels.log()).float()  # (step,) from 1 down to t_min

    def _fresh(self) -> Any:
        """A scheduler that has seen no sample yet; its grid is shared."""
        scheduler = copy.copy(self._prepared)
        scheduler.model_outputs, scheduler.lower_order_nums = [None] * ORDER, 0
        scheduler._step_index = None
        return scheduler

    @torch.no_grad()
    def sample(self, denoise: Denoiser, noise: Tensor) -> Tensor:
        """Solve from ``x_1 = noise`` (standard normal) to clean samples, in float32 at least."""
        scheduler = self._fresh()
        x = noise if noise.dtype == torch.float64 else noise.float()
        for t, index in zip(self.times, scheduler.timesteps):
            x0 = denoise(x, t)
            if x0.dtype != x.dtype:
                raise TypeError(f"the denoiser returned {x0.dtype} for {x.dtype}: the solver would lose precision")
            x = scheduler.step(x0, index, x, return_dict=False)[0]
        return x


def _scheduler(betas: NDArray[np.float64], num_steps: int) -> Any:  # diffusers decorates away the type
    scheduler: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=betas,
        solver_order=ORDER,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
        use_lu_lambdas=True,
    )
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)  # otherwise the first step looks its index up on the device, which is a sync
    return scheduler
