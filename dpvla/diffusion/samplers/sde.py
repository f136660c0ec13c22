"""Stochastic samplers on DPM-Solver's grid: chains from noise to samples, with the log-probability of every step.

A step is Gaussian given the chain so far. With the denoiser's x0 at this state and at the one before,

    mean = of_x x + of_x0 x0 + of_slope (x0 - the x0 before)

Its deviation is that of DDIM, ``s = eta sigma' / sigma sqrt(1 - alpha^2 / alpha'^2)``, where alpha' and sigma' are of
the next state; ``of_x = sqrt(sigma'^2 - s^2) / sigma`` and ``of_x0 = alpha' - alpha of_x``. ``ddim`` has no slope. With
eta 1 it is SDE-DPM-Solver++ of order 1, term by term: on a variance-preserving schedule the two are one formula.
``sde`` adds the slope of order 2 (midpoint), ``of_x0 / 2`` times this step's length in log-SNR over that of the step
before; with eta 1 it is SDE-DPM-Solver++(2M), with eta 0 DPM-Solver++(2M), the sampler of ``dpm``. As there, the first
step and the last, which goes to zero noise, have no slope.

Order matters: 10 steps of ``ddim`` with eta 1 keep 0.64 of the spread of a Gaussian, those of ``sde`` 0.99 to 1.04
(deviation 0.2 to 1), since order 1 takes x0's mean for x0 and forgets its spread.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dpvla.diffusion.samplers.dpm import Denoiser, solver_steps
from dpvla.diffusion.schedule import VPLinearSchedule

LOG_PROB_RANGE = (-5.0, 2.0)
"""To which a coordinate's log-probability is clamped (DPPO, ReCogDrive)."""


class Step(NamedTuple):
    """Numbers of one step."""

    t: float
    of_x: float
    of_x0: float
    of_slope: float
    std: float  # 0 in the last step, which goes to zero noise


class Chain(NamedTuple):
    """States from noise to samples."""

    states: Tensor  # (..., step + 1, pose, channel), the first one noise
    log_probs: Tensor  # (..., step): of each state but the first, given those before


class SDESolver:
    """Sampler with exactly ``num_steps`` calls of the denoiser; its numbers are the host's, as in ``DPMSolver``.

    Deviations have two floors, as in DPPO: one of what is sampled, and one of what log-probabilities are taken with,
    which keeps ratios finite where a step has almost no noise. The first widens samples beyond what the schedule says,
    in the last step, too. A log-probability is the mean over poses and channels (published so; a sum is as many times
    larger, and clip widths with it).
    """

    def __init__(
        self,
        schedule: VPLinearSchedule,
        num_steps: int = 10,
        kind: Literal["sde", "ddim"] = "sde",
        eta: float = 1.0,
        min_sampling_std: float = 0.0,
        min_logprob_std: float = 0.1,
        noise_clip: float = math.inf,
    ) -> None:
        """``noise_clip``: standard normal numbers are clipped to plus or minus this."""
        if not 0 <= eta <= 1 or min_logprob_std <= 0:
            raise ValueError(f"eta must lie in [0, 1] and min_logprob_std above 0: found {eta:g}, {min_logprob_std:g}")
        self.kind, self.num_steps, self.noise_clip = kind, num_steps, noise_clip
        self.steps = steps_of(schedule, num_steps, kind, eta)
        self.times = torch.tensor([step.t for step in self.steps])  # (step,) float32 from 1 down to t_min
        self.sampled = [max(step.std, min_sampling_std) for step in self.steps]
        judged = [max(step.std, min_logprob_std) for step in self.steps]
        self._rows = [(*step[1:4], std, math.log(std)) for step, std in zip(self.steps, judged)]
        self.table = torch.tensor(self._rows)
        """(step, 5) float32: what ``log_probs`` needs of every step."""

    @torch.no_grad()
    def sample(self, denoise: Denoiser, noise: Tensor) -> Chain:
        """The chain that ``noise`` (..., step + 1, pose, channel), standard normal, decides; in float32 at least."""
        drawn = (noise if noise.dtype == torch.float64 else noise.float()).unbind(-3)
        states, log_probs, before = [drawn[0]], [], None
        for t, std, numbers, z in zip(self.times, self.sampled, self._rows, drawn[1:], strict=True):
            x0 = denoise(states[-1], t)
            if x0.dtype != states[-1].dtype:
                raise TypeError(f"the denoiser returned {x0.dtype} for {noise.dtype}: the chain would lose precision")
            of_x, of_x0, of_slope, judged, log_judged = numbers
            mean = states[-1] * of_x + x0 * of_x0
            if before is not None and of_slope:
                mean = mean + (x0 - before) * of_slope
            states.append(mean + z.clamp(-self.noise_clip, self.noise_clip) * std)
            log_probs.append(_log_prob((states[-1] - mean) / judged, log_judged))
            before = x0
        return Chain(torch.stack(states, dim=-3), torch.stack(log_probs, dim=-1))

    def log_probs(self, x: Tensor, after: Tensor, x0: Tensor, before: Tensor, numbers: Tensor) -> Tensor:
        """Log-probabilities (...,) of steps from ``x`` to ``after``, given what a denoiser says.

        Args:
            x, after: (..., pose, channel). x0: the denoiser's at ``x``; before: its at the state before ``x``, of no
                account for a first step.
            numbers: (..., 5): the steps' rows of ``table``.
        """
        of_x, of_x0, of_slope, judged, log_judged = numbers[..., None, None, :].unbind(-1)
        mean = x * of_x + x0 * of_x0 + (x0 - before) * of_slope
        return _log_prob((after - mean) / judged, log_judged)


def _log_prob(z: Tensor, log_std: Tensor | float) -> Tensor:
    values = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)
    return values.clamp(*LOG_PROB_RANGE).mean(dim=(-2, -1))


@cache
def steps_of(schedule: VPLinearSchedule, num_steps: int, kind: str, eta: float) -> tuple[Step, ...]:
    """The steps of a sampler at the times of ``DPMSolver``."""
    times = [step.t for step in solver_steps(schedule, num_steps)]
    at = torch.tensor(times, dtype=torch.float64)
    alphas, sigmas = [*schedule.alpha(at).tolist(), 1.0], [*schedule.sigma(at).tolist(), 0.0]
    lengths = schedule.log_snr(at).diff().tolist()
    steps = []
    for i, t in enumerate(times):
        alpha, sigma = alphas[i : i + 2], sigmas[i : i + 2]
        std = eta * sigma[1] / sigma[0] * math.sqrt(1 - (alpha[0] / alpha[1]) ** 2)
        of_x = math.sqrt(max(0.0, sigma[1] ** 2 - std**2)) / sigma[0]
        of_x0 = alpha[1] - alpha[0] * of_x
        inside = kind == "sde" and 0 < i < num_steps - 1
        steps.append(Step(t, of_x, of_x0, 0.5 * of_x0 * lengths[i] / lengths[i - 1] if inside else 0.0, std))
    return tuple(steps)
