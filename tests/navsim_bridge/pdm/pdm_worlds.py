"""Hand-made scenes for the tests of the PDM score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.simulate import plan_knots, plan_times_us


def road(**changes: Any) -> MetricScene:
    """A straight road along x at a map-sized place, 200 m by 12 m with three lanes, ego at 10 m/s."""
    origin = np.array([586000.25, 4512000.5])
    squares = []
    for low, high in ((-6.0, 6.0), (-6.0, -2.0), (-2.0, 2.0), (2.0, 6.0)):
        squares.append(np.array([[-50.0, low], [150.0, low], [150.0, high], [-50.0, high]]) + origin)
    state = np.zeros(11)
    state[:2], state[3] = origin, 10.0
    plan = np.stack((np.arange(1, 9) * 5.0, np.zeros(8), np.zeros(8)), axis=-1)
    knots, times = reference_from_plan(plan, state, 1_600_000_000_000_000)
    line = np.zeros((41, 3))
    line[:, 0] = np.arange(41) * 5.0 - 50.0
    line[:, :2] += origin
    scene = MetricScene(
        token="road", log_name="test", ego_state=state, ego_time_us=1_600_000_000_000_000,
        reference_states=knots, reference_times_us=times,
        polygon_tokens=("block", "right", "middle", "left"),
        polygon_types=("ROADBLOCK", "LANE", "LANE", "LANE"),
        polygon_ring_offsets=np.arange(5), ring_offsets=np.arange(5) * 4, vertices=np.concatenate(squares),
        route_lane_ids=("middle",), centerline=line,
        frame_offsets=np.zeros(52, dtype=np.int64), object_track=np.zeros(0, dtype=np.int64),
        object_boxes=np.zeros((0, 5)), track_tokens=(), track_types=(), track_first_speed=np.zeros(0),
        provenance={},
    )  # fmt: skip
    return dataclasses.replace(scene, **changes)


def reference_from_plan(
    plan: NDArray[np.float64], ego_state: NDArray[np.float64], ego_time_us: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Knots and times of a plan (pose, 3) as the devkit treats a model's, to be the reference of a scene."""
    knots = plan_knots(torch.from_numpy(ego_state[None, :3]), torch.from_numpy(plan)[None, None])[0, 0]
    return knots.numpy(), plan_times_us(torch.tensor(ego_time_us), len(plan)).numpy()


def with_objects(
    scene: MetricScene,
    boxes: NDArray[np.float64],
    types: list[str] | None = None,
    speeds: Sequence[float] | NDArray[np.float64] | None = None,
    tokens: Sequence[str] | None = None,
) -> MetricScene:
    """The scene with objects (51, n, 5) relative to the ego; NaN rows are absent."""
    boxes = np.asarray(boxes, dtype=np.float64)
    count = boxes.shape[1]
    present = np.isfinite(boxes).all(-1)
    rows = boxes[present].copy()
    rows[:, :2] += scene.ego_state[:2]
    return dataclasses.replace(
        scene,
        frame_offsets=np.concatenate(([0], np.cumsum(present.sum(1)))),
        object_track=np.nonzero(present)[1],
        object_boxes=rows,
        track_tokens=tuple(tokens or (f"track{i}" for i in range(count))),
        track_types=tuple(types or ["VEHICLE"] * count),
        track_first_speed=np.asarray(speeds if speeds is not None else np.zeros(count), dtype=np.float64),
    )


def parked(x: float, y: float, heading: float = 0.0, length: float = 4.0, width: float = 2.0) -> NDArray[np.float64]:
    return np.tile(np.array([x, y, heading, length, width]), (51, 1, 1))


def straight(speed: float = 10.0, sideways: float = 0.0) -> torch.Tensor:
    plan = torch.zeros((1, 1, 8, 3), dtype=torch.float64)
    plan[..., 0] = torch.arange(1, 9) * 0.5 * speed
    plan[..., 1] = torch.linspace(0, sideways, 9)[1:]
    return plan


def moved(scene: MetricScene, angle: float, shift: float) -> MetricScene:
    """The whole scene turned about the ego by ``angle`` and moved by (shift, -shift)."""
    center = scene.ego_state[:2].copy()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def move(poses: NDArray[np.float64], heading: int | None = None) -> NDArray[np.float64]:
        poses = poses.copy()
        poses[..., :2] = (poses[..., :2] - center) @ turn.T + center + [shift, -shift]
        if heading is not None:
            poses[..., heading] += angle
        return poses

    return dataclasses.replace(
        scene,
        ego_state=move(scene.ego_state, 2),
        reference_states=move(scene.reference_states, 2),
        vertices=move(scene.vertices),
        centerline=move(scene.centerline),
        object_boxes=move(scene.object_boxes, 2),
    )


def random_world(
    rng: np.random.Generator, num_objects: int = 12, num_plans: int = 4, spread: float = 1.0
) -> tuple[MetricScene, torch.Tensor]:
    """A road full of moving and standing things, and plans on and off it; nothing lies exactly on anything."""
    start = np.stack((rng.uniform(-15, 60, num_objects), rng.uniform(-9, 9, num_objects)), axis=-1) * spread
    velocity = rng.normal(size=(num_objects, 2)) * [5.0, 1.0] * rng.integers(0, 2, (num_objects, 1))
    boxes = np.zeros((51, num_objects, 5))
    boxes[..., :2] = start + 0.1 * np.arange(51)[:, None, None] * velocity
    boxes[..., 2] = rng.uniform(-3, 3, num_objects)
    boxes[..., 3:] = rng.uniform(0.3, 4.0, (num_objects, 2))
    kinds = rng.choice(["VEHICLE", "PEDESTRIAN", "BICYCLE", "BARRIER", "GENERIC_OBJECT"], num_objects)
    state = road().ego_state.copy()
    state[3] = rng.uniform(0, 12)
    scene = with_objects(road(ego_state=state), boxes, kinds.tolist(), np.hypot(*velocity.T))
    plans = [straight(rng.uniform(0, 13), rng.uniform(-8, 8)) for _ in range(num_plans)]
    turned = torch.cat(plans, dim=1)
    turned[..., 2] = torch.from_numpy(rng.uniform(-0.2, 0.2, (1, num_plans, 1)))
    return scene, turned
