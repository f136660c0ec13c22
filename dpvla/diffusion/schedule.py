"""The variance-preserving noise schedule and the three ways of writing a denoiser's output.

A noised plan is ``x_t = alpha(t) x0 + sigma(t) eps`` with ``alpha^2 + sigma^2 = 1``. The outputs ``eps``, ``x0`` and
``v = alpha eps - sigma x0`` are affine in one another at fixed ``(x_t, t)``, so a model may predict one of them while
the loss is measured in another, and combining two models is the same in all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dpvla.random_rows import uniform

Parametrization = Literal["eps", "x0", "v"]
PARAMETRIZATIONS: tuple[str, ...] = get_args(Parametrization)


@dataclass(frozen=True)
class VPLinearSchedule:
    """Continuous VP schedule with linear beta(t); t runs from ``t_min`` (almost clean) to 1 (almost noise).

    ``log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2``. Everything is computed in float32 at least.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"need 0 < beta_min < beta_max, found {self.beta_min} and {self.beta_max}")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie between 0 and 1, found {self.t_min}")

    def log_alpha(self, t: Tensor) -> Tensor:
        """Natural logarithm of alpha(t)."""
        t = _at_least_float32(t)
        return -0.25 * (self.beta_max - self.beta_min) * t.square() - 0.5 * self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the signal in x_t."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise in x_t; accurate near t = 0 too."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha / sigma), the variable in which DPM-Solver is exact for a constant x0."""
        return self.log_alpha(t) - self.sigma(t).log()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The t at which log(alpha / sigma) takes this value (inverse of ``log_snr``)."""
        # alpha^2 = sigmoid(2 lambda), and -2 log alpha = softplus(-2 lambda) solves a quadratic in t.
        target = torch.nn.functional.softplus(-2 * _at_least_float32(log_snr))
        slope = self.beta_max - self.beta_min
        return 2 * target / (self.beta_min + (self.beta_min**2 + 2 * slope * target).sqrt())

    def draw_times(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Uniform training times in [t_min, 1], float32, on ``device``; drawn as ``random_rows.uniform`` does."""
        return self.t_min + (1 - self.t_min) * uniform(shape, generator, device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t; ``t`` has the leading axes of ``x0``."""
        return _over(self.alpha(t), x0) * x0 + _over(self.sigma(t), x0) * noise

    def target(self, kind: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network of this parametrization outputs."""
        _check(kind)
        if kind == "x0":
            return x0
        if kind == "eps":
            return noise
        return _over(self.alpha(t), x0) * noise - _over(self.sigma(t), x0) * x0

    def convert(self, output: Tensor, x_t: Tensor, t: Tensor, source: str, to: str) -> Tensor:
        """The same prediction written as another parametrization.

        Between eps and x0 this divides by alpha or sigma: alpha(1) = 0.0066 amplifies errors of a raw eps network.
        """
        _check(source)
        _check(to)
        if source == to:
            return output
        output, x_t = _at_least_float32(output), _at_least_float32(x_t)
        alpha, sigma = _over(self.alpha(t), x_t), _over(self.sigma(t), x_t)
        if source == "v":
            return alpha * x_t - sigma * output if to == "x0" else sigma * x_t + alpha * output
        if source == "eps":
            return (x_t - sigma * output) / alpha if to == "x0" else (output - sigma * x_t) / alpha
        return (x_t - alpha * output) / sigma if to == "eps" else (alpha * x_t - output) / sigma

    def squared_eps_factor(self, kind: str, t: Tensor) -> Tensor:
        """(d eps / d output)^2: turns a squared error of the network's own output into a squared eps error."""
        _check(kind)
        alpha = self.alpha(t)
        if kind == "eps":
            return torch.ones_like(alpha)
        return alpha.square() if kind == "v" else (alpha / self.sigma(t)).square()

    def squared_output_factor(self, kind: str, t: Tensor, alpha_floor: float = 0.0) -> Tensor:
        """(d output / d eps)^2, with alpha not taken below ``alpha_floor`` where it divides."""
        _check(kind)
        alpha = self.alpha(t).clamp_min(alpha_floor)
        if kind == "eps":
            return torch.ones_like(alpha)
        return alpha.pow(-2) if kind == "v" else (self.sigma(t) / alpha).square()


def _over(factor: Tensor, like: Tensor) -> Tensor:
    """``factor`` with trailing axes added so that it multiplies ``like``.

    0-dim factors need none, and must not get any: only a 0-dim CPU tensor multiplies tensors of a GPU.
    """
    return factor if factor.ndim == 0 else factor.reshape(factor.shape + (1,) * (like.ndim - factor.ndim))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check(kind: str) -> None:
    if kind not in PARAMETRIZATIONS:
        raise ValueError(f"unknown parametrization {kind!r}; expected one of {', '.join(PARAMETRIZATIONS)}")
