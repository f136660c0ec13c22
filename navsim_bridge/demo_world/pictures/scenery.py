"""What the cameras see of a location besides traffic: ground polygons, buildings, trees, lamps and signal masts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.ops import unary_union

from navsim_bridge.demo_world.pictures import meshes
from navsim_bridge.demo_world.pictures.meshes import Mesh
from navsim_bridge.demo_world.roads import curves
from navsim_bridge.demo_world.roads.network import LANE_WIDTH, SIDEWALK, Carriageway, RoadNetwork

Float = NDArray[np.float64]

ASPHALT, JUNCTION, CURB, PAVEMENT = (92, 88, 86), (96, 92, 90), (186, 188, 188), (160, 166, 168)  # BGR
WHITE, YELLOW, CAR_PARK = (232, 234, 234), (66, 176, 226), (104, 100, 97)
FEW_CORNERS, MOST_CORNERS = 5, 80  # one to spare for the corner that cutting at the near plane adds
PIECE = 10.0  # length of the pieces that long strips are cut into [m]
BUILDING_COLORS = (
    (150, 172, 196), (122, 140, 176), (176, 182, 186), (138, 158, 168), (110, 128, 158), (188, 196, 206),
    (160, 150, 140),
)  # fmt: skip

Item = tuple[Mesh, float, float, float, float, float]
"""Mesh, x, y, heading, and for houses half length and half width (else 0)."""


@dataclass(frozen=True)
class Ground:
    """Flat polygons in drawing order, padded to a common number of corners by repeating the last."""

    corners: NDArray[np.float32]  # (polygon, corner, 2)
    colors: NDArray[np.float32]  # (polygon, 3) BGR
    centers: NDArray[np.float32]  # (polygon, 2)
    radii: NDArray[np.float32]
    fine: NDArray[np.bool_]  # small markings that may be left out far away


@dataclass(frozen=True)
class Head:
    """A signal head over a lane."""

    carriageway: int
    position: Float  # (3,)
    heading: float  # of the traffic it is meant for


@dataclass(frozen=True)
class Scenery:
    """Static picture content of one location."""

    ground: tuple[Ground, ...]  # per number of corners, drawn layer by layer through ``order``
    order: tuple[tuple[int, int, int], ...]  # (which ground, first, last) in drawing order
    meshes: tuple[Mesh, ...]  # local to ``positions``
    positions: Float  # (item, 2)
    headings: Float
    half_sizes: Float  # (item, 2) half length and width for buildings, 0 for others
    heads: tuple[Head, ...]


class _Layers:
    """Collects polygons layer by layer."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Float, tuple[int, int, int], bool]] = []

    def add(self, layer: int, polygon: Float, color: tuple[int, int, int], fine: bool = False) -> None:
        self.rows.append((layer, np.asarray(polygon), color, fine))

    def strip(
        self, layer: int, line: Float, left: float, right: float, color: tuple[int, int, int], fine: bool = False
    ) -> None:  # fmt: skip
        """A band along a polyline, in slightly overlapping quadrilaterals that follow its bends."""
        s = curves.arc_length(line)
        sides = np.stack([curves.offset(line, right), curves.offset(line, left)], axis=1)
        station = 0.0
        heading = curves.headings(line)
        while station < s[-1] - 0.05:
            end = min(station + PIECE, s[-1])
            turn = abs(np.interp(end, s, heading) - np.interp(station, s, heading))
            if turn > 0.06:  # shorter pieces in bends
                end = min(station + max(1.6, PIECE * 0.06 / turn), s[-1])
            at = np.array([station, min(end + 0.12, s[-1])])
            ends = np.stack([[np.interp(at, s, sides[:, k, i]) for i in range(2)] for k in range(2)])  # side, xy, end
            self.add(layer, np.array([ends[0, :, 0], ends[0, :, 1], ends[1, :, 1], ends[1, :, 0]]), color, fine)
            station = end

    def build(self) -> tuple[tuple[Ground, ...], tuple[tuple[int, int, int], ...]]:
        self.rows.sort(key=lambda row: row[0])
        groups: dict[int, list[int]] = {FEW_CORNERS: [], MOST_CORNERS: []}
        for i, (_, polygon, _, _) in enumerate(self.rows):
            groups[FEW_CORNERS if len(polygon) <= 4 else MOST_CORNERS].append(i)
        grounds, slot = [], {}
        for g, (size, members) in enumerate(groups.items()):
            corners = np.stack([_pad(self.rows[i][1], size) for i in members])
            middle = 0.5 * (corners.min(axis=1) + corners.max(axis=1))
            radii = np.hypot(*np.moveaxis(corners - middle[:, None], -1, 0)).max(axis=1)
            grounds.append(
                Ground(
                    corners.astype(np.float32),
                    np.array([self.rows[i][2] for i in members], np.float32),
                    middle.astype(np.float32),
                    radii.astype(np.float32),
                    np.array([self.rows[i][3] for i in members]),
                )
            )
            slot.update({i: (g, k) for k, i in enumerate(members)})
        order: list[tuple[int, int, int]] = []
        for i in range(len(self.rows)):
            g, k = slot[i]
            if order and order[-1][0] == g and order[-1][2] == k:
                order[-1] = (g, order[-1][1], k + 1)
            else:
                order.append((g, k, k + 1))
        return tuple(grounds), tuple(order)


def build_scenery(network: RoadNetwork, seed: int) -> Scenery:
    """Everything static that the cameras see at a location; the same for every log there."""
    rng = np.random.default_rng([seed, network.location.index, 23])
    layers = _Layers()
    _paint_surfaces(network, layers)
    _paint_markings(network, layers)
    ground, order = layers.build()
    items: list[Item] = []
    keep_off = unary_union(
        [shapely.Polygon(c.polygon()).buffer(SIDEWALK) for c in network.carriageways]
        + [shapely.Polygon(n.outline).buffer(SIDEWALK) for n in network.nodes]
        + [shapely.Polygon(p).buffer(1.5) for p, _ in network.car_parks]
    )
    _build_houses(network, rng, keep_off, items)
    _plant_trees(network, rng, keep_off, items)
    heads = _signal_masts(network, items)
    return Scenery(
        ground, order, tuple(i[0] for i in items), np.array([i[1:3] for i in items]), np.array([i[3] for i in items]),
        np.array([i[4:6] for i in items]), tuple(heads),
    )  # fmt: skip


def _paint_surfaces(network: RoadNetwork, layers: _Layers) -> None:
    for node in network.nodes:
        shape = shapely.Polygon(node.outline)
        for layer, grow, color in ((1, SIDEWALK, PAVEMENT), (3, 0.22, CURB), (4, 0.0, JUNCTION)):
            ring = np.asarray(shape.buffer(grow, quad_segs=3).exterior.coords)[:-1] if grow else node.outline
            layers.add(layer, ring, color)
    for outline, _ in network.car_parks:
        layers.add(3, np.asarray(shapely.Polygon(outline).buffer(0.3, join_style="mitre").exterior.coords)[:4], CURB)
        layers.add(4, outline, CAR_PARK)
        along, side = outline[3] - outline[0], outline[1] - outline[0]
        for k in range(5):
            for a, b in ((0.28, 0.56), (0.64, 0.94)):
                start = outline[0] + along * (0.12 + 0.19 * k)
                width = along / np.linalg.norm(along) * 0.12
                layers.add(5, np.array([start + side * a, start + side * b, start + side * b + width,
                                        start + side * a + width]), WHITE, True)  # fmt: skip
    for c in network.carriageways:
        left = c.left_margin if c.left_margin else 0.05
        layers.strip(1, c.line, left + (SIDEWALK if c.left_margin else 0.0), c.right_edge - SIDEWALK, PAVEMENT)
        layers.strip(2, c.line, c.right_edge + 0.1, c.right_edge - 0.22, CURB)
        if c.left_margin:
            layers.strip(2, c.line, left + 0.22, left - 0.1, CURB)
        layers.strip(4, c.line, left, c.right_edge, ASPHALT)


def _paint_markings(network: RoadNetwork, layers: _Layers) -> None:
    for c in network.carriageways:
        if c.left_margin:
            layers.strip(5, c.line, 0.08, -0.07, YELLOW)
        else:
            layers.strip(5, c.line, -0.09, -0.23, YELLOW)
        edge = -c.lanes * LANE_WIDTH
        layers.strip(5, c.line, edge + 0.06, edge - 0.07, WHITE)
        for k in range(1, c.lanes):
            _dashes(c, -k * LANE_WIDTH, layers)
        if network.nodes[c.to_node].signalled:
            s = curves.arc_length(c.line)
            tail = curves.sample_at(c.line, np.array([s[-1] - 0.75, s[-1] - 0.2]))
            layers.strip(5, tail, -0.25, edge, WHITE)
            for lane in range(c.lanes):
                turns = {network.connectors[e].turn for e in network.exits[c.index, lane]}
                _arrow(c, lane, turns, layers)
    for crossing in network.crosswalks:
        a, b, _, far = crossing.outline
        across, along = far - a, b - a
        count = int(np.linalg.norm(across) / 1.1)
        for k in range(count):
            p = a + across * ((k + 0.25) / count)
            q = p + across * (0.5 / count)
            layers.add(5, np.array([p, p + along, q + along, q]), WHITE, True)


def _dashes(c: Carriageway, lateral: float, layers: _Layers) -> None:
    s = curves.arc_length(c.line)
    left, right = curves.offset(c.line, lateral + 0.075), curves.offset(c.line, lateral - 0.075)
    for start in np.arange(2.0, s[-1] - 4.0, 7.5):
        at = np.array([start, start + 3.0])
        layers.add(5, np.concatenate([_at(right, s, at), _at(left, s, at)[::-1]]), WHITE, True)


def _arrow(c: Carriageway, lane: int, turns: set[str], layers: _Layers) -> None:
    """Pavement arrows for the turns a lane allows, 12 m before the stop line."""
    end, heading = c.lane_end(lane, at_start=False)
    along, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    base = end - along * 12.0

    def quad(points: list[tuple[float, float]]) -> None:
        layers.add(5, np.array([base + along * x + left * y for x, y in points]), WHITE, True)

    quad([(0, -0.09), (2.2, -0.09), (2.2, 0.09), (0, 0.09)])
    if "straight" in turns:
        quad([(2.2, -0.4), (3.6, 0.0), (3.6, 0.0), (2.2, 0.4)])
    for turn, sign in (("left", 1.0), ("right", -1.0)):
        if turn in turns:
            quad([(1.5, 0.0), (1.75, 0.0), (2.1, 0.6 * sign), (1.85, 0.6 * sign)])
            quad([(1.45, 0.55 * sign), (2.0, 1.15 * sign), (2.0, 1.15 * sign), (2.5, 0.55 * sign)])


def _at(side: Float, s: Float, stations: Float) -> Float:
    return np.stack([np.interp(stations, s, side[:, i]) for i in range(2)], axis=-1)


def _build_houses(
    network: RoadNetwork, rng: np.random.Generator, keep_off: shapely.Geometry, items: list[Item]
) -> None:
    """Rows of houses behind the pavements."""
    taken: list[shapely.Geometry] = []
    for c in network.carriageways:
        s = curves.arc_length(c.line)
        heading = curves.headings(c.line)
        station = rng.uniform(2, 8)
        sides = (-1.0, 1.0) if c.left_margin else (-1.0,)
        while station < s[-1] - 4:
            front, depth = rng.uniform(9, 15), rng.uniform(9, 13)
            for side in sides:
                gap = rng.uniform(2.0, 6.5)
                edge = abs(c.right_edge if side < 0 else c.left_margin) + SIDEWALK + gap + depth / 2
                at = station + front / 2
                h = float(np.interp(at, s, heading))
                x, y = curves.sample_at(c.line, np.array([at]))[0] + side * edge * np.array([-np.sin(h), np.cos(h)])
                corners = _rectangle(x, y, h, front, depth)
                footprint = shapely.Polygon(corners)
                left_out = rng.random() > 0.86
                if left_out or footprint.intersects(keep_off) or any(footprint.intersects(t) for t in taken):
                    continue
                taken.append(footprint.buffer(0.8))
                color = BUILDING_COLORS[int(rng.integers(len(BUILDING_COLORS)))]
                mesh = meshes.house(front, depth, int(rng.integers(2, 7)), color, int(rng.integers(1000)))
                items.append((mesh, x, y, h, front / 2, depth / 2))
            station += front + rng.uniform(1.0, 9.0)


def _rectangle(x: float, y: float, heading: float, length: float, width: float) -> Float:
    along, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    return np.array(
        [
            np.array([x, y]) + along * length * i / 2 + left * width * j / 2
            for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))
        ]
    )


def _plant_trees(network: RoadNetwork, rng: np.random.Generator, keep_off: shapely.Geometry, items: list[Item]) -> None:
    """Street trees at the back of the pavements, more of them where there are no houses; lamps between them."""
    houses = shapely.STRtree(
        [shapely.Polygon(_rectangle(x, y, h, 2 * a, 2 * b)).buffer(0.6) for _, x, y, h, a, b in items]
    )
    junctions = unary_union([shapely.Polygon(n.outline).buffer(2.0) for n in network.nodes])
    surfaces = unary_union([shapely.Polygon(c.polygon()).buffer(0.4) for c in network.carriageways]
                           + [shapely.Polygon(p) for p, _ in network.car_parks])  # fmt: skip

    def free(point: shapely.Point) -> bool:
        blocked = junctions.contains(point) or surfaces.contains(point)
        return not blocked and not len(houses.query(point, predicate="intersects"))

    for c in network.carriageways:
        s = curves.arc_length(c.line)
        heading = curves.headings(c.line)
        for at in np.arange(rng.uniform(3, 9), s[-1], 9.0):
            h = float(np.interp(at, s, heading))
            normal = np.array([-np.sin(h), np.cos(h)])
            base = curves.sample_at(c.line, np.array([at]))[0]
            for side in (-1.0, 1.0) if c.left_margin else (-1.0,):
                edge = abs(c.right_edge if side < 0 else c.left_margin)
                for lateral, share in ((edge + SIDEWALK - 0.7, 0.5), (edge + SIDEWALK + rng.uniform(4, 24), 0.75)):
                    x, y = base + side * lateral * normal + rng.uniform(-1, 1) * 0.5
                    if rng.random() < share and free(shapely.Point(x, y)):
                        items.append((meshes.tree(rng), float(x), float(y), 0.0, 0.0, 0.0))
        for at in np.arange(14.0, s[-1] - 6, 30.0):
            h = float(np.interp(at, s, heading))
            x, y = curves.sample_at(c.line, np.array([at]))[0] + (c.right_edge - 0.6) * np.array(
                [-np.sin(h), np.cos(h)]
            )
            if free(shapely.Point(x, y)):
                items.append((meshes.lamp(), float(x), float(y), h, 0.0, 0.0))


def _signal_masts(network: RoadNetwork, items: list[Item]) -> list[Head]:
    """A mast with an arm on each signalled approach; heads hang over the lanes so far behind the stop line that all
    lenses are in the front camera's picture of a car waiting there."""
    heads: list[Head] = []
    for c in network.carriageways:
        if not network.nodes[c.to_node].signalled:
            continue
        heading = float(curves.headings(c.line)[-1])
        along, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
        foot = c.line[-1] + along * 1.0 + left * (c.right_edge - 0.9)
        lanes = [along * 10.5 + left * c.lane_offset(k) for k in range(c.lanes)]
        reach = [c.line[-1] + p - foot for p in lanes]
        arms = [np.array([r @ along, r @ left]) for r in reach]
        items.append((meshes.mast(arms[0], 5.75), float(foot[0]), float(foot[1]), heading, 0.0, 0.0))
        heads += [Head(c.index, np.array([*(c.line[-1] + p), 4.8]), heading) for p in lanes]
    return heads


def _pad(polygon: Float, size: int) -> Float:
    if len(polygon) >= size:
        raise ValueError(f"a ground polygon has {len(polygon)} corners; at most {size - 1} are drawn")
    return np.concatenate([polygon, np.repeat(polygon[-1:], size - len(polygon), axis=0)])
