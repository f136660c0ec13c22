"""From a plan to 41 tracked poses: interpolation, batch LQR tracker and kinematic bicycle.

Reproduces the devkit's PDM simulator (navsim v1.1 and v2.1) including its quirks, which the comments
name. Works in the global frame, because the devkit's rounding of map-sized coordinates is amplified for
plans that stand still: there the curvature fit divides noise by noise.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.plan import NUM_POSES, POSE_INTERVAL
from navsim_bridge.ego import WHEEL_BASE
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.constants import constant
from navsim_bridge.pdm.geometry import read_back_rear_axle, wrap_angle
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


def plan_knots(ego_pose: Tensor, plans: Tensor) -> Tensor:
    """Global-frame knots of ego-frame plans, first knot at t = 0, as the devkit composes and reads them.

    Args:
        ego_pose: (scene, 3) global rear-axle pose at t = 0.
        plans: (scene, candidate, pose, 3) float64, ego rear-axle frame.

    Returns:
        (scene, candidate, pose + 1, 3). Headings come from atan2, so multiples of 2 pi vanish.
    """
    x, y, heading = (column[:, None, None] for column in ego_pose.unbind(-1))
    cos, sin = torch.cos(heading), torch.sin(heading)
    plan_cos, plan_sin = torch.cos(plans[..., 2]), torch.sin(plans[..., 2])
    future = torch.stack(
        (
            cos * plans[..., 0] - sin * plans[..., 1] + x,
            sin * plans[..., 0] + cos * plans[..., 1] + y,
            torch.atan2(sin * plan_cos + cos * plan_sin, cos * plan_cos - sin * plan_sin),
        ),
        dim=-1,
    )
    present = ego_pose[:, None, None, :].expand(-1, plans.shape[1], 1, 3)
    return torch.cat((present, read_back_rear_axle(future)), dim=2)


def plan_times_us(ego_time_us: Tensor, num_poses: int = NUM_POSES, interval: float = POSE_INTERVAL) -> Tensor:
    """Time stamps [us] of the knots of ``plan_knots``: (..., num_poses + 1) int64 for (...) int64.

    The devkit adds seconds in float64 and truncates, so a stamp can be one microsecond early.
    """
    seconds = torch.arange(num_poses, dtype=torch.float64, device=ego_time_us.device) * interval + interval
    later = ((seconds + ego_time_us.to(torch.float64).unsqueeze(-1) * 1e-6) * 1e6).to(torch.int64)
    return torch.cat((ego_time_us.unsqueeze(-1), later), dim=-1)


def query_times_us(ego_time_us: Tensor) -> Tensor:
    """The 41 sample times [us] of the simulation: (scene, 41) int64, truncated like the knots."""
    seconds = constant(ego_time_us.device, _query_seconds)
    return ((seconds + ego_time_us.to(torch.float64).unsqueeze(-1) * 1e-6) * 1e6).to(torch.int64)


def _query_seconds() -> NDArray[np.float64]:
    return np.arange(0, 4.1, 0.1)[: NUM_STEPS + 1]


def ego_state_as_read_back(ego_state: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ego state (..., 11) with its rear axle after the devkit's round trip over the vehicle center."""
    state = np.array(ego_state, dtype=np.float64)
    state[..., :3] = read_back_rear_axle(torch.from_numpy(state[..., :3].copy())).numpy()
    return state


def interpolate(knots: Tensor, knot_times_us: Tensor, knot_count: Tensor, times_us: Tensor) -> Tensor:
    """Poses at the query times, linear in integer microseconds between knots, read back from the center.

    Args:
        knots: (scene, candidate, knot, 3) global poses.
        knot_times_us: (scene, knot) increasing; entries beyond ``knot_count`` are ignored.
        knot_count: (scene,) valid knots, at least two.
        times_us: (scene, time) query times, clipped to the knots' range.

    Returns:
        (scene, candidate, time, 3) with headings in [-pi, pi).
    """
    if choice.use_numba(knots):
        from navsim_bridge.pdm.compiled import tracker

        return tracker.interpolate(knots, knot_times_us, knot_count, times_us)
    num_candidates = knots.shape[1]
    last = (knot_count - 1).unsqueeze(-1)
    padding = torch.arange(knots.shape[2], device=knots.device) > last
    stamps = knot_times_us.masked_fill(padding, torch.iinfo(torch.int64).max)
    query = torch.minimum(
        torch.maximum(times_us, stamps[:, :1]), torch.gather(knot_times_us, 1, last).expand_as(times_us)
    )
    upper = torch.searchsorted(stamps, query).clamp_min(1)  # (scene, time)
    upper = torch.minimum(upper, last)
    lower = upper - 1
    span = (torch.gather(stamps, 1, upper) - torch.gather(stamps, 1, lower)).to(torch.float64)
    since = (query - torch.gather(stamps, 1, lower)).to(torch.float64)
    unwrapped = knots.clone()
    step = knots[..., 1:, 2] - knots[..., :-1, 2]
    folded = wrap_angle(step)
    folded = torch.where((folded == -math.pi) & (step > 0), math.pi, folded)  # half turns keep their sign
    # np.unwrap leaves a jump below half a turn as it is, bit for bit
    correction = torch.where(step.abs() < math.pi, 0.0, folded - step)
    unwrapped[..., 1:, 2] = knots[..., 1:, 2] + torch.cumsum(correction, -1)

    def pick(index: Tensor) -> Tensor:
        index = index[:, None, :, None].expand(-1, num_candidates, -1, 3)
        return torch.gather(unwrapped, 2, index)

    below = pick(lower)
    slope = (pick(upper) - below) / span[:, None, :, None]
    poses = slope * since[:, None, :, None] + below
    heading = wrap_angle(poses[..., 2:])
    return read_back_rear_axle(torch.cat((poses[..., :2], heading), dim=-1))


def speed_fit_matrix() -> NDArray[np.float64]:
    """Constant (40, 40) map from displacements along the heading to the fitted speed profile.

    The devkit stacks cosine and sine rows per displacement; since cos^2 + sin^2 = 1 the normal matrix does
    not depend on the plan. Its regularizer was meant to penalize jerk, but the helper that builds the
    difference matrix overwrites the +1 diagonal: what remains is a ridge on the accelerations and one
    difference between the last two.
    """
    n = NUM_STEPS
    displacement = np.tril(np.full((n, n), STEP_SECONDS**2), 0)  # row i: 0.1 v0 + 0.01 (a_1 + ... + a_i)
    displacement[:, 0] = STEP_SECONDS
    broken = np.zeros((n - 2, n))
    broken[np.arange(n - 2), np.arange(n - 2) + 1] = -1.0
    broken[-1, -1] = 1.0
    normal = displacement.T @ displacement + 1e-4 * broken.T @ broken
    fit = np.linalg.solve(normal, displacement.T)
    integrate = np.tril(np.full((n, n), STEP_SECONDS))
    integrate[:, 0] = 1.0
    return integrate @ fit


def fit_speed(poses: Tensor) -> Tensor:
    """Speed profile (..., 40) [m/s] that best explains poses (..., 41, 3)."""
    step = poses[..., 1:, :2] - poses[..., :-1, :2]
    heading = poses[..., :-1, 2]
    along = step[..., 0] * torch.cos(heading) + step[..., 1] * torch.sin(heading)
    return along @ constant(poses.device, speed_fit_matrix).T


def fit_curvature(poses: Tensor, speed: Tensor) -> Tensor:
    """Curvature profile (..., 40) [1/m] that best explains the heading changes at the fitted speeds.

    Least squares over kappa_0 and 39 rates with penalty 1e-2 per rate and 1e-10 on kappa_0. In terms of the
    profile itself the normal matrix is tridiagonal; eliminated from the far end every pivot is a sum of
    positive terms, so nothing cancels even when the plan stands still and 1e-10 alone holds kappa_0.
    """
    turn = wrap_angle(poses[..., 1:, 2] - poses[..., :-1, 2])
    reach = STEP_SECONDS * speed
    weight, target = (reach * reach).unbind(-1), (reach * turn).unbind(-1)
    last = NUM_STEPS - 1
    pivot = [weight[last]]  # pivot minus one, from the far end
    rhs = [target[last]]
    for i in range(last - 1, -1, -1):
        denominator = 1.0 + pivot[-1]
        rhs.append(target[i] + rhs[-1] / denominator)
        pivot.append(weight[i] + pivot[-1] / denominator)
    kappa = [rhs[-1] / (pivot[-1] + SMALL_CURVATURE)]
    for i in range(1, NUM_STEPS):
        kappa.append((rhs[last - i] + kappa[-1]) / (1.0 + pivot[last - i]))
    return torch.stack(kappa, dim=-1)


def track(ego_state: Tensor, poses: Tensor) -> Tensor:
    """States reached by the tracker and the bicycle when following poses.

    Args:
        ego_state: (scene, 11) global state at t = 0.
        poses: (scene, candidate, 41, 3) global poses to follow.

    Returns:
        (scene, candidate, 41, 11); the first state is the ego state, later ones have vy = ay = 0.
    """
    if choice.use_numba(poses):
        from navsim_bridge.pdm.compiled import tracker

        return tracker.track(ego_state, poses, constant(poses.device, speed_fit_matrix))
    speed = fit_speed(poses)
    if choice.use_triton(poses):
        from navsim_bridge.pdm.compiled import triton_tracker

        return triton_tracker.track(ego_state, poses, speed)
    kappa = fit_curvature(poses, speed)
    device = poses.device
    j = torch.arange(HORIZON, dtype=torch.float64, device=device)
    later_steps = HORIZON - 1 - j  # how many tracker steps follow step j, and the sum of their indices
    later_index_sum = (HORIZON - 1) * HORIZON / 2 - j * (j + 1) / 2
    input_gain = STEP_SECONDS * j / WHEEL_BASE  # a unit steering rate has turned the wheel by 0.1 j at step j

    start = ego_state.unsqueeze(1).expand(-1, poses.shape[1], -1)
    x, y, heading, vx, _, ax, _, delta, _, yaw_rate, _ = start.unbind(-1)
    ref_x, ref_y, ref_heading = (column.unbind(-1) for column in poses.unbind(-1))
    ref_cos, ref_sin = poses[..., 2].cos().unbind(-1), poses[..., 2].sin().unbind(-1)
    speeds = speed.unbind(-1)
    padded_kappa = torch.cat((kappa, kappa[..., -1:].expand(*kappa.shape[:-1], HORIZON)), dim=-1)
    dt = MOTION_DT
    zero = torch.zeros_like(x)
    states = [start]
    for k in range(NUM_STEPS):
        ref_speed = speeds[min(k + HORIZON, NUM_STEPS - 1)]
        speed_error = vx - ref_speed
        stopping = (ref_speed <= STOPPED_SPEED) & (vx <= STOPPED_SPEED)  # signed: reversing counts
        accel = torch.where(stopping, -BRAKING_GAIN * speed_error, -SPEED_GAIN * speed_error)

        dx, dy = x - ref_x[k], y - ref_y[k]
        lateral = -dx * ref_sin[k] + dy * ref_cos[k]
        heading_error = heading - ref_heading[k]
        heading_error = torch.atan2(heading_error.sin(), heading_error.cos())
        # ten linear steps of the lateral error dynamics, summed in closed form
        base, slope = (STEP_SECONDS * vx).unsqueeze(-1), (STEP_SECONDS * STEP_SECONDS * accel).unsqueeze(-1)
        advance = base + slope * j  # distance driven in step j
        remaining = base * later_steps + slope * later_index_sum  # distance driven after step j
        turning = advance * (delta.unsqueeze(-1) / WHEEL_BASE - padded_kappa[..., k : k + HORIZON])
        lateral_end = lateral + heading_error * advance.sum(-1) + (turning * remaining).sum(-1)
        heading_end = heading_error + turning.sum(-1)
        heading_end = torch.atan2(heading_end.sin(), heading_end.cos())
        gained = advance * input_gain
        gain_heading, gain_lateral = gained.sum(-1), (gained * remaining).sum(-1)
        steering_rate = -(gain_lateral * lateral_end + HEADING_WEIGHT * gain_heading * heading_end) / (
            gain_lateral * gain_lateral + HEADING_WEIGHT * gain_heading * gain_heading + 1.0
        )
        steering_rate = torch.where(stopping, zero, steering_rate)

        ax = ACCEL_GAIN * (accel - ax) + ax
        applied_rate = STEERING_GAIN * (dt * steering_rate) / dt
        x = x + vx * heading.cos() * dt
        y = y + vx * heading.sin() * dt
        heading = wrap_angle(heading + vx * delta.tan() / WHEEL_BASE * dt)
        vx = vx + ax * dt
        delta = (delta + applied_rate * dt).clamp(-MAX_STEERING, MAX_STEERING)
        new_yaw_rate = vx * delta.tan() / WHEEL_BASE
        yaw_accel = (new_yaw_rate - yaw_rate) / dt
        yaw_rate = new_yaw_rate
        states.append(
            torch.stack((x, y, heading, vx, zero, ax, zero, delta, applied_rate, yaw_rate, yaw_accel), dim=-1)
        )
    return torch.stack(states, dim=2)


def simulate(
    ego_state: Tensor,
    ego_time_us: Tensor,
    plans: Tensor,
    reference: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    interval: float = POSE_INTERVAL,
    recorded: Tensor | None = None,
) -> Tensor:
    """Simulated states of plans, of the reference before and of recorded plans behind them when given; global frame.

    A plan that ends before 4 s stands at its last pose from then on; of one that ends later nothing is read beyond.

    Args:
        ego_state: (scene, 11) global state at t = 0.
        ego_time_us: (scene,) int64.
        plans: (scene, candidate, pose, 3) float64 ego-frame plans.
        reference: global knots (scene, knot, 3), their times (scene, knot) and counts (scene,).
        interval: [s] between the poses of plans, the first at it.
        recorded: (scene, more, 8, 3) further plans, as far apart as usual.

    Returns:
        (scene, candidate, 41, 11), with the reference (1 + candidate) and recorded plans (candidate + more).
    """
    times = query_times_us(ego_time_us)
    given = [(plans, interval)]
    if recorded is not None:
        alike = interval == POSE_INTERVAL and plans.shape[2] == recorded.shape[2]
        given = [(torch.cat((plans, recorded), dim=1), interval)] if alike else [*given, (recorded, POSE_INTERVAL)]
    poses = []
    if reference is not None:
        knots, stamps, counts = reference
        poses.append(interpolate(knots.unsqueeze(1), stamps, counts, times))
    for some, apart in given:
        stamps = plan_times_us(ego_time_us, some.shape[2], apart)
        counts = torch.full_like(ego_time_us, some.shape[2] + 1)
        poses.append(interpolate(plan_knots(ego_state[:, :3], some), stamps, counts, times))
    return track(ego_state, torch.cat(poses, dim=1))
