"""One recorded drive: draw traffic and a route, simulate, keep the drive if it is worth recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.demo_world.roads.dressing import CAR_SIZES, TRUCK_SIZE, VAN_SIZE, Dressing, dress
from navsim_bridge.demo_world.roads.network import RoadNetwork
from navsim_bridge.demo_world.traffic.paths import Leg, RailPath, build_path, random_legs
from navsim_bridge.demo_world.traffic.pedestrians import Pedestrian, draw_pedestrians
from navsim_bridge.demo_world.traffic.signals import Signals, draw_signals
from navsim_bridge.demo_world.traffic.simulation import STEP, Simulation, Snapshot, Vehicle
from navsim_bridge.ego import EGO_HEIGHT, EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER

Float = NDArray[np.float64]

WARM_UP = 6.0  # s of traffic before the first recorded frame
FRAME_STEPS = round(0.5 / STEP)
MOVING_CARS, BICYCLES = 44, 6
TURN_WEIGHTS = {"left": 0.9, "straight": 0.75, "right": 1.0}
LONGEST_STANDING, MOST_STANDING = 19.0, 0.33  # s, share of the drive
ATTEMPTS = 40


@dataclass(frozen=True)
class Drive:
    """A simulated drive at 2 Hz and everything needed to write and picture it."""

    network: RoadNetwork
    dressing: Dressing
    signals: Signals
    vehicles: tuple[Vehicle, ...]  # the recorded car first
    people: tuple[Pedestrian, ...]
    frames: tuple[Snapshot, ...]


def record_drive(network: RoadNetwork, seed: list[int], num_frames: int, traffic: float = 1.0) -> Drive:
    """Simulate until a drive is fit to record: not stuck, no contact, on the road.

    Raises:
        RuntimeError: no fit drive in ``ATTEMPTS`` tries.
    """
    reasons: dict[str, int] = {}
    for attempt in range(ATTEMPTS):
        drive, reason = _attempt(network, np.random.default_rng([*seed, attempt]), num_frames, traffic)
        if drive is not None:
            return drive
        reasons[reason] = reasons.get(reason, 0) + 1
    raise RuntimeError(
        f"no drive fit to record in {ATTEMPTS} tries at {network.location.name} (seed {seed}): {reasons}; "
        "try another seed or less traffic"
    )


def _attempt(
    network: RoadNetwork, rng: np.random.Generator, num_frames: int, traffic: float
) -> tuple[Drive | None, str]:
    dressing, signals, people = dress(network, rng), draw_signals(network, rng), draw_pedestrians(network, rng)
    seconds = num_frames / 2 + WARM_UP
    vehicles, stations = _draw_vehicles(network, dressing, rng, seconds, traffic)
    speeds = np.array([0.75 * v.path.speed[int(s / 0.5)] for v, s in zip(vehicles, stations)])
    simulation = Simulation(network, dressing, signals, vehicles, stations, speeds, people, rng)
    frames: list[Snapshot] = []
    standing = longest = total = 0
    for step in range(round(WARM_UP / STEP) + (num_frames - 1) * FRAME_STEPS + 1):
        if step >= round(WARM_UP / STEP) and (step - round(WARM_UP / STEP)) % FRAME_STEPS == 0:
            frames.append(simulation.snapshot())
            standing = standing + 1 if frames[-1].speed[0] < 0.1 else 0
            longest, total = max(longest, standing), total + (standing > 0)
            if longest / 2 > LONGEST_STANDING or total / max(num_frames, 40) > MOST_STANDING:
                return None, "stands too long"
            if _touches(frames[-1], vehicles, dressing):
                return None, "touches something"
        simulation.step()
    return Drive(network, dressing, signals, tuple(vehicles), tuple(people), tuple(frames)), ""


def _draw_vehicles(
    network: RoadNetwork, dressing: Dressing, rng: np.random.Generator, seconds: float, traffic: float
) -> tuple[list[Vehicle], Float]:
    """The recorded car, a car ahead of it on the same way, and traffic everywhere else."""
    longest = 14.5 * seconds + 120.0
    start = int(rng.integers(len(network.carriageways)))
    lane = int(rng.integers(network.carriageways[start].lanes))
    legs = random_legs(network, rng, start, lane, longest, TURN_WEIGHTS)
    size = (EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT)
    ego = Vehicle(build_path(network, dressing, legs), "vehicle", *size, REAR_AXLE_TO_CENTER, 1.5, 1.25, paint=-1)
    first = rng.uniform(5, max(6.0, network.carriageways[start].length * 0.35))
    vehicles, stations = [ego], [first]
    taken = [ego.path.points[int(first / 0.5)]]

    def add(legs: list[Leg], station: float, bicycle: bool, spacing: float) -> None:
        pace = rng.uniform(0.8, 1.05)
        path = build_path(network, dressing, legs, bicycle, pace)
        spot = path.points[min(int(station / 0.5), len(path.points) - 1)]
        if station > path.length - 60 or min(np.hypot(*(spot - other)) for other in taken) < spacing:
            return
        taken.append(spot)
        vehicles.append(_bicycle(path, rng) if bicycle else _car(path, rng, seconds))
        stations.append(station)

    if rng.random() < 0.8:  # a car to follow for a while
        shared = legs[: int(rng.integers(2, 5))]
        target = network.connectors[shared[-1].connector].target
        add(shared + random_legs(network, rng, *target, longest), first + rng.uniform(22, 34), False, 14.0)
    for k in range(round((MOVING_CARS + BICYCLES) * traffic)):
        bicycle = k >= round(MOVING_CARS * traffic)
        weights = np.array([c.length * c.lanes for c in network.carriageways])
        c = network.carriageways[int(rng.choice(len(weights), p=weights / weights.sum()))]
        lane = c.lanes - 1 if bicycle else int(rng.integers(c.lanes))
        length = 420.0 + 6.0 * seconds if not bicycle else 5.0 * seconds + 250.0
        add(random_legs(network, rng, c.index, lane, length), rng.uniform(4, c.length - 8), bicycle, 15.0)
    return vehicles, np.array(stations)


def _car(path: RailPath, rng: np.random.Generator, seconds: float) -> Vehicle:
    kind = rng.random()
    size = TRUCK_SIZE if kind < 0.09 else VAN_SIZE if kind < 0.2 else CAR_SIZES[int(rng.integers(len(CAR_SIZES)))]
    lulls, time = [], rng.uniform(0, 14)
    while time < seconds:
        lasts = rng.uniform(2.5, 5.0)
        lulls.append((time, time + lasts, rng.uniform(1.5, 5.0)))
        time += lasts + rng.uniform(9, 26)
    return Vehicle(
        path, "vehicle", *size, size[0] * 0.28, rng.uniform(1.2, 1.9), rng.uniform(1.0, 1.6), int(rng.integers(1000)),
        tuple(lulls),
    )  # fmt: skip


def _bicycle(path: RailPath, rng: np.random.Generator) -> Vehicle:
    return Vehicle(path, "bicycle", 1.8, 0.7, 1.7, 0.5, 1.0, 1.2, int(rng.integers(1000)))


def box_corners(x: Float, y: Float, heading: Float, length: Float, width: Float) -> Float:
    """Corners ``(n, 4, 2)`` of oriented boxes: front left, rear left, rear right, front right."""
    along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)[:, None]
    left = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)[:, None]
    forward = np.array([1, -1, -1, 1])[:, None] * (np.asarray(length) / 2)[:, None, None]
    aside = np.array([1, 1, -1, -1])[:, None] * (np.asarray(width) / 2)[:, None, None]
    return np.stack([x, y], axis=-1)[:, None] + forward * along + aside * left


def _touches(frame: Snapshot, vehicles: list[Vehicle], dressing: Dressing) -> bool:
    """Whether the recorded car's box meets another one."""
    center = frame.position + np.array([v.rear_to_center for v in vehicles])[:, None] * np.stack(
        [np.cos(frame.heading), np.sin(frame.heading)], axis=-1
    )
    rows = [
        (*center[i], frame.heading[i], v.length, v.width) for i, v in enumerate(vehicles) if frame.active[i] or i == 0
    ]
    rows += [(o.x, o.y, o.heading, o.length, o.width) for o in dressing.objects]
    rows += [(x, y, heading, 0.6, 0.6) for x, y, heading, _ in frame.walkers]
    table = np.array(rows)
    close = np.hypot(*(table[:, :2] - table[0, :2]).T) < 9.0
    corners = box_corners(*table[close].T)
    boxes = shapely.polygons(corners)
    return bool(shapely.intersects(boxes[0], boxes[1:]).any())
