"""The tracker (``simulate.track``) as one Triton kernel: one lane for each plan, float64.

Tangent and atan2 do not exist in Triton's interpreter, on which the CPU tests it: a tangent is sine by cosine, and an
angle is folded by arithmetic, which differs from the tensor code by a rounding unit. Launched without fused
multiply-adds, since the CPU fuses none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from navsim_bridge.ego import WHEEL_BASE
from navsim_bridge.pdm import parameters

_LANES = 32
"""Plans of one program; few, so that a chunk of some thousand plans spreads over all of a GPU."""

_PI = tl.constexpr(math.pi)
_TURN = tl.constexpr(2 * math.pi)
_STEPS = tl.constexpr(parameters.NUM_STEPS)
_HORIZON = tl.constexpr(parameters.HORIZON)
_INDEX_SUM = tl.constexpr((parameters.HORIZON - 1) * parameters.HORIZON / 2)
_STEP = tl.constexpr(parameters.STEP_SECONDS)
_DT = tl.constexpr(parameters.MOTION_DT)
_BASE = tl.constexpr(WHEEL_BASE)
_STOPPED = tl.constexpr(parameters.STOPPED_SPEED)
_BRAKING = tl.constexpr(parameters.BRAKING_GAIN)
_SPEED = tl.constexpr(parameters.SPEED_GAIN)
_HEADING = tl.constexpr(parameters.HEADING_WEIGHT)
_SMALL = tl.constexpr(parameters.SMALL_CURVATURE)
_ACCEL = tl.constexpr(parameters.ACCEL_GAIN)
_STEERING = tl.constexpr(parameters.STEERING_GAIN)
_MAX_STEERING = tl.constexpr(parameters.MAX_STEERING)


@triton.jit
def _wrap(angle):  # type: ignore[no-untyped-def]
    """``geometry.wrap_angle``."""
    shifted = angle + _PI
    turns = tl.floor(shifted / _TURN)
    return tl.where(turns == 0.0, shifted, shifted - turns * _TURN) - _PI


@triton.jit
def _fold(angle):  # type: ignore[no-untyped-def]
    """atan2 of sine and cosine."""
    turns = tl.floor((angle + _PI) / _TURN)
    return tl.where(tl.abs(angle) <= _PI, angle, angle - turns * _TURN)


@triton.jit
def _track(start, poses, speed, scratch, states, plans, candidates, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """start (scene, 11), poses (plan, 41, 3), speed (plan, 40) -> states (plan, 41, 11).

    scratch (3, 50, plan): pivots and right sides of the curvature fit, then curvatures with the last one repeated.
    """
    plan = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = plan < plans
    pose = poses + plan.to(tl.int64) * ((_STEPS + 1) * 3)
    fast = speed + plan.to(tl.int64) * _STEPS
    rows: tl.constexpr = _STEPS + _HORIZON
    pivots, sides, kappas = scratch + plan, scratch + rows * plans + plan, scratch + 2 * rows * plans + plan
    nothing = tl.zeros((LANES,), tl.float64)

    # curvature: eliminated from the far end
    pivot, side = nothing, nothing
    later = tl.load(pose + _STEPS * 3 + 2, live, other=0.0)
    for k in range(_STEPS):
        i = _STEPS - 1 - k
        here = tl.load(pose + i * 3 + 2, live, other=0.0)
        reach = _STEP * tl.load(fast + i, live, other=0.0)
        denominator = 1.0 + pivot
        side = reach * _wrap(later - here) + side / denominator
        pivot = reach * reach + pivot / denominator
        later = here
        tl.store(pivots + k * plans, pivot, live)
        tl.store(sides + k * plans, side, live)
    kappa = side / (pivot + _SMALL)
    tl.store(kappas, kappa, live)
    tl.debug_barrier()
    for i in range(1, rows):
        k = tl.maximum(_STEPS - 1 - i, 0)
        further = tl.load(sides + k * plans, live, other=0.0) + kappa
        further = further / (1.0 + tl.load(pivots + k * plans, live, other=0.0))
        kappa = tl.where(i < _STEPS, further, kappa)
        tl.store(kappas + i * plans, kappa, live)
    tl.debug_barrier()

    first = start + (plan // candidates) * 11
    out = states + plan.to(tl.int64) * ((_STEPS + 1) * 11)
    for c in tl.static_range(11):
        tl.store(out + c, tl.load(first + c, live, other=0.0), live)
    x, y = tl.load(first, live, other=0.0), tl.load(first + 1, live, other=0.0)
    heading, vx = tl.load(first + 2, live, other=0.0), tl.load(first + 3, live, other=0.0)
    ax, delta = tl.load(first + 5, live, other=0.0), tl.load(first + 7, live, other=0.0)
    yaw_rate = tl.load(first + 9, live, other=0.0)
    limit = tl.full((LANES,), _MAX_STEERING, tl.float64)  # a bare number in tl.minimum would become a float32
    tangent = tl.sin(delta) / tl.cos(delta)
    for k in range(_STEPS):
        ref_speed = tl.load(fast + tl.minimum(k + _HORIZON, _STEPS - 1), live, other=0.0)
        ref_x, ref_y = tl.load(pose + k * 3, live, other=0.0), tl.load(pose + k * 3 + 1, live, other=0.0)
        ref_heading = tl.load(pose + k * 3 + 2, live, other=0.0)
        speed_error = vx - ref_speed
        stopping = (ref_speed <= _STOPPED) & (vx <= _STOPPED)
        accel = tl.where(stopping, -_BRAKING * speed_error, -_SPEED * speed_error)
        lateral = -(x - ref_x) * tl.sin(ref_heading) + (y - ref_y) * tl.cos(ref_heading)
        heading_error = _fold(heading - ref_heading)
        base, slope, wheel = _STEP * vx, (_STEP * _STEP) * accel, delta / _BASE
        driven, turned, turned_far, gain_heading, gain_lateral = nothing, nothing, nothing, nothing, nothing
        for j in tl.static_range(_HORIZON):
            advance = base + slope * j
            remaining = base * (_HORIZON - 1 - j) + slope * (_INDEX_SUM - j * (j + 1) / 2)
            turning = advance * (wheel - tl.load(kappas + (k + j) * plans, live, other=0.0))
            gained = advance * (_STEP * j / _BASE)
            driven += advance
            turned += turning
            turned_far += turning * remaining
            gain_heading += gained
            gain_lateral += gained * remaining
        lateral_end = lateral + heading_error * driven + turned_far
        heading_end = _fold(heading_error + turned)
        rate = -(gain_lateral * lateral_end + _HEADING * gain_heading * heading_end) / (
            gain_lateral * gain_lateral + _HEADING * gain_heading * gain_heading + 1.0
        )
        rate = tl.where(stopping, nothing, rate)
        ax = _ACCEL * (accel - ax) + ax
        applied = _STEERING * (_DT * rate) / _DT
        x = x + vx * tl.cos(heading) * _DT
        y = y + vx * tl.sin(heading) * _DT
        heading = _wrap(heading + vx * tangent / _BASE * _DT)
        vx = vx + ax * _DT
        delta = tl.minimum(tl.maximum(delta + applied * _DT, -limit), limit)
        tangent = tl.sin(delta) / tl.cos(delta)
        new_yaw_rate = vx * tangent / _BASE
        yaw_accel = (new_yaw_rate - yaw_rate) / _DT
        yaw_rate = new_yaw_rate
        row = out + (k + 1) * 11
        tl.store(row, x, live)
        tl.store(row + 1, y, live)
        tl.store(row + 2, heading, live)
        tl.store(row + 3, vx, live)
        tl.store(row + 4, nothing, live)
        tl.store(row + 5, ax, live)
        tl.store(row + 6, nothing, live)
        tl.store(row + 7, delta, live)
        tl.store(row + 8, applied, live)
        tl.store(row + 9, yaw_rate, live)
        tl.store(row + 10, yaw_accel, live)


def track(ego_state: Tensor, poses: Tensor, speed: Tensor) -> Tensor:
    """As ``simulate.track``, with the speed profile (scene, candidate, 40) of ``simulate.fit_speed``."""
    num_scenes, num_candidates = poses.shape[:2]
    plans = num_scenes * num_candidates
    states = poses.new_empty((num_scenes, num_candidates, parameters.NUM_STEPS + 1, 11))
    if plans:
        scratch = poses.new_empty((3, parameters.NUM_STEPS + parameters.HORIZON, plans))
        launch: Any = _track[(triton.cdiv(plans, _LANES),)]
        arguments = (ego_state.contiguous(), poses.contiguous(), speed.contiguous(), scratch, states)
        with torch.cuda.device_of(poses):  # Triton launches on the current device
            launch(*arguments, plans, num_candidates, LANES=_LANES, num_warps=1, enable_fp_fusion=False)
    return states
