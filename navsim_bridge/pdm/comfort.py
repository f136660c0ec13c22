"""Comfort: six smoothed motion quantities of the rear axle within bounds at every step."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_STATES = 41
_DT = float(np.mean(np.diff(np.arange(NUM_STATES) * 0.1)))  # [s] as the devkit derives it

_LON_ACCEL = (-4.05, 2.40)  # [m/s^2]
_LAT_ACCEL = (-4.89, 4.89)  # [m/s^2]
_JERK = (-8.37, 8.37)  # [m/s^3]
_LON_JERK = (-4.13, 4.13)  # [m/s^3]
_YAW_ACCEL = (-1.93, 1.93)  # [rad/s^2]
_YAW_RATE = (-0.95, 0.95)  # [rad/s]


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


@functools.lru_cache(maxsize=8)
def _filters(device: torch.device) -> dict[str, Tensor]:
    n = NUM_STATES
    # the devkit passes the number of samples as window; only the yaw functions ignore it and keep 5
    matrices = {
        "accel": savgol_matrix(n, n, 2),
        "before_jerk": savgol_matrix(n, 8, 2),
        "jerk": savgol_matrix(n, n, 2, derivative=1, delta=_DT),
        "yaw_rate": savgol_matrix(n, 5, 2, derivative=1, delta=_DT),
        "yaw_accel": savgol_matrix(n, 5, 3, derivative=2, delta=_DT),
    }
    return {name: torch.from_numpy(matrix.T.copy()).to(device) for name, matrix in matrices.items()}


def _unwrap(heading: Tensor) -> Tensor:
    """Heading made continuous by rounding each difference to whole turns."""
    turns = torch.cumsum(torch.round(torch.diff(heading, dim=-1) / (2 * math.pi)), -1)
    return heading - 2 * math.pi * torch.nn.functional.pad(turns, (1, 0))


def comfort_flags(states: Tensor) -> Tensor:
    """Which of six quantities stay strictly within bounds: (..., 6) bool for states (..., 41, 11).

    Order: longitudinal acceleration, lateral acceleration, jerk magnitude, longitudinal jerk, yaw
    acceleration, yaw rate. Every filter output is rounded to eight decimals, as in the devkit.
    """
    filters = _filters(states.device)

    def smooth(name: str, values: Tensor) -> Tensor:
        return torch.round(values @ filters[name], decimals=8)

    accel_x, accel_y = states[..., 5], states[..., 6]
    heading = _unwrap(states[..., 2])
    checks = (
        (smooth("accel", accel_x), _LON_ACCEL),
        (smooth("accel", accel_y), _LAT_ACCEL),
        (smooth("jerk", smooth("before_jerk", torch.hypot(accel_x, accel_y))), _JERK),
        (smooth("jerk", smooth("before_jerk", accel_x)), _LON_JERK),
        (smooth("yaw_accel", heading), _YAW_ACCEL),
        (smooth("yaw_rate", heading), _YAW_RATE),
    )
    return torch.stack([((low < value) & (value < high)).all(-1) for value, (low, high) in checks], dim=-1)
