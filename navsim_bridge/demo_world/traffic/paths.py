"""Rails: the smooth curve a vehicle's rear axle follows through the network, with its speed profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.demo_world.roads import curves
from navsim_bridge.demo_world.roads.dressing import Dressing
from navsim_bridge.demo_world.roads.network import LANE_WIDTH, RoadNetwork

Float = NDArray[np.float64]

SPACING = 0.5  # between path points [m]
SMOOTHING = 2.5  # standard deviation along the path [m]
LATERAL_ACCELERATION = 1.9  # in curves [m/s^2]
BRAKING = 1.3  # ahead of curves [m/s^2]


@dataclass(frozen=True)
class Leg:
    """A stretch of carriageway driven from ``lane_in`` to ``lane_out``, then the connector taken at its end."""

    carriageway: int
    lane_in: int
    lane_out: int
    connector: int


@dataclass(frozen=True)
class Gate:
    """A stop line on a path: its station, the connector behind it and where that ends."""

    station: float
    connector: int
    exit_station: float


@dataclass(frozen=True)
class RailPath:
    """Evenly spaced path points with everything a driver looks up by station."""

    points: Float  # (n, 2)
    heading: Float  # (n,) unwrapped
    curvature: Float  # (n,)
    speed: Float  # (n,) highest sensible speed [m/s]
    shift: Float  # (n,) +1 while moving to the left lane, -1 to the right lane, else 0
    center: Float  # (n, 2) route center line beside each point (no swerving around obstacles)
    gates: tuple[Gate, ...]
    blocks: tuple[tuple[float, str, int], ...]  # (first station, "carriageway" or "connector", index)

    @property
    def length(self) -> float:
        return (len(self.points) - 1) * SPACING


def random_legs(
    network: RoadNetwork,
    rng: np.random.Generator,
    carriageway: int,
    lane: int,
    length: float,
    turns: dict[str, float] | None = None,
) -> list[Leg]:
    """A random drive of at least ``length`` meters. With ``turns`` (weights of left, straight, right) lanes are
    changed where the turn asks for it; without, traffic stays in its lane."""  # fmt: skip
    legs: list[Leg] = []
    traveled = 0.0
    while traveled < length:
        road = network.carriageways[carriageway]
        lanes = range(road.lanes) if turns is not None and road.length > 78 else (lane,)
        options = [(k, e) for k in lanes for e in network.exits[carriageway, k]]
        if turns is None:
            out_lane, chosen = options[int(rng.integers(len(options)))]
        else:
            weights = np.array([turns[network.connectors[e].turn] for _, e in options])
            for turn in turns:  # weigh the manoeuvre, not the number of lanes that allow it
                same = np.array([network.connectors[e].turn == turn for _, e in options])
                weights[same] /= max(same.sum(), 1)
            stays = np.array([2.0 if k == lane else 1.0 for k, _ in options])
            weights = weights * stays
            out_lane, chosen = options[int(rng.choice(len(options), p=weights / weights.sum()))]
        legs.append(Leg(carriageway, lane, out_lane, chosen))
        connector = network.connectors[chosen]
        traveled += road.length + float(curves.arc_length(connector.line)[-1])
        carriageway, lane = connector.target
    return legs


def build_path(
    network: RoadNetwork, dressing: Dressing, legs: list[Leg], bicycle: bool = False, pace: float = 1.0
) -> RailPath:
    """Join the legs into one smooth path; ``pace`` scales the speed on open road."""
    points, centers, limits, shifts = [], [], [], []
    marks: list[tuple[int, str, int]] = []
    count = 0
    for leg in legs:
        road = network.carriageways[leg.carriageway]
        line = curves.resample(road.line, SPACING)
        s = curves.arc_length(line)
        base, shift = _lane_profile(road.length, s, leg, road.lanes, dressing.closures.get(road.index))
        lateral = base + _swerve(s, base, road.lane_offset(road.lanes - 1), dressing.nudges.get(road.index, []))
        if bicycle:
            lateral = _bicycle_profile(s, road.right_edge, dressing.curbside.get(road.index, []))
        limit = np.full(len(s), road.speed_limit * pace)
        for first, last, _ in dressing.nudges.get(road.index, []):
            limit[(s > first - 8) & (s < last + 4)] = min(8.5, road.speed_limit) * pace
        if road.index in dressing.closures:
            limit[:] = np.minimum(limit, 7.5 * pace)
        connector = network.connectors[leg.connector]
        through = curves.resample(connector.line, SPACING)[1:-1]
        target = network.carriageways[connector.target[0]]
        marks += [(count, "carriageway", road.index), (count + len(s), "connector", connector.index)]
        points += [curves.offset(line, lateral), curves.offset(through, -1.1) if bicycle else through]
        centers += [curves.offset(line, base), through]
        limits += [limit, np.full(len(through), min(road.speed_limit, target.speed_limit) * pace)]
        shifts += [shift, np.zeros(len(through))]
        count += len(s) + len(through)
    raw = np.concatenate(points)
    station = curves.arc_length(raw)
    at = np.arange(0.0, station[-1], SPACING)
    smoothed = curves.smooth(curves.sample_at(raw, at), SMOOTHING / SPACING)
    center = np.concatenate(centers)
    center = np.stack([np.interp(at, station, center[:, i]) for i in range(2)], axis=-1)
    heading, bend = curves.headings(smoothed), curves.curvature(smoothed)
    speed = np.minimum(
        np.interp(at, station, np.concatenate(limits)),
        np.sqrt(LATERAL_ACCELERATION / np.maximum(np.abs(bend), 1e-4)),
    )
    if bicycle:
        speed = np.minimum(speed, 4.6 * pace)
    for i in range(len(speed) - 2, -1, -1):  # slow down in time
        speed[i] = min(speed[i], np.sqrt(speed[i + 1] ** 2 + 2 * BRAKING * SPACING))
    block_stations = [(float(station[i]), kind, index) for i, kind, index in marks]
    gates = tuple(
        Gate(start, index, block_stations[k + 1][0] if k + 1 < len(block_stations) else float(station[-1]))
        for k, (start, kind, index) in enumerate(block_stations)
        if kind == "connector"
    )
    shift_sign = np.interp(at, station, np.concatenate(shifts))
    return RailPath(smoothed, heading, bend, speed, np.sign(np.round(shift_sign)), center, gates, tuple(block_stations))


def _lane_profile(
    length: float, s: Float, leg: Leg, lanes: int, closure: tuple[float, float] | None
) -> tuple[Float, Float]:
    """Lateral offset along a carriageway from the lane entered to the lane left, and the direction of changes."""
    knots: list[tuple[float, float, int, int]] = []  # start, end, from lane, to lane
    lane = leg.lane_in
    if closure is not None and lane == lanes - 1:
        knots.append((max(4.0, closure[0] - 36.0), closure[0] - 3.0, lane, lane - 1))
        lane -= 1
    if closure is not None and leg.lane_out == lanes - 1:
        knots.append((closure[1] + 2.0, min(closure[1] + 36.0, length - 6.0), lane, leg.lane_out))
    elif lane != leg.lane_out:
        knots.append((12.0, min(60.0, length - 22.0), lane, leg.lane_out))
    lateral = np.full(len(s), -(leg.lane_in + 0.5) * LANE_WIDTH)
    direction = np.zeros(len(s))
    for start, end, before, after in knots:
        lateral += (before - after) * LANE_WIDTH * curves.smoothstep((s - start) / (end - start))
        direction[(s > start - 10) & (s < end)] = np.sign(before - after)
    return lateral, direction


def _swerve(s: Float, lateral: Float, right_lane: float, nudges: list[tuple[float, float, float]]) -> Float:
    """Extra shift to the left around cars that jut into the right-hand lane."""
    out = np.zeros(len(s))
    in_right_lane = curves.smoothstep(1.0 - np.abs(lateral - right_lane) / 1.5)
    for first, last, amount in nudges:
        bump = curves.smoothstep((s - first + 24.0) / 19.0) * curves.smoothstep((last + 22.0 - s) / 19.0)
        out = np.maximum(out, amount * bump)
    return out * in_right_lane


def _bicycle_profile(s: Float, right_edge: float, curbside: list[tuple[float, float, float]]) -> Float:
    """Near the curb, and just inside the lane beside parked cars."""
    out = np.full(len(s), right_edge + 1.1)
    for first, last, side in curbside:
        bump = curves.smoothstep((s - first + 17.0) / 12.0) * curves.smoothstep((last + 17.0 - s) / 12.0)
        out = np.maximum(out, right_edge + 1.1 + (side + 0.9 - right_edge - 1.1) * bump)
    return out
