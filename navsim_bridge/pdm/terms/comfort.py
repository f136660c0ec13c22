"""Comfort: six smoothed motion quantities of the rear axle within bounds at every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_STATES = 41


class Bound(NamedTuple):
    """One comfort quantity must stay strictly between ``low`` and ``high``."""

    quantity: str
    unit: str
    low: float
    high: float


BOUNDS = (
    Bound("longitudinal acceleration", "m/s^2", -4.05, 2.40),
    Bound("lateral acceleration", "m/s^2", -4.89, 4.89),
    Bound("jerk magnitude", "m/s^3", -8.37, 8.37),
    Bound("longitudinal jerk", "m/s^3", -4.13, 4.13),
    Bound("yaw acceleration", "rad/s^2", -1.93, 1.93),
    Bound("yaw rate", "rad/s", -0.95, 0.95),
)
"""In the order of the devkit's flags."""


def savgol_matrix(
    samples: int, window: int, order: int, derivative: int = 0, delta: float = 1.0
) -> NDArray[np.float64]:
    """Savitzky-Golay filter as a matrix (samples, samples), equal to scipy's with mode "interp".

    Interior outputs come from the polynomial fitted to the window around them; the first and last half
    windows from the fits of the first and last window. For an even window the fit is evaluated half a
    sample late, as scipy does.
    """
    half = window // 2
    even = window % 2 == 0
    # centred positions keep the least squares well conditioned
    positions = np.arange(window) - (window - 1) / 2
    fit = np.linalg.pinv(np.vander(positions, order + 1, increasing=True))  # window values -> coefficients

    def evaluate(at: float) -> NDArray[np.float64]:
        powers = np.zeros(order + 1)
        for power in range(derivative, order + 1):
            powers[power] = math.perm(power, derivative) * at ** (power - derivative)
        return powers @ fit / delta**derivative

    matrix = np.zeros((samples, samples))
    for i in range(samples):
        if i < half:
            matrix[i, :window] = evaluate(i - (window - 1) / 2)
        elif i >= samples - half:
            matrix[i, samples - window :] = evaluate(i - (samples - window) - (window - 1) / 2)
        else:
            first = i - half + (1 if even else 0)
            matrix[i, first : first + window] = evaluate(0.0)
    return matrix


@functools.lru_cache(maxsize=64)
def _filter(device: torch.device, samples: int, window: int, order: int, derivative: int) -> Tensor:
    delta = float(np.mean(np.diff(np.arange(samples) * 0.1))) if derivative else 1.0  # [s] as the devkit derives it
    matrix = savgol_matrix(samples, min(window, samples), order, derivative, delta)
    return torch.from_numpy(matrix.T.copy()).to(device)


def smooth(values: Tensor, window: int, order: int, derivative: int = 0) -> Tensor:
    """Savitzky-Golay filter over the last axis (0.1 s steps), rounded to eight decimals as in the devkit."""
    return torch.round(values @ _filter(values.device, values.shape[-1], window, order, derivative), decimals=8)


def unwrap(heading: Tensor) -> Tensor:
    """Heading made continuous by rounding each difference to whole turns."""
    turns = torch.cumsum(torch.round(torch.diff(heading, dim=-1) / (2 * math.pi)), -1)
    return heading - 2 * math.pi * torch.nn.functional.pad(turns, (1, 0))


def comfort_values(states: Tensor) -> tuple[Tensor, ...]:
    """The six smoothed quantities of BOUNDS, (..., 41) each, for states (..., 41, 11).

    Every filter output is rounded to eight decimals, as in the devkit.
    """
    n = NUM_STATES  # the devkit passes the number of samples as window; only the yaw functions ignore it
    accel_x, accel_y = states[..., 5], states[..., 6]
    heading = unwrap(states[..., 2])
    return (
        smooth(accel_x, n, 2),
        smooth(accel_y, n, 2),
        smooth(smooth(torch.hypot(accel_x, accel_y), 8, 2), n, 2, derivative=1),
        smooth(smooth(accel_x, 8, 2), n, 2, derivative=1),
        smooth(heading, 5, 3, derivative=2),
        smooth(heading, 5, 2, derivative=1),
    )


def within_bounds(values: Sequence[Tensor]) -> Tensor:
    """Which quantities (..., time), in the order of BOUNDS, stay strictly within them: (..., 6) bool."""
    return torch.stack([((b.low < v) & (v < b.high)).all(-1) for v, b in zip(values, BOUNDS)], dim=-1)


def comfort_flags(states: Tensor) -> Tensor:
    """Which quantities stay strictly within BOUNDS: (..., 6) bool for states (..., 41, 11)."""
    return within_bounds(comfort_values(states))
