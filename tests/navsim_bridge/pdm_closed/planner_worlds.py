"""Hand-made scenes for the reference planner, and its unrolling once more, one proposal and one step after another."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import LineString

from navsim_bridge.files.maps import Polygon
from navsim_bridge.pdm_closed.inputs import PlannerScene, PresentObjects

ORIGIN = np.array([586000.25, 4512000.5])
NOTHING = PresentObjects((), (), np.zeros((0, 5)), np.zeros((0, 2)))


def rectangle(x_from: float, x_to: float, y_from: float, y_to: float) -> NDArray[np.float64]:
    return np.array([[x_from, y_from], [x_to, y_from], [x_to, y_to], [x_from, y_to]]) + ORIGIN


def road(
    speed: float = 8.0,
    x: float = 0.0,
    y: float = 0.0,
    heading: float = 0.0,
    end: float = 180.0,
    limit: float = 12.0,
    **changes: Any,
) -> PlannerScene:
    """A straight road along x with three lanes of 4 m; its centerline is that of the middle lane, from -20 m on."""
    vertices = [rectangle(-50, 300, low, high) for low, high in ((-6, 6), (-6, -2), (-2, 2), (2, 6))]
    state = np.zeros(11)
    state[:2], state[2], state[3] = ORIGIN + np.array([x, y]), heading, speed
    along = np.arange(-20.0, end + 0.5, 1.0)
    line = np.column_stack([along + ORIGIN[0], np.full(len(along), ORIGIN[1]), np.zeros(len(along))])
    scene = PlannerScene(
        token="road", log_name="test", ego_state=state, ego_time_us=1_600_000_000_000_123, centerline=line,
        speed_limit=limit, route_lane_ids=("middle",), polygon_tokens=("block", "right", "middle", "left"),
        polygon_types=("ROADBLOCK", "LANE", "LANE", "LANE"), polygon_ring_offsets=np.arange(5),
        ring_offsets=np.arange(5) * 4, vertices=np.concatenate(vertices), present=NOTHING, red_lights=(),
    )  # fmt: skip
    return dataclasses.replace(scene, **changes)


def bend(radius: float = 40.0, **changes: Any) -> PlannerScene:
    """A left bend with lanes that cover all of it."""
    angle = np.arange(0.0, 2.2, 0.02)
    line = np.column_stack([radius * np.sin(angle) + ORIGIN[0], radius * (1 - np.cos(angle)) + ORIGIN[1], angle])
    vertices = np.concatenate([rectangle(-80, 120, -60, 120)] * 4)
    return dataclasses.replace(road(), centerline=line, vertices=vertices, **changes)


def objects(*rows: tuple[Any, ...]) -> PresentObjects:
    """Rows of (token, type, x, y, heading, length, width, speed along the heading)."""
    boxes = np.array([row[2:7] for row in rows], dtype=np.float64)
    boxes[:, :2] += ORIGIN
    velocities = np.array([[row[7] * math.cos(row[4]), row[7] * math.sin(row[4])] for row in rows])
    return PresentObjects(tuple(row[0] for row in rows), tuple(row[1] for row in rows), boxes, velocities)


def car(x: float, y: float = 0.0, speed: float = 0.0, token: str = "car", heading: float = 0.0) -> PresentObjects:
    return objects((token, "VEHICLE", x, y, heading, 4.0, 2.0, speed))


def light(x_from: float, x_to: float, token: str = "7", y_from: float = -2.0, y_to: float = 2.0) -> Polygon:
    return Polygon(token, "LANE_CONNECTOR", (4,), rectangle(x_from, x_to, y_from, y_to))


def unrolled_one_by_one(scene: PlannerScene) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Progress, speed and poses (15, 41, ...) of the proposals by the rules of docs/pdm_closed.md, nothing batched.

    Every object of the scene counts: none touches the ego, and none is too far.
    """
    limit = 15.0 if math.isnan(scene.speed_limit) else scene.speed_limit
    targets = [limit * fraction for fraction in (0.2, 0.4, 0.6, 0.8, 1.0)]
    line = scene.centerline
    all_progress, all_speed, all_poses = [], [], []
    for offset in (0.0, -1.0, 1.0):
        normal = line[:, 2] + np.pi / 2
        points = line[:, :2] + offset * np.stack([np.cos(normal), np.sin(normal)], axis=1)
        at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        path = shapely.LineString(points)
        start = path.project(shapely.Point(scene.ego_state[:2]))
        inside = (at >= start) & (at <= min(start + 5.0 * targets[-1], at[-1]))
        corridor = shapely.LineString(points[inside]).buffer(2.297 / 2, cap_style="square")

        def pose(
            distance: float, points: NDArray[np.float64] = points, at: NDArray[np.float64] = at
        ) -> tuple[float, float, float]:
            distance = min(max(distance, 1e-5), at[-1])
            x, y, heading = (np.interp(distance, at, column) for column in (*points.T, line[:, 2]))
            return x, y, math.atan2(math.sin(heading), math.cos(heading))

        progress = [[start] * 5]
        speed = [[float(scene.ego_state[3])] * 5]
        lead = [[0.0, 0.0, 0.0]] * 5
        for step in range(1, 41):
            if step % 2 == 0:
                lead = _leads(scene, path, corridor, step, [(p, pose(p)) for p in progress[-1]])
            moved, driven = [], []
            for target, p, v, (x_lead, v_lead, rear) in zip(targets, progress[-1], speed[-1], lead):
                wanted = 1.0 + 1.5 * v + v * (v - v_lead) / (2 * math.sqrt(4.5))
                gap = max(x_lead - p - rear, 1.0)
                accel = min(max(1.5 * (1 - (v / target) ** 10 - (wanted / gap) ** 2), -3.0), 1.5)
                moved.append(p + 0.1 * v)
                driven.append(v + 0.1 * accel)
            progress.append(moved)
            speed.append(driven)
        all_progress += np.transpose(progress).tolist()
        all_speed += np.transpose(speed).tolist()
        all_poses += [[pose(p) for p in row] for row in np.transpose(progress)]
    return np.array(all_progress), np.array(all_speed), np.array(all_poses)


def _leads(
    scene: PlannerScene,
    path: LineString,
    corridor: shapely.Polygon,
    step: int,
    egos: list[tuple[float, tuple[float, float, float]]],
) -> list[list[float]]:
    present = scene.present
    items: list[Any] = []
    for token, kind, row, velocity in zip(present.tokens, present.types, present.boxes, present.velocities):
        agent = kind in ("VEHICLE", "PEDESTRIAN", "BICYCLE")
        x, y = row[:2] + (0.1 * step * velocity if agent else 0.0)
        shape = _box(x, y, row[2], row[3], row[4])
        items.append((shape, np.linalg.norm(velocity) if agent else 0.0, row[2], token))
    items += [(shapely.Polygon(red.vertices), None, 0.0, red.token) for red in scene.red_lights]
    items = [(item, path.project(item[0].centroid)) for item in items if item[0].intersects(corridor)]
    current, leads = [0.0, 0.0, 0.0], []
    for progress, (x, y, heading) in egos:
        center = (x + 1.461 * math.cos(heading), y + 1.461 * math.sin(heading))
        ego = _box(*center, heading, 5.176, 2.297)
        ahead: list[Any] = [item for item, its_progress in items if its_progress > progress]
        if ahead:
            shape, speed, its_heading, _ = min(ahead, key=lambda item: ego.distance(item[0]))
            current[0] = progress + ego.distance(shape)
            if speed is not None:
                current[1] = speed * math.cos(its_heading - heading)
        else:
            current[0], current[2] = path.length, 5.176 / 2
        leads.append(list(current))
    return leads


def _box(x: float, y: float, heading: float, length: float, width: float) -> shapely.Polygon:
    cos, sin = math.cos(heading), math.sin(heading)
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    halves = [(a * length / 2, b * width / 2) for a, b in signs]
    return shapely.Polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in halves])
