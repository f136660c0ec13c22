"""Comfort: six smoothed motion quantities within bounds at every step; EPDMS judges them with the past before them, and
compares the plans of two frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.ego import REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.constants import constant
from navsim_bridge.pdm.epdms_scene import EPDMSBatch

NUM_STATES = 41
_MOTION_COLUMNS = (2, 5, 6)  # of a state: heading, longitudinal and lateral acceleration
_LATEST_PREVIOUS = 0.55  # [s]
_LARGEST_RMS = (0.7, 0.5, 0.1, 0.1)  # |a| [m/s^2], jerk [m/s^3], yaw rate [rad/s], yaw acceleration [rad/s^2]


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
    # centered positions keep the least squares well conditioned
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


def _filter(samples: int, window: int, order: int, derivative: int) -> NDArray[np.float64]:
    delta = float(np.mean(np.diff(np.arange(samples) * 0.1))) if derivative else 1.0  # [s] as the devkit derives it
    return savgol_matrix(samples, min(window, samples), order, derivative, delta).T.copy()


def smooth(values: Tensor, window: int, order: int, derivative: int = 0) -> Tensor:
    """Savitzky-Golay filter over the last axis (0.1 s steps), rounded to eight decimals as in the devkit."""
    matrix = constant(values.device, _filter, values.shape[-1], window, order, derivative)
    return torch.round(values @ matrix, decimals=8)


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


def history_comfort_flags(scenes: EPDMSBatch, states: Tensor) -> Tensor:
    """Which quantities of ``BOUNDS`` hold over past and plan: (scene, candidate, 6) bool.

    Unlike in v1, accelerations are those of the center (with the devkit's signs: both terms along x), jerk takes a
    window of 15, and the recorded past precedes the states (scene, candidate, 41, 11). Past states have no yaw rate.
    """
    spin = states[..., 9].square() + states[..., 10]
    columns = {
        "accel_x": states[..., 5] + REAR_AXLE_TO_CENTER * spin,
        "accel_y": states[..., 6],
        "magnitude": torch.hypot(states[..., 5], states[..., 6]),
        "heading": states[..., 2],
    }
    past_heading, past_x, past_y = scenes.past.unbind(-1)
    before = {
        "accel_x": past_x,
        "accel_y": past_y,
        "magnitude": torch.hypot(past_x, past_y),
        "heading": past_heading,
    }
    flags = torch.zeros((*states.shape[:2], len(BOUNDS)), dtype=torch.bool, device=states.device)
    for count in torch.unique(scenes.past_count).tolist():
        rows = (scenes.past_count == count).nonzero().squeeze(-1)
        whole = {
            name: torch.cat((before[name][rows, None, :count].expand(-1, states.shape[1], -1), values[rows]), dim=-1)
            for name, values in columns.items()
        }
        accel_x = smooth(whole["accel_x"], 8, 2)
        heading = unwrap(whole["heading"])
        values = (
            accel_x,
            smooth(whole["accel_y"], 8, 2),
            smooth(smooth(whole["magnitude"], 8, 2), 15, 2, derivative=1),
            smooth(accel_x, 15, 2, derivative=1),
            smooth(heading, 5, 3, derivative=2),
            smooth(heading, 5, 2, derivative=1),
        )
        flags[rows] = within_bounds(values)
    return flags


def motion_of(states: Tensor) -> Tensor:
    """Heading, longitudinal and lateral acceleration (..., 41, 3) of states: what two frames are compared by."""
    return states[..., _MOTION_COLUMNS]


def two_frame_extended_comfort(motion: Tensor, previous: Tensor, seconds: Tensor) -> Tensor:
    """1 where a plan moves as the plan of the frame before it would have, else 0; NaN without one.

    Args:
        motion: (scene, candidate, 41, 3) from ``motion_of`` the simulated plans.
        previous: (scene, candidate, 41, 3) the same of the plans that were made ``seconds`` earlier.
        seconds: (scene,) [s]; NaN where there is no previous frame.

    Raises:
        ValueError: a previous frame that is not at most 0.55 s, and at least one 0.1 s step, earlier.
    """
    known = ~torch.isnan(seconds)
    shift = torch.round(seconds / 0.1)  # half to even, as Python does
    bad = known & ~((seconds < _LATEST_PREVIOUS) & (shift >= 1))
    if bool(bad.any()):
        raise ValueError(
            f"the previous plan of scene {int(bad.nonzero()[0])} is {float(seconds[bad][0]):.3f} s earlier; two-frame "
            f"comfort compares plans at least one step of 0.1 s and less than {_LATEST_PREVIOUS} s apart"
        )
    result = torch.full(motion.shape[:2], torch.nan, dtype=torch.float64, device=motion.device)
    for steps in torch.unique(shift[known]).to(torch.int64).tolist():
        rows = (known & (shift == steps)).nonzero().squeeze(-1)
        now = _extended_features(motion[rows, :, :-steps])
        then = _extended_features(previous[rows, :, steps:])
        smoothness = [
            (one - two).square().mean(-1).sqrt() <= largest for one, two, largest in zip(now, then, _LARGEST_RMS)
        ]
        result[rows] = torch.stack(smoothness).all(0).to(torch.float64)
    return result


def _extended_features(motion: Tensor) -> tuple[Tensor, ...]:
    """|a|, its jerk, yaw rate and yaw acceleration of (..., time, 3)."""
    heading, accel_x, accel_y = motion.unbind(-1)
    accel = smooth(torch.hypot(accel_x, accel_y), 8, 2)
    heading = unwrap(heading)
    return (
        accel,
        smooth(accel, 15, 2, derivative=1),
        smooth(heading, 5, 2, derivative=1),
        smooth(heading, 5, 2, derivative=2),
    )
