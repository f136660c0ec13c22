"""IDM traffic of one scene, one vehicle after another with every shape made: slow, and near to the devkit's words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
import shapely.ops
from numpy.typing import NDArray
from shapely.geometry import LineString, Polygon

from navsim_bridge.traffic.following import Followers

Float = NDArray[np.float64]
EGO_SIZE = (5.176, 2.297)


@dataclass
class Vehicle:
    """A follower as it moves."""

    token: str
    path: Path
    size: tuple[float, float]
    limit: float
    progress: float
    speed: float

    @property
    def pose(self) -> Float:
        return self.path.at(self.path.clamp(self.progress))


class Path:
    """Points of a base line without the last and without repeated ones."""

    def __init__(self, line: Float) -> None:
        steps = np.diff(line, axis=0)
        lengths = np.cumsum(np.append(0.0, np.hypot(*steps.T)))
        keep = ~np.isclose(np.diff(lengths), 0.0)
        keep[0] |= not keep.any()
        self.lengths, self.points = lengths[:-1][keep], line[:-1][keep]
        self.headings = np.unwrap(np.arctan2(steps[keep, 1], steps[keep, 0]))

    def clamp(self, progress: float) -> float:
        return float(max(self.lengths[0], min(progress, self.lengths[-1])))

    def at(self, progress: float) -> Float:
        columns = (*self.points.T, self.headings)
        x, y, heading = (np.interp(progress, self.lengths, column) for column in columns)
        return np.array([x, y, (heading + np.pi) % (2 * np.pi) - np.pi])

    def rest(self, progress: float) -> LineString:
        ahead = self.lengths > progress
        if not ahead.any():
            return _line(self.points[-2:])
        return _line(np.vstack([self.at(progress)[:2], self.points[ahead]]))

    def part(self, start: float, end: float) -> LineString:
        if not (self.lengths > start).any():
            return _line(self.points[-2:])
        if not (self.lengths < end).any():
            return _line(self.points[:2])
        between = (self.lengths > start) & (self.lengths < end)
        return _line(np.vstack([self.at(start)[:2], self.points[between], self.at(end)[:2]]))


def _line(points: Float) -> LineString:
    return LineString(points if len(points) > 1 else np.repeat(points, 2, axis=0))


def rectangle(pose: Float, size: tuple[float, float]) -> Polygon:
    """Corners from front left by rear left."""
    x, y, heading = pose
    turn = np.array([[np.cos(heading), np.sin(heading)], [np.cos(heading + np.pi / 2), np.sin(heading + np.pi / 2)]])
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * np.array(size) / 2
    return Polygon(np.array([x, y]) + corners @ turn)


def move(scene: Followers, ego: Float) -> tuple[list[dict[str, tuple[Float, float]]], int]:
    """Per step pose and speed of the vehicles that are there, in their order, and how often one had no way left."""
    vehicles = [
        Vehicle(token, Path(line), (box[3], box[4]), limit, progress, speed)
        for token, line, box, limit, progress, speed in zip(
            scene.tokens, scene.lines, scene.start.tolist(), scene.limit, scene.progress, scene.speed
        )
    ]
    occupied = {v.token: rectangle(box[:3], v.size) for v, box in zip(vehicles, scene.start)}
    steps, dead_ends = [], 0
    for now in ego[:-1]:
        occupied["ego"] = rectangle(now[:3], EGO_SIZE)
        for vehicle in [v for v in vehicles if np.hypot(*(v.pose[:2] - now[:2])) > 100.0]:
            vehicles.remove(vehicle)
            occupied.pop(vehicle.token)
        for vehicle in vehicles:
            occupied = {token: shape.simplify(1e-5) for token, shape in occupied.items()}
            dead_ends += _drive(vehicle, vehicles, occupied, now)
            half, ahead = vehicle.size[0] / 2, vehicle.speed * 1.5
            ends = (vehicle.path.clamp(vehicle.progress + reach) for reach in (-half, half + ahead))
            strip = vehicle.path.part(*ends).buffer(vehicle.size[1] / 2, cap_style="flat")
            occupied[vehicle.token] = shapely.union_all([strip, rectangle(vehicle.pose, vehicle.size)])
        steps.append({v.token: (v.pose, v.speed) for v in vehicles})
    return steps, dead_ends


def _drive(vehicle: Vehicle, vehicles: list[Vehicle], occupied: dict[str, Polygon], ego: Float) -> bool:
    """Move one; returns whether it had no way left."""
    way = vehicle.path.rest(vehicle.path.clamp(vehicle.progress)).buffer(vehicle.size[1] / 2, cap_style="flat")
    tree = shapely.STRtree(list(occupied.values()))
    found = [list(occupied)[i] for i in tree.query(way)]
    met = [token for token in found if occupied[token].intersects(way)]
    has_way = vehicle.token in met
    others = [token for token in met if token not in vehicle.token] if has_way else []
    if others:
        nearest = others[int(shapely.STRtree([occupied[t] for t in others]).nearest(occupied[vehicle.token]))]
        one, two = shapely.ops.nearest_points(occupied[vehicle.token], occupied[nearest])
        if "ego" in nearest:
            speed, heading = float(np.hypot(ego[3], ego[4])), float(ego[2])
        else:
            lead = next(v for v in vehicles if v.token == nearest)
            speed, heading = lead.speed, float(lead.pose[2])
        gap, lead_speed = one.distance(two), speed * math.cos(heading - vehicle.pose[2])
    else:
        gap, lead_speed = vehicle.path.lengths[-1] - vehicle.progress - vehicle.size[0] / 2, 0.0
    wanted = 1.0 + 1.5 * vehicle.speed + vehicle.speed * (vehicle.speed - lead_speed) / (2 * math.sqrt(2.0))
    change = 1.0 - (vehicle.speed / vehicle.limit) ** 4 - (wanted / max(gap, 1.0)) ** 2
    vehicle.progress += 0.1 * vehicle.speed
    vehicle.speed = max(vehicle.speed + 0.1 * min(max(change, -2.0), 1.0), 0.0)
    return not has_way
