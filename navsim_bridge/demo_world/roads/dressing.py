"""What stands on the streets of one log: parked cars, road works, and the room that traffic leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.demo_world.roads import curves
from navsim_bridge.demo_world.roads.network import LANE_WIDTH, SHOULDER, Carriageway, RoadNetwork

Float = NDArray[np.float64]

CAR_SIZES = ((4.4, 1.85, 1.5), (4.7, 1.9, 1.45), (4.2, 1.8, 1.6), (4.9, 1.95, 1.75))  # length, width, height [m]
VAN_SIZE = (5.6, 2.05, 2.4)
TRUCK_SIZE = (8.2, 2.4, 3.2)


@dataclass(frozen=True)
class StaticObject:
    """An annotated object that never moves, in local meters."""

    kind: str  # annotation name
    x: float
    y: float
    heading: float
    length: float
    width: float
    height: float
    paint: int  # color choice for the renderer


@dataclass
class Dressing:
    """Static objects of a log and how they bend the paths of traffic in the right-hand lane."""

    objects: list[StaticObject] = field(default_factory=list)
    nudges: dict[int, list[tuple[float, float, float]]] = field(default_factory=dict)
    """Per carriageway: (first station, last station, shift to the left) around cars that jut into the lane."""
    curbside: dict[int, list[tuple[float, float, float]]] = field(default_factory=dict)
    """Per carriageway: first and last station of parked cars and their left side (bicycles swing out there)."""
    closures: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Per carriageway: stretch on which the right-hand lane is closed."""


def dress(network: RoadNetwork, rng: np.random.Generator) -> Dressing:
    """Draw the static objects of one log."""
    out = Dressing()
    for c in network.carriageways:
        blocked = [(s - 9.0, s + 9.0) for s in _mid_crossings(network, c)] + _bends(c)
        if c.lanes == 2 and c.length > 100 and rng.random() < 0.4:
            _road_works(c, rng, blocked, out)
        elif rng.random() < 0.75:
            _parked_cars(c, rng, blocked, out)
    for outline, heading in network.car_parks:
        for k in range(6):
            if rng.random() < 0.6:
                along, side = outline[3] - outline[0], outline[1] - outline[0]
                x, y = outline[0] + along * (k % 3 + 0.7) / 3.4 + side * (0.42 if k < 3 else 0.78)
                out.objects.append(_car(rng, float(x), float(y), heading - np.pi / 2))
    return out


def _mid_crossings(network: RoadNetwork, c: Carriageway) -> Iterator[float]:
    for crossing in network.crosswalks:
        owner = network.carriageways[crossing.carriageway]
        if crossing.node < 0 and owner.street == c.street:
            yield crossing.station if owner.index == c.index else c.length - crossing.station


def _bends(c: Carriageway) -> list[tuple[float, float]]:
    """Stretches where a parked car would stand in the line of traffic coming round a bend."""
    s = curves.arc_length(c.line)
    bent = s[np.abs(curves.curvature(c.line)) > 1 / 75]
    return [(float(x) - 4.0, float(x) + 18.0) for x in bent]


def _car(rng: np.random.Generator, x: float, y: float, heading: float) -> StaticObject:
    size = VAN_SIZE if rng.random() < 0.15 else CAR_SIZES[int(rng.integers(len(CAR_SIZES)))]
    return StaticObject("vehicle", x, y, heading, *size, int(rng.integers(1000)))


def place(c: Carriageway, station: float, lateral: float) -> tuple[float, float, float]:
    """Local x, y and heading at a station of a carriageway, ``lateral`` meters left of its line."""
    s = curves.arc_length(c.line)
    heading = float(np.interp(station, s, curves.headings(c.line)))
    x, y = curves.sample_at(c.line, np.array([station]))[0]
    return float(x - np.sin(heading) * lateral), float(y + np.cos(heading) * lateral), heading


def _parked_cars(c: Carriageway, rng: np.random.Generator, blocked: list[tuple[float, float]], out: Dressing) -> None:
    """Cars along the curb, some of them carelessly far into the lane."""
    station = 20.0 + rng.uniform(0, 12)
    narrow = c.lanes == 1
    while station < c.length - 24.0:
        group = int(rng.integers(1, 4))
        for _ in range(group):
            if station > c.length - 24.0 or any(a < station < b for a, b in blocked):
                station += 3.0
                break
            jut = rng.uniform(0.3, 0.45 if narrow else 0.85) if rng.random() < 0.4 else 0.0
            car = _car(rng, 0, 0, 0)
            side = c.right_edge + SHOULDER + jut if jut else c.right_edge + 0.2 + car.width
            x, y, heading = place(c, station, side - car.width / 2)
            tilt = rng.uniform(-0.03, 0.03)
            out.objects.append(
                StaticObject("vehicle", x, y, heading + tilt, car.length, car.width, car.height, car.paint)
            )
            span = (station - car.length / 2, station + car.length / 2)
            out.curbside.setdefault(c.index, []).append((*span, side))
            if jut:
                out.nudges.setdefault(c.index, []).append((*span, jut))
            station += car.length + rng.uniform(1.2, 3.0)
        station += rng.uniform(14, 34)


def _road_works(c: Carriageway, rng: np.random.Generator, blocked: list[tuple[float, float]], out: Dressing) -> None:
    """The right-hand lane closed by a taper of cones, with barriers and a machine behind them."""
    start = 46.0 + rng.uniform(0, max(0.0, c.length - 108))
    end = start + rng.uniform(14, 20)
    if any(a < end + 4 and b > start - 14 for a, b in blocked) or end > c.length - 38:
        return
    out.closures[c.index] = (start - 9.0, end + 2.0)
    out.curbside.setdefault(c.index, []).append((start - 9.0, end + 2.0, -(c.lanes - 1) * LANE_WIDTH - 0.15))
    edge, lane_line = c.right_edge + 0.5, -(c.lanes - 1) * LANE_WIDTH - 0.35

    def add(kind: str, station: float, lateral: float, turn: float, length: float, width: float, height: float) -> None:
        x, y, heading = place(c, station, lateral)
        out.objects.append(StaticObject(kind, x, y, heading + turn, length, width, height, int(rng.integers(1000))))

    for k in range(5):
        add("traffic_cone", start - 9.0 + 2.2 * k, edge + (lane_line - edge) * k / 4, 0.0, 0.4, 0.4, 0.75)
    for station in np.arange(start + 2.0, end, 2.6):
        add("traffic_cone", float(station), lane_line, 0.0, 0.4, 0.4, 0.75)
    add("czone_sign", start - 12.0, edge + 0.2, 0.0, 0.3, 0.9, 1.9)
    for k in range(2):
        add("barrier", start + 1.6, edge + 0.7 + 2.1 * k, 0.0, 0.5, 1.9, 1.1)
    add("generic_object", 0.5 * (start + end) + 1.5, edge + 1.8, 0.0, 4.6, 2.0, 2.3)
    add("barrier", end + 0.5, edge + 1.4, 0.0, 0.5, 2.4, 1.1)
