"""The road network of one location: streets, junctions and the lanes that join them, in local meters.

Right-hand traffic. A ``Carriageway`` is one direction of a street and becomes one nuPlan lane group; a
``Connector`` is one lane through a junction. The layout is a ring of four signalled crossroads joined by
inner streets and winding outer streets, and a one-way by-pass that leaves by a fork and comes back by a merge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from shapely import LineString, Polygon
from shapely.ops import unary_union

from navsim_bridge.demo_world.config import LOCATIONS, Location
from navsim_bridge.demo_world.roads import curves

Float = NDArray[np.float64]

LANE_WIDTH = 3.5
SHOULDER = 2.3  # kept free of traffic, inside the lane-group polygon; parked cars stand here
SIDEWALK = 2.8
STEP = 1.5  # spacing of base-line points [m]; readers use the discrete points, so keep it below 2
CROSSROADS_TRIM = 20.0  # from a crossroads' center to its stop lines [m]
FORK_TRIM = 24.0


@dataclass(frozen=True)
class Carriageway:
    """One direction of a street. ``line`` runs along its left edge; lanes lie to the right of it."""

    index: int
    street: int
    line: Float  # (n, 2) in driving direction
    lanes: int
    speed_limit: float  # m/s
    from_node: int
    to_node: int
    left_margin: float  # drivable strip left of ``line`` (one-way streets have no opposite side)
    street_name: str

    @property
    def length(self) -> float:
        return float(curves.arc_length(self.line)[-1])

    @property
    def right_edge(self) -> float:
        """Offset of the right curb (negative)."""
        return -(self.lanes * LANE_WIDTH + SHOULDER)

    def lane_offset(self, lane: int) -> float:
        return -(lane + 0.5) * LANE_WIDTH

    def lane_line(self, lane: int) -> Float:
        return curves.resample(curves.offset(self.line, self.lane_offset(lane)), STEP)

    def lane_end(self, lane: int, at_start: bool) -> tuple[Float, float]:
        """Pose of the first or last point of a lane's center line."""
        i = 0 if at_start else -1
        heading = float(curves.headings(self.line)[i])
        normal = np.array([-np.sin(heading), np.cos(heading)])
        return self.line[i] + normal * self.lane_offset(lane), heading

    def polygon(self) -> Float:
        return curves.band(self.line, self.left_margin, self.right_edge)


@dataclass(frozen=True)
class Connector:
    """A lane through a junction, from (carriageway, lane) to (carriageway, lane)."""

    index: int
    node: int
    source: tuple[int, int]
    target: tuple[int, int]
    line: Float
    turn: str  # left, straight or right
    must_yield: bool  # gives way to conflicting traffic that does not


@dataclass(frozen=True)
class Node:
    """A junction: its drivable area, the connectors through it and who conflicts with whom."""

    index: int
    center: Float
    signalled: bool
    outline: Float
    connectors: tuple[int, ...]
    conflicts: NDArray[np.bool_]  # (connector, connector) in the order of ``connectors``
    phase_of_source: dict[int, int]  # carriageway -> signal phase


@dataclass(frozen=True)
class Crosswalk:
    """A marked crossing: quadrilateral, walking axis and the node (or street) it belongs to."""

    outline: Float
    start: Float
    end: Float
    node: int  # -1: in the middle of a street
    carriageway: int  # the one that ends at it; the two-way street's forward one for a mid-street crossing
    station: float  # along that carriageway


@dataclass(frozen=True)
class RoadNetwork:
    location: Location
    carriageways: tuple[Carriageway, ...]
    connectors: tuple[Connector, ...]
    nodes: tuple[Node, ...]
    crosswalks: tuple[Crosswalk, ...]
    car_parks: tuple[tuple[Float, float], ...]  # outline, heading
    exits: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)  # lane -> connectors leaving it

    def drivable(self) -> Polygon:
        """Union of what the PDM score calls drivable (lane groups, junctions, car parks)."""
        parts = [Polygon(c.polygon()) for c in self.carriageways] + [Polygon(n.outline) for n in self.nodes]
        return unary_union([p.buffer(0.01) for p in parts + [Polygon(p) for p, _ in self.car_parks]])


@dataclass
class _Street:
    """Reference line between two nodes before it is cut into carriageways."""

    a: int
    b: int
    line: Float
    lanes: int
    backward_lanes: int
    speed_limit: float
    name: str
    trims: tuple[float, float] = (CROSSROADS_TRIM, CROSSROADS_TRIM)


@lru_cache(maxsize=8)
def network_of(location: int, seed: int) -> RoadNetwork:
    """The network of a location (by index), kept for the logs that share it."""
    return build_network(LOCATIONS[location], seed)


def build_network(location: Location, seed: int) -> RoadNetwork:
    """Lay out the roads of one location; the same seed gives the same network."""
    rng = np.random.default_rng([seed, location.index, 11])
    streets, centers, signalled = _lay_out(rng, location)
    carriageways: list[Carriageway] = []
    for number, street in enumerate(streets):
        line = curves.trim(street.line, *street.trims, step=STEP)
        one_way = street.backward_lanes == 0
        for lanes, forward in ((street.lanes, True), (street.backward_lanes, False)):
            if lanes:
                carriageways.append(
                    Carriageway(
                        len(carriageways),
                        number,
                        line if forward else np.ascontiguousarray(line[::-1]),
                        lanes,
                        street.speed_limit,
                        street.a if forward else street.b,
                        street.b if forward else street.a,
                        SHOULDER if one_way else 0.0,
                        street.name,
                    )
                )
    connectors: list[Connector] = []
    nodes: list[Node] = []
    for index, center in enumerate(centers):
        own = _connect(index, carriageways, signalled[index], len(connectors))
        connectors += own
        outline = _outline(center, index, carriageways, rounded=signalled[index])
        nodes.append(
            Node(index, center, signalled[index], outline, tuple(c.index for c in own), _conflicts(own),
                 _phases(index, carriageways))
        )  # fmt: skip
    exits: dict[tuple[int, int], tuple[int, ...]] = {}
    for c in connectors:
        exits[c.source] = (*exits.get(c.source, ()), c.index)
    crosswalks = _crosswalks(rng, carriageways, nodes)
    return RoadNetwork(
        location, tuple(carriageways), tuple(connectors), tuple(nodes), tuple(crosswalks),
        tuple(_car_parks(rng, carriageways, nodes)), exits,
    )  # fmt: skip


def _lay_out(rng: np.random.Generator, location: Location) -> tuple[list[_Street], list[Float], list[bool]]:
    """Node centers and reference lines. Nodes 0-3: crossroads A (NW), B (NE), C (SW), D (SE); 4 fork, 5 merge."""
    dx, dy = rng.uniform(62, 78), rng.uniform(62, 78)
    corners = np.array([[-dx, dy], [dx, dy], [-dx, -dy], [dx, -dy]]) + rng.uniform(-9, 9, (4, 2))
    a, b, c, d = corners
    limits = rng.permutation([9.0, 10.0, 11.0, 12.0, 13.0, 14.0])

    def bend(p: Float, q: Float, amount: float) -> Float:
        """Inner street: leaves both crossroads straight and swings sideways between them."""
        along = (q - p) / np.linalg.norm(q - p)
        side = np.array([-along[1], along[0]])
        length = np.linalg.norm(q - p)
        way = [p, p + along * 0.3 * length + side * amount, p + along * 0.7 * length - side * amount, q]
        return curves.round_corners(np.array(way), 45.0)

    inner = [
        _Street(0, 1, bend(a, b, rng.uniform(-9, 9)), 2, 2, float(limits[0]), "North"),
        _Street(2, 3, bend(c, d, rng.uniform(-9, 9)), 2, 2, float(limits[1]), "South"),
        _Street(0, 2, bend(a, c, rng.uniform(-9, 9)), 2, 2, float(limits[2]), "West"),
        _Street(1, 3, bend(b, d, rng.uniform(-9, 9)), 2, 2, float(limits[3]), "East"),
    ]

    def arc(p: Float, q: Float, out: Float, reach: float, wave: float, radius: float) -> Float:
        """Outer street from p to q: straight out, round a corner, a wave, round a corner, back in."""
        along = (q - p) / np.linalg.norm(q - p)
        top_p, top_q = p + out * reach - along * 12, q + out * reach + along * 12
        way = [p, top_p, top_p + 0.36 * (top_q - top_p) + out * wave, top_p + 0.66 * (top_q - top_p) - out * wave,
               top_q, q]  # fmt: skip
        return curves.round_corners(np.array(way), radius)

    south, west = np.array([0.0, -1.0]), np.array([-1.0, 0.0])
    streets = [
        *inner,
        _Street(2, 3, arc(c, d, south, rng.uniform(80, 95), rng.uniform(10, 20), 26), 1, 1, 9.0, "Canal"),
        _Street(0, 2, arc(a, c, west, rng.uniform(80, 95), rng.uniform(10, 20), 30), 1, 1, 10.0, "Park"),
    ]
    # The north and east outer streets carry the merge and the fork of the by-pass, on straight pieces.
    reach = rng.uniform(88, 98)
    top = [a, a + np.array([-10, reach]), b + np.array([12, reach]), b]
    right = [b, b + np.array([reach, 12]), d + np.array([reach, -10]), d]
    north_line = curves.round_corners(np.array(top), 32.0)
    east_line = curves.round_corners(np.array(right), 32.0)
    merge_at = _nearest(north_line, a + np.array([40.0, reach]))
    fork_at = _nearest(east_line, d + np.array([reach, 40.0]))
    merge, fork = north_line[merge_at], east_line[fork_at]
    north_heading = curves.headings(north_line)[merge_at] + np.pi  # the by-pass joins the westbound side
    east_heading = curves.headings(east_line)[fork_at] + np.pi  # and leaves the northbound side
    by_pass = _by_pass(fork, east_heading, merge, north_heading)
    fork_trims, merge_trims = (CROSSROADS_TRIM, FORK_TRIM), (FORK_TRIM, CROSSROADS_TRIM)
    streets += [
        _Street(0, 5, north_line[: merge_at + 1], 2, 2, 12.0, "Hill", fork_trims),
        _Street(5, 1, north_line[merge_at:], 2, 2, 12.0, "Hill", merge_trims),
        _Street(1, 4, east_line[: fork_at + 1], 2, 2, 12.0, "Harbour", fork_trims),
        _Street(4, 3, east_line[fork_at:], 2, 2, 12.0, "Harbour", merge_trims),
        _Street(4, 5, by_pass, 1, 0, 14.0, "By-pass", (0.0, 0.0)),
    ]
    turn = location.rotation
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for street in streets:
        street.line = street.line @ rotation.T
    centers = [p @ rotation.T for p in (a, b, c, d, fork, merge)]
    return streets, centers, [True] * 4 + [False] * 2


def _by_pass(fork: Float, fork_heading: float, merge: Float, merge_heading: float) -> Float:
    """One-way street that starts beside the fork's right lane and ends beside the merge's right lane."""

    def beside(point: Float, heading: float, ahead: float, right: float) -> Float:
        along = np.array([np.cos(heading), np.sin(heading)])
        return point + along * ahead + np.array([along[1], -along[0]]) * right

    start, finish = beside(fork, fork_heading, FORK_TRIM, 12.5), beside(merge, merge_heading, -FORK_TRIM, 12.5)
    way = [
        start,
        beside(start, fork_heading, 26.0, 9.0),
        np.array([max(start[0] + 22.0, fork[0] + 30.0), finish[1] + 20.0]),
        beside(finish, merge_heading, -26.0, 9.0),
        finish,
    ]
    return curves.round_corners(np.array(way), 38.0)


def _nearest(line: Float, point: Float) -> int:
    return int(np.argmin(np.hypot(*(line - point).T)))


def _connect(node: int, roads: list[Carriageway], signalled: bool, first: int) -> list[Connector]:
    """Connectors through one junction: from the fitting lane of each arm to the fitting lane of each other arm."""
    connectors: list[Connector] = []
    for source in (c for c in roads if c.to_node == node):
        for target in (c for c in roads if c.from_node == node and c.street != source.street):
            h0, h1 = source.lane_end(0, False)[1], target.lane_end(0, True)[1]
            bearing = float(np.angle(np.exp(1j * (h1 - h0))))
            turn = "straight" if abs(bearing) < 0.8 else ("left" if bearing > 0 else "right")
            side_street = target.left_margin > 0 or source.left_margin > 0  # by-pass: right lane only
            if side_street and turn != "straight":
                continue  # the by-pass is one-way and only joins traffic in its own direction
            if turn == "straight" and not side_street:
                shared = min(source.lanes, target.lanes)
                pairs = [(source.lanes - 1 - k, target.lanes - 1 - k) for k in range(shared)]
            elif turn == "left":
                pairs = [(0, 0)]
            else:
                pairs = [(source.lanes - 1, target.lanes - 1)]
            for i, j in pairs:
                start, a0 = source.lane_end(i, False)
                end, a1 = target.lane_end(j, True)
                line = curves.resample(curves.bezier(start, a0, end, a1), STEP)
                yields = (turn == "left" and signalled) or source.left_margin > 0
                connectors.append(
                    Connector(first + len(connectors), node, (source.index, i), (target.index, j), line, turn, yields)
                )
    return connectors


def _conflicts(connectors: list[Connector]) -> NDArray[np.bool_]:
    """Pairs of connectors from different lanes whose vehicles would touch."""
    lines = [LineString(c.line) for c in connectors]
    out = np.zeros((len(connectors), len(connectors)), bool)
    for i, a in enumerate(connectors):
        for j, b in enumerate(connectors):
            out[i, j] = i != j and a.source != b.source and lines[i].distance(lines[j]) < 2.8
    return out


def _phases(node: int, roads: list[Carriageway]) -> dict[int, int]:
    """Opposite arms share a phase: phase 0 along the first arm's axis, phase 1 across it."""
    arms = [c for c in roads if c.to_node == node]
    first = arms[0].lane_end(0, False)[1]
    return {c.index: int(abs(np.cos(c.lane_end(0, False)[1] - first)) < 0.7) for c in arms}


def _arm_edges(node: int, roads: list[Carriageway]) -> list[tuple[Float, Float]]:
    """Per street at a node: the two outer corners of its end."""
    edges: dict[int, list[Float]] = {}
    for c in roads:
        if c.to_node == node or c.from_node == node:
            i = 0 if c.from_node == node else -1
            ends = [curves.offset(c.line, c.right_edge)[i], curves.offset(c.line, c.left_margin)[i]]
            edges.setdefault(c.street, []).extend(ends if c.left_margin > 0 else ends[:1])
    return [(points[0], points[1]) for points in edges.values()]


def _outline(center: Float, node: int, roads: list[Carriageway], rounded: bool) -> Float:
    """Junction polygon: the arms' end corners, joined by curbs that curve in (crossroads) or by the convex hull."""
    arms = _arm_edges(node, roads)
    if not rounded:
        hull = LineString(np.concatenate([np.stack([p, q]) for p, q in arms])).convex_hull
        return np.asarray(hull.exterior.coords)[:-1]
    ordered = []
    for p, q in arms:
        mid = 0.5 * (p + q) - center
        side = np.array([-mid[1], mid[0]])
        if (p - q) @ side > 0:  # clockwise corner first
            p, q = q, p
        ordered.append((float(np.arctan2(mid[1], mid[0])), p, q))
    ordered.sort(key=lambda arm: arm[0])
    points: list[Float] = []
    for (_, p, q), (_, following, _) in zip(ordered, ordered[1:] + ordered[:1]):
        points += [p, q]
        along_q, along_f = _unit(q - center), _unit(following - center)
        bisector = _unit(along_q + along_f)
        chord = 0.5 * (q + following)
        control = chord - bisector * 0.42 * np.linalg.norm(following - q)
        t = np.linspace(0, 1, 9)[1:-1, None]
        points += list((1 - t) ** 2 * q + 2 * t * (1 - t) * control + t**2 * following)
    return np.asarray(points)


def _unit(v: Float) -> Float:
    return v / np.linalg.norm(v)


def _crosswalks(rng: np.random.Generator, roads: list[Carriageway], nodes: list[Node]) -> list[Crosswalk]:
    """One crossing on every arm of every crossroads, and one in the middle of some streets."""
    out: list[Crosswalk] = []
    for c in roads:
        if not nodes[c.to_node].signalled or c.left_margin > 0:
            continue
        heading = float(curves.headings(c.line)[-1])
        out.append(_crossing(c, c.line[-1], heading, 2.0, 5.2, c.to_node, c.length))
    for street in sorted({c.street for c in roads if c.left_margin == 0}):
        c = next(c for c in roads if c.street == street)
        if c.length < 80 or rng.random() < 0.3:
            continue
        station = c.length * rng.uniform(0.42, 0.58)
        i = int(np.argmin(abs(curves.arc_length(c.line) - station)))
        out.append(_crossing(c, c.line[i], float(curves.headings(c.line)[i]), -1.6, 1.6, -1, station))
    return out


def _crossing(
    c: Carriageway, point: Float, heading: float, near: float, far: float, node: int, station: float
) -> Crosswalk:
    along = np.array([np.cos(heading), np.sin(heading)])
    left = np.array([-along[1], along[0]])
    half = -c.right_edge  # both directions have the same width on two-way streets
    corners = [point + along * s + left * w for s, w in ((near, -half), (far, -half), (far, half), (near, half))]
    middle = point + along * 0.5 * (near + far)
    return Crosswalk(
        np.asarray(corners), middle - left * (half + 1.4), middle + left * (half + 1.4), node, c.index, station
    )


def _car_parks(rng: np.random.Generator, roads: list[Carriageway], nodes: list[Node]) -> list[tuple[Float, float]]:
    """Small car parks beside some inner streets, open to the carriageway."""
    out: list[tuple[Float, float]] = []
    taken = [Polygon(c.polygon()).buffer(1.0) for c in roads] + [Polygon(n.outline).buffer(1.0) for n in nodes]
    for c in roads:
        if c.left_margin > 0 or c.length < 70 or rng.random() < 0.5:
            continue
        i = len(c.line) // 4
        heading = float(curves.headings(c.line)[i])
        along = np.array([np.cos(heading), np.sin(heading)])
        right = np.array([along[1], -along[0]])
        origin = c.line[i] + right * (-c.right_edge - 0.5)
        box = np.array([origin, origin + right * 18, origin + right * 18 + along * 22, origin + along * 22])
        others = [p for p, d in zip(taken, [*roads, *nodes]) if d is not c]
        if not any(Polygon(box).intersects(p) for p in others):
            out.append((box, heading))
            taken.append(Polygon(box).buffer(1.0))
    return out[:4]
