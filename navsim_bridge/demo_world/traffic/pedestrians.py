"""Pedestrians: some stroll along the pavements, some cross at marked crossings when it is safe to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.demo_world.roads.dressing import place
from navsim_bridge.demo_world.roads.network import SIDEWALK, Crosswalk, RoadNetwork
from navsim_bridge.demo_world.traffic.signals import Signals

Float = NDArray[np.float64]

COMFORTABLE_STOP = 2.2  # a driver is only made to brake this hard [m/s^2]


@dataclass
class Pedestrian:
    """A walker on a straight line from ``start`` to ``end``; ``progress`` in meters."""

    start: Float
    end: Float
    pace: float
    crossing: Crosswalk | None
    progress: float = 0.0
    walking: bool = False
    wait: float = 0.0  # seconds until the next attempt to cross
    paint: int = 0

    @property
    def length(self) -> float:
        return float(np.hypot(*(self.end - self.start)))

    @property
    def heading(self) -> float:
        d = self.end - self.start
        return float(np.arctan2(d[1], d[0]))

    @property
    def speed(self) -> float:
        return self.pace if self.walking else 0.0

    def position(self, later: float = 0.0) -> Float:
        """Where the walker is, or will be ``later`` seconds from now at the present pace."""
        way = min(self.progress + self.speed * later, self.length)
        return self.start + (self.end - self.start) * (way / self.length)


def draw_pedestrians(network: RoadNetwork, rng: np.random.Generator) -> list[Pedestrian]:
    """Strollers and people who want to cross."""
    people: list[Pedestrian] = []
    for crossing in network.crosswalks:
        if rng.random() < (0.75 if crossing.node < 0 else 0.22):
            ends = (crossing.start, crossing.end) if rng.random() < 0.5 else (crossing.end, crossing.start)
            sideways = rng.uniform(-0.8, 0.8) * _unit(crossing.outline[1] - crossing.outline[0])
            people.append(
                Pedestrian(ends[0] + sideways, ends[1] + sideways, rng.uniform(1.3, 1.7), crossing,
                           wait=rng.uniform(0, 8), paint=int(rng.integers(1000)))
            )  # fmt: skip
    for c in network.carriageways:
        for _ in range(int(rng.integers(0, 3))):
            a = rng.uniform(8, max(9.0, c.length * 0.5))
            b = min(a + rng.uniform(20, 45), c.length - 4)
            side = c.right_edge - rng.uniform(0.9, SIDEWALK - 0.5)
            ends = (np.array(place(c, a, side)[:2]), np.array(place(c, b, side)[:2]))
            if rng.random() < 0.5:
                ends = (ends[1], ends[0])
            walker = Pedestrian(*ends, rng.uniform(1.0, 1.5), None, walking=True, paint=int(rng.integers(1000)))
            walker.progress = rng.uniform(0, walker.length * 0.5)
            people.append(walker)
    return people


def step_pedestrians(
    people: list[Pedestrian], dt: float, time: float, signals: Signals, rng: np.random.Generator, positions: Float,
    vehicle_headings: Float, speeds: Float,
) -> None:  # fmt: skip
    """Advance everybody by ``dt`` seconds; vehicles are given as arrays, the recorded car first."""
    for p in people:
        if p.walking:
            p.progress += p.pace * dt
            if p.progress >= p.length:
                p.start, p.end, p.progress = p.end, p.start, 0.0
                p.walking = p.crossing is None
                p.wait = rng.uniform(6, 16)
            continue
        p.wait -= dt
        if p.crossing is not None and p.wait <= 0 and _may_cross(p, p.crossing, time, signals, positions,
                                                                vehicle_headings, speeds):  # fmt: skip
            p.walking = True


def _may_cross(
    p: Pedestrian, crossing: Crosswalk, time: float, signals: Signals, positions: Float, vehicle_headings: Float,
    speeds: Float,
) -> bool:  # fmt: skip
    if crossing.node >= 0:
        return signals.seconds_of_red_left(crossing.carriageway, time) > 11.0
    middle = crossing.outline.mean(axis=0)
    along = _unit(crossing.outline[1] - crossing.outline[0])
    offset = middle - positions
    direction = np.stack([np.cos(vehicle_headings), np.sin(vehicle_headings)], axis=-1)
    ahead = np.sum(offset * direction, axis=-1)
    aside = np.abs(offset @ np.array([-along[1], along[0]]))
    near = (aside < 12) & (ahead > -9) & (ahead < 70) & (np.abs(direction @ along) > 0.8)
    needed = speeds**2 / (2 * np.maximum(ahead - 9.0, 0.1))
    if np.any(near & ((needed > COMFORTABLE_STOP) | (ahead < 9.0)) & (speeds > 0.3)):
        return False
    waited_long = p.wait < -12.0
    ego_comes = bool(near[0] and 20 < ahead[0] < 48)
    return ego_comes or waited_long


def _unit(v: Float) -> Float:
    return v / np.linalg.norm(v)
