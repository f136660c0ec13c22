"""``simulate.interpolate`` and ``simulate.track`` compiled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.ego import REAR_AXLE_TO_CENTER, WHEEL_BASE
from navsim_bridge.pdm.compiled.jit import helper, kernel
from navsim_bridge.pdm.parameters import (
    ACCEL_GAIN,
    BRAKING_GAIN,
    HEADING_WEIGHT,
    HORIZON,
    MAX_STEERING,
    MOTION_DT,
    NUM_STEPS,
    SMALL_CURVATURE,
    SPEED_GAIN,
    STEERING_GAIN,
    STEP_SECONDS,
    STOPPED_SPEED,
)

_PI, _TURN = math.pi, 2 * math.pi
_LAST = NUM_STEPS - 1


@helper
def _wrap(angle: float) -> float:
    """``geometry.wrap_angle``."""
    shifted = angle + _PI
    if 0.0 <= shifted < _TURN:  # its own remainder
        return shifted - _PI
    return shifted % _TURN - _PI


@helper
def _fold(angle: float) -> float:
    """atan2 of sine and cosine, up to a rounding unit."""
    if abs(angle) <= _PI:
        return angle
    return angle - _TURN * math.floor((angle + _PI) / _TURN)


@kernel("void(f8[:,:,:,:], i8[:,:], i8[:], i8[:,:], f8[:,:,:,::1])")
def _interpolate(knots: Any, stamps: Any, counts: Any, times: Any, poses: Any) -> None:
    """knots (scene, candidate, knot, 3) at stamps (scene, knot), times (scene, time) -> poses (..., time, 3)."""
    num_times = times.shape[1]
    upper, since, span = np.empty(num_times, np.int64), np.empty(num_times), np.empty(num_times)
    heading = np.empty(knots.shape[2])
    for s in range(len(knots)):
        last = counts[s] - 1
        for t in range(num_times):
            query = min(max(times[s, t], stamps[s, 0]), stamps[s, last])
            u = 1
            while u < last and stamps[s, u] < query:
                u += 1
            upper[t], since[t], span[t] = u, query - stamps[s, u - 1], stamps[s, u] - stamps[s, u - 1]
        for c in range(knots.shape[1]):
            knot = knots[s, c]
            heading[0] = knot[0, 2]
            turned = 0.0
            for i in range(1, last + 1):
                step = knot[i, 2] - knot[i - 1, 2]
                folded = _wrap(step)
                if folded == -_PI and step > 0:  # half turns keep their sign
                    folded = _PI
                if not abs(step) < _PI:  # np.unwrap leaves a jump below half a turn as it is
                    turned += folded - step
                heading[i] = knot[i, 2] + turned
            for t in range(num_times):
                b, a = upper[t], upper[t] - 1
                x = (knot[b, 0] - knot[a, 0]) / span[t] * since[t] + knot[a, 0]
                y = (knot[b, 1] - knot[a, 1]) / span[t] * since[t] + knot[a, 1]
                h = _wrap((heading[b] - heading[a]) / span[t] * since[t] + heading[a])
                step_x, step_y = REAR_AXLE_TO_CENTER * math.cos(h), REAR_AXLE_TO_CENTER * math.sin(h)
                pose = poses[s, c, t]
                pose[0], pose[1], pose[2] = (x + step_x) - step_x, (y + step_y) - step_y, h


@helper
def _fit_speed(poses: Any, cos: Any, sin: Any, fit: Any, speed: Any) -> None:
    speed[:] = 0.0
    for k in range(NUM_STEPS):
        along = (poses[k + 1, 0] - poses[k, 0]) * cos[k] + (poses[k + 1, 1] - poses[k, 1]) * sin[k]
        for i in range(NUM_STEPS):
            speed[i] += fit[k, i] * along


@helper
def _fit_curvature(poses: Any, speed: Any, pivot: Any, side: Any, kappa: Any) -> None:
    """kappa (50,): the last one repeated, so that the tracker can look ahead of it."""
    for k in range(NUM_STEPS):
        i = _LAST - k
        reach = STEP_SECONDS * speed[i]
        pivot[k] = reach * reach
        side[k] = reach * _wrap(poses[i + 1, 2] - poses[i, 2])
        if k:
            denominator = 1.0 + pivot[k - 1]
            side[k] += side[k - 1] / denominator
            pivot[k] += pivot[k - 1] / denominator
    kappa[0] = side[_LAST] / (pivot[_LAST] + SMALL_CURVATURE)
    for i in range(1, NUM_STEPS):
        kappa[i] = (side[_LAST - i] + kappa[i - 1]) / (1.0 + pivot[_LAST - i])
    for i in range(NUM_STEPS, NUM_STEPS + HORIZON):
        kappa[i] = kappa[_LAST]


@kernel("void(f8[:,:], f8[:,:,:,:], f8[:,::1], f8[:,:,:,::1])")
def _track(start: Any, poses: Any, fit: Any, states: Any) -> None:
    """start (scene, 11), poses (scene, candidate, 41, 3), fit: the speed fit transposed -> states (..., 41, 11)."""
    cos, sin = np.empty(NUM_STEPS + 1), np.empty(NUM_STEPS + 1)
    speed, pivot, side = np.empty(NUM_STEPS), np.empty(NUM_STEPS), np.empty(NUM_STEPS)
    kappa = np.empty(NUM_STEPS + HORIZON)
    index_sum = (HORIZON - 1) * HORIZON / 2
    for s in range(len(poses)):
        for c in range(poses.shape[1]):
            pose, state = poses[s, c], states[s, c]
            for k in range(NUM_STEPS + 1):
                cos[k], sin[k] = math.cos(pose[k, 2]), math.sin(pose[k, 2])
            _fit_speed(pose, cos, sin, fit, speed)
            _fit_curvature(pose, speed, pivot, side, kappa)
            for column in range(11):
                state[0, column] = start[s, column]
            x, y, heading, vx, ax = start[s, 0], start[s, 1], start[s, 2], start[s, 3], start[s, 5]
            delta, yaw_rate = start[s, 7], start[s, 9]
            tangent = math.tan(delta)
            for k in range(NUM_STEPS):
                ref_speed = speed[min(k + HORIZON, _LAST)]
                speed_error = vx - ref_speed
                stopping = ref_speed <= STOPPED_SPEED and vx <= STOPPED_SPEED
                accel = -BRAKING_GAIN * speed_error if stopping else -SPEED_GAIN * speed_error
                lateral = -(x - pose[k, 0]) * sin[k] + (y - pose[k, 1]) * cos[k]
                heading_error = _fold(heading - pose[k, 2])
                base, slope = STEP_SECONDS * vx, STEP_SECONDS * STEP_SECONDS * accel
                wheel = delta / WHEEL_BASE
                driven = turned = turned_far = gain_heading = gain_lateral = 0.0
                for j in range(HORIZON):
                    advance = base + slope * j
                    remaining = base * (HORIZON - 1 - j) + slope * (index_sum - j * (j + 1) / 2)
                    turning = advance * (wheel - kappa[k + j])
                    gained = advance * (STEP_SECONDS * j / WHEEL_BASE)
                    driven += advance
                    turned += turning
                    turned_far += turning * remaining
                    gain_heading += gained
                    gain_lateral += gained * remaining
                rate = 0.0
                if not stopping:
                    lateral_end = lateral + heading_error * driven + turned_far
                    heading_end = _fold(heading_error + turned)
                    rate = -(gain_lateral * lateral_end + HEADING_WEIGHT * gain_heading * heading_end) / (
                        gain_lateral * gain_lateral + HEADING_WEIGHT * gain_heading * gain_heading + 1.0
                    )
                ax = ACCEL_GAIN * (accel - ax) + ax
                applied = STEERING_GAIN * (MOTION_DT * rate) / MOTION_DT
                x = x + vx * math.cos(heading) * MOTION_DT
                y = y + vx * math.sin(heading) * MOTION_DT
                heading = _wrap(heading + vx * tangent / WHEEL_BASE * MOTION_DT)
                vx = vx + ax * MOTION_DT
                delta = min(max(delta + applied * MOTION_DT, -MAX_STEERING), MAX_STEERING)
                tangent = math.tan(delta)
                new_yaw_rate = vx * tangent / WHEEL_BASE
                yaw_accel = (new_yaw_rate - yaw_rate) / MOTION_DT
                yaw_rate = new_yaw_rate
                row = state[k + 1]
                row[0], row[1], row[2], row[3], row[4], row[5] = x, y, heading, vx, 0.0, ax
                row[6], row[7], row[8], row[9], row[10] = 0.0, delta, applied, yaw_rate, yaw_accel


def interpolate(knots: Tensor, knot_times_us: Tensor, knot_count: Tensor, times_us: Tensor) -> Tensor:
    """As ``simulate.interpolate``."""
    poses = np.empty((*knots.shape[:2], times_us.shape[1], 3))
    _interpolate(knots.numpy(), knot_times_us.numpy(), knot_count.numpy(), times_us.numpy(), poses)
    return torch.from_numpy(poses)


def track(ego_state: Tensor, poses: Tensor, fit: Tensor) -> Tensor:
    """As ``simulate.track``; fit: ``simulate.speed_fit_matrix``."""
    states = np.empty((*poses.shape[:2], NUM_STEPS + 1, 11))
    _track(ego_state.numpy(), poses.numpy(), fit.numpy().T.copy(), states)
    return torch.from_numpy(states)
