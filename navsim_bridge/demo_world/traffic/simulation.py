"""Traffic on rails: car following, lights, right of way and lane changes, for all vehicles at once every 0.1 s.

Vehicle 0 is the recorded car. Every vehicle follows its own ``RailPath`` with its rear axle, so that poses, speeds
and yaw rates fit a kinematic bicycle; what interacts is only how fast each one goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.demo_world.roads.dressing import Dressing
from navsim_bridge.demo_world.roads.network import RoadNetwork
from navsim_bridge.demo_world.traffic.paths import SPACING, RailPath
from navsim_bridge.demo_world.traffic.pedestrians import Pedestrian, step_pedestrians
from navsim_bridge.demo_world.traffic.signals import GREEN, RED, Signals

Float = NDArray[np.float64]

STEP = 0.1  # s
LOOK_AHEAD = 32  # path samples every 2 m
STAND_OFF = 2.6  # gap kept to whatever is in the way [m]
HARDEST_BRAKING = -4.0
WALKER_FORESIGHT = (0.0, 1.0, 2.0, 3.0)  # a walker also counts where it will be, seconds from now


@dataclass(frozen=True)
class Vehicle:
    """A vehicle on its rail and the habits of its driver."""

    path: RailPath
    kind: str  # "vehicle" or "bicycle"
    length: float
    width: float
    height: float
    rear_to_center: float
    acceleration: float
    headway: float
    paint: int
    lulls: tuple[tuple[float, float, float], ...] = ()  # (from, to, speed): spells of driving slowly

    @property
    def front(self) -> float:
        """Distance from the rear axle to the front bumper [m]."""
        return self.rear_to_center + self.length / 2


@dataclass(frozen=True)
class Snapshot:
    """State of everything that moves at one instant, in local meters."""

    time: float
    position: Float  # (vehicle, 2) rear axles
    heading: Float
    speed: Float
    acceleration: Float
    yaw_rate: Float
    station: Float
    active: NDArray[np.bool_]
    walkers: Float  # (pedestrian, 4) x, y, heading, speed


class Simulation:
    """Mutable state of one drive."""

    def __init__(
        self, network: RoadNetwork, dressing: Dressing, signals: Signals, vehicles: list[Vehicle], stations: Float,
        speeds: Float, people: list[Pedestrian], rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.network, self.signals, self.vehicles, self.people, self.rng = network, signals, vehicles, people, rng
        count = len(vehicles)
        longest = max(len(v.path.points) for v in vehicles)
        pad = longest + 4 * LOOK_AHEAD + 2

        def table(values: list[Float]) -> Float:
            return np.stack([np.concatenate([v, np.repeat(v[-1:], pad - len(v), axis=0)]) for v in values])

        self.path_xy = table([v.path.points for v in vehicles])
        self.path_heading = table([v.path.heading for v in vehicles])
        self.path_speed = table([v.path.speed for v in vehicles])
        self.path_shift = table([v.path.shift for v in vehicles])
        self.path_curvature = table([v.path.curvature for v in vehicles])
        self.path_end = np.array([v.path.length - 4.0 for v in vehicles])
        self.rows = np.arange(count)
        self.s, self.v, self.a = stations.copy(), speeds.copy(), np.zeros(count)
        self.active = np.ones(count, bool)
        self.time = 0.0
        self.steps = 0
        self.following = np.zeros(count)  # refreshed every second step
        self.half_length = np.array([v.length / 2 for v in vehicles])
        self.half_width = np.array([v.width / 2 for v in vehicles])
        self.center = np.array([v.rear_to_center for v in vehicles])
        self.front = np.array([v.front for v in vehicles])
        self.max_acceleration = np.array([v.acceleration for v in vehicles])
        self.headway = np.array([v.headway for v in vehicles])
        self.next_gate = np.zeros(count, int)
        self.granted = np.zeros(count, bool)
        self.waiting_since = np.full(count, np.inf)
        self.holders: list[dict[int, int]] = [{} for _ in network.nodes]  # node -> vehicle -> local connector
        self.exit_of: dict[int, list[tuple[int, float]]] = {i: [] for i in range(count)}
        self.local = {c: k for n in network.nodes for k, c in enumerate(n.connectors)}
        self.static = np.array(
            [[o.x, o.y, o.heading, o.length / 2, o.width / 2] for o in dressing.objects], float
        ).reshape(-1, 5)
        for i in range(count):
            while self._gate(i) is not None and self._gate_station(i) < self.s[i] + self.front[i]:
                self._enter(i)

    def snapshot(self) -> Snapshot:
        xy, heading = self._poses()
        index, fraction = self._index()
        bend = _lerp(self.path_curvature, self.rows, index, fraction)
        walkers = np.array([[*p.position(), p.heading, p.speed] for p in self.people], float).reshape(-1, 4)
        return Snapshot(
            self.time, xy, heading, self.v.copy(), self.a.copy(), self.v * bend, self.s.copy(), self.active.copy(),
            walkers,
        )  # fmt: skip

    def step(self) -> None:
        """Advance by ``STEP`` seconds."""
        xy, heading = self._poses()
        if self.steps % 2 == 0:
            self.following = self._following_acceleration(xy, heading)
        self.steps += 1
        wanted = np.minimum(self._free_acceleration(), self.following)
        self._update_gates(wanted, xy)
        wanted = np.maximum(wanted, HARDEST_BRAKING)
        change = np.clip(wanted - self.a, -4.5 * STEP, 2.2 * STEP)
        self.a = self.a + change
        speed = np.maximum(self.v + self.a * STEP, 0.0)
        stopped = (speed < 0.05) & (wanted <= 0.0)
        speed[stopped] = 0.0
        self.a = np.where(speed == 0.0, np.maximum(self.a, 0.0), self.a)
        self.s = self.s + 0.5 * (self.v + speed) * STEP * self.active
        self.v = speed * self.active
        self.time += STEP
        self.active &= self.s < self.path_end
        self._release()
        center_xy = xy + self.center[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        step_pedestrians(self.people, STEP, self.time, self.signals, self.rng, center_xy, heading, self.v)

    # ---- poses -------------------------------------------------------------------------------------------------

    def _index(self) -> tuple[NDArray[np.int64], Float]:
        position = self.s / SPACING
        index = position.astype(int)
        return index, position - index

    def _poses(self) -> tuple[Float, Float]:
        index, fraction = self._index()
        return (
            _lerp(self.path_xy, self.rows, index, fraction[:, None]),
            _lerp(self.path_heading, self.rows, index, fraction),
        )

    # ---- longitudinal rules ------------------------------------------------------------------------------------

    def _free_acceleration(self) -> Float:
        """Towards the speed profile a little ahead, so that curves are entered at the right speed."""
        ahead = ((self.s + 0.6 * self.v) / SPACING).astype(int)
        target = self.path_speed[self.rows, ahead]
        for i, vehicle in enumerate(self.vehicles):
            for first, last, speed in vehicle.lulls:
                if first <= self.time < last:
                    target[i] = min(target[i], speed)
        ratio = self.v / np.maximum(target, 0.5)
        return np.where(
            ratio <= 1.0,
            self.max_acceleration * (1 - np.minimum(ratio, 1.0) ** 4),
            np.maximum(1.4 * (target - self.v), -2.6),
        )

    def _obstacles(self, xy: Float, heading: Float) -> tuple[Float, ...]:
        """Boxes that may be in the way: vehicles, static objects, walkers now and in the next seconds."""
        center = xy + self.center[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        center = np.where(self.active[:, None], center, 1e6)
        moving = np.concatenate(
            [center, heading[:, None], self.half_length[:, None], self.half_width[:, None], self.v[:, None]], axis=1
        )
        fixed = np.concatenate([self.static, np.zeros((len(self.static), 1))], axis=1)
        walkers = [
            [*p.position(later), p.heading, 0.4, 0.75, 0.0]
            for p in self.people
            if p.crossing is not None and p.walking
            for later in WALKER_FORESIGHT
        ]
        rows = np.concatenate([moving, fixed, np.asarray(walkers, float).reshape(-1, 6)])
        return rows[:, :2], rows[:, 2], rows[:, 3], rows[:, 4], rows[:, 5]

    def _following_acceleration(self, xy: Float, heading: Float) -> Float:
        """Intelligent driver model towards every box that reaches into the corridor ahead; the strictest wins."""
        count = len(self.vehicles)
        boxes, box_heading, half_length, half_width, box_speed = self._obstacles(xy, heading)
        index = (self.s / SPACING).astype(int)
        samples = index[:, None] + 4 * np.arange(LOOK_AHEAD)
        way = self.path_xy[self.rows[:, None], samples].astype(np.float32)
        way_heading = self.path_heading[self.rows[:, None], samples]
        b = boxes.astype(np.float32)
        distance = (way[..., 0:1] - b[:, 0]) ** 2 + (way[..., 1:2] - b[:, 1]) ** 2  # (vehicle, sample, box)
        nearest = distance.argmin(axis=1)  # (vehicle, box)
        near = way[self.rows[:, None], nearest]
        angle = way_heading[self.rows[:, None], nearest]
        cos, sin = np.cos(angle), np.sin(angle)
        dx, dy = boxes[:, 0] - near[..., 0], boxes[:, 1] - near[..., 1]
        along = 2.0 * nearest + dx * cos + dy * sin  # from the rear axle to the box center, along the path
        aside = -dx * sin + dy * cos
        turn = box_heading - angle
        c, s = np.abs(np.cos(turn)), np.abs(np.sin(turn))
        reach_along, reach_aside = c * half_length + s * half_width, s * half_length + c * half_width
        own = np.zeros_like(along, bool)
        own[self.rows, self.rows] = True
        ahead = (along > self.center[:, None]) & (along < 2.0 * LOOK_AHEAD - 1) & ~own
        blocks = ahead & (np.abs(aside) < self.half_width[:, None] + reach_aside + 0.25)
        gap = along - reach_along - self.front[:, None]
        lead_speed = np.maximum(box_speed * np.cos(turn), 0.0)
        out = np.where(blocks, self._idm(gap, lead_speed), 5.0).min(axis=1)
        return np.minimum(out, self._lane_change_courtesy(along, aside, turn, own, count))

    def _idm(self, gap: Float, lead_speed: Float) -> Float:
        gap = np.maximum(gap, 0.2)
        v = self.v[:, None]
        comfortable = 2.0 * np.sqrt(self.max_acceleration * 1.8)[:, None]
        wanted = STAND_OFF + np.maximum(v * self.headway[:, None] + v * (v - lead_speed) / comfortable, 0.0)
        return self.max_acceleration[:, None] * (1 - (wanted / gap) ** 2)

    def _lane_change_courtesy(self, along: Float, aside: Float, turn: Float, own: NDArray[np.bool_], n: int) -> Float:
        """While a vehicle changes lanes, whoever is behind (center to center) of the two drops back."""
        soon = ((self.s + 8.0) / SPACING).astype(int)
        side = np.where(self.path_shift[self.rows, soon] != 0, self.path_shift[self.rows, soon],
                        self.path_shift[self.rows, (self.s / SPACING).astype(int)])  # fmt: skip
        lateral, ahead = aside[:, :n] * side[:, None], along[:, :n] - self.center[:, None]
        beside = (side[:, None] != 0) & (lateral > 1.0) & (lateral < 4.8) & (np.cos(turn[:, :n]) > 0.8) & ~own[:, :n]
        beside &= (ahead > -14.0) & (ahead < 16.0)
        gap = np.abs(ahead) - self.half_length[:, None] - self.half_length
        out = np.full(n, 5.0)
        mine = np.where(beside & (ahead >= 0), np.maximum(self._idm(gap, self.v[None, :n]), -2.2), 5.0)
        out = np.minimum(out, mine.min(axis=1))
        theirs = beside & (ahead < 0)
        for i, j in zip(*np.nonzero(theirs)):
            out[j] = min(out[j], -1.8 if gap[i, j] < 3.0 else -0.4)
        return out

    # ---- stop lines and right of way ---------------------------------------------------------------------------

    def _gate(self, i: int) -> int | None:
        gates = self.vehicles[i].path.gates
        return gates[self.next_gate[i]].connector if self.next_gate[i] < len(gates) else None

    def _gate_station(self, i: int) -> float:
        return self.vehicles[i].path.gates[self.next_gate[i]].station

    def _update_gates(self, wanted: Float, xy: Float) -> None:
        """Ask for right of way near stop lines; brake for those that were not given it."""
        near = []
        for i in np.nonzero(self.active)[0].tolist():
            connector = self._gate(i)
            if connector is None:
                continue
            distance = self._gate_station(i) - self.s[i] - self.front[i]
            if distance < 45.0:
                near.append((distance, i, connector))
        near.sort()
        held_up: set[tuple[int, int]] = set()  # lanes whose first vehicle has no right of way yet
        for distance, i, connector in near:
            source = self.network.connectors[connector].source
            if distance < -0.3:
                self._enter(i)
                continue
            needed = self.v[i] ** 2 / (2 * max(distance - 0.8, 0.1))
            light = self.signals.state(source[0], self.time)
            if self.granted[i] and light != GREEN and needed < 2.4:
                self._revoke(i, connector)
            if not self.granted[i] and source not in held_up and (needed > 0.9 or distance < 9.0):
                self._ask(i, connector, distance, needed, light, near, xy)
            if not self.granted[i]:
                held_up.add(source)
                if needed > 1.25 or distance < 5.0:
                    brake = -needed if distance > 1.0 else min(-needed, -1.0)
                    wanted[i] = min(wanted[i], brake * 1.03)
                if distance < 2.0 and self.v[i] < 0.4:
                    wanted[i] = min(wanted[i], -1.0)

    def _ask(
        self, i: int, connector: int, distance: float, needed: float, light: int,
        near: list[tuple[float, int, int]], xy: Float,
    ) -> None:  # fmt: skip
        info = self.network.connectors[connector]
        node = self.network.nodes[info.node]
        if light == RED or (light != GREEN and needed < 2.4):
            self.waiting_since[i] = np.inf
            return
        if self.v[i] < 0.5 and not np.isfinite(self.waiting_since[i]):
            self.waiting_since[i] = self.time
        mine = self.local[connector]
        if any(node.conflicts[mine, other] for who, other in self.holders[info.node].items() if who != i):
            return
        patient = not np.isfinite(self.waiting_since[i]) or self.time - self.waiting_since[i] < 4.0
        if info.must_yield and patient:
            for d, j, other in near:
                rival = self.network.connectors[other]
                if rival.node != info.node or j == i or rival.must_yield or not node.conflicts[mine, self.local[other]]:
                    continue
                if d < 36.0 and self.signals.state(rival.source[0], self.time) == GREEN and not self.granted[j]:
                    return
        if not self._exit_is_free(i, xy):
            return
        self.granted[i] = True
        self.holders[info.node][i] = mine

    def _exit_is_free(self, i: int, xy: Float) -> bool:
        """Whether the lane behind the junction has room, so that nobody waits inside it."""
        station = self.vehicles[i].path.gates[self.next_gate[i]].exit_station + 5.0
        index = min(int(station / SPACING), self.path_xy.shape[1] - 1)
        offset, heading = xy - self.path_xy[i, index], self.path_heading[i, index]
        along = offset @ np.array([np.cos(heading), np.sin(heading)])
        aside = offset @ np.array([-np.sin(heading), np.cos(heading)])
        blocked = (np.abs(aside) < 1.7) & (along > -6.0) & (along < 5.0) & (self.v < 1.5) & self.active
        blocked[i] = False
        return not blocked.any()

    def _enter(self, i: int) -> None:
        """The front bumper has crossed the stop line."""
        gate = self.vehicles[i].path.gates[self.next_gate[i]]
        node = self.network.connectors[gate.connector].node
        self.holders[node][i] = self.local[gate.connector]
        self.exit_of[i].append((node, gate.exit_station))
        self.next_gate[i] += 1
        self.granted[i] = False
        self.waiting_since[i] = np.inf

    def _revoke(self, i: int, connector: int) -> None:
        self.granted[i] = False
        self.holders[self.network.connectors[connector].node].pop(i, None)

    def _release(self) -> None:
        for i, passed in self.exit_of.items():
            if passed:
                node, station = passed[0]
                rear = self.s[i] + self.center[i] - self.half_length[i]
                if rear > station + 0.5 or not self.active[i]:
                    self.holders[node].pop(i, None)
                    passed.pop(0)
        if not self.active.all():
            for i in np.nonzero(~self.active)[0].tolist():
                for holders in self.holders:
                    holders.pop(i, None)


def _lerp(table: Float, rows: NDArray[np.int64], index: NDArray[np.int64], fraction: Float) -> Float:
    first, second = table[rows, index], table[rows, index + 1]
    return first + (second - first) * fraction
