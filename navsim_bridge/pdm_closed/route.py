"""Route and centerline of a scene as the devkit's reference planner (PDM-Closed) makes them.

The scene's roadblock ids are corrected to begin where the ego is and to have no gaps and loops; a starting lane is
chosen among the lanes of the corrected route; the shortest chain of its lanes to the end of the route gives the
centerline. Rules, parameters and what is not deterministic: ``docs/official_centerline.md``. Versions 1.1 and 2 of
the devkit do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.files.maps import Lane, MapError, VectorMap
from navsim_bridge.pdm_closed.boxes import EGO_HALF, corners, ego_centers
from navsim_bridge.pdm_closed.lane_graph import chain_lanes, link_blocks

NEAR = 1.0
"""Half-width [m] of the square around the rear axle whose roadblocks the ego may be on."""
MAX_HEADING_ERROR = np.pi / 4
"""[rad] a lane that the ego is on leads its way within this."""
MAX_DISPLACEMENT = 3.0
"""[m] to the nearest point of the base line of a lane that the ego is on."""
SEARCH_BACKWARD, SEARCH_FORWARD = 15, 30
"""Most roadblocks in a chain that is looked for, towards the ego and from it."""
FORWARD_TARGETS = 3
"""The first so many roadblocks of the route are what a search from the ego's roadblock aims at."""
LOOP_AREA = 1.0
"""[m^2] of overlap between two roadblock connectors beyond which the route has come back to where it was."""
MAX_BLOCKS = 30
"""The centerline leads to at most this many roadblocks, counted from the starting lane's."""
MAP_RADIUS = 100.0
"""Half-width [m] of the square in which the devkit keeps polygons; only decides between equally good lanes."""
_NODE_CAPACITY = 10
_KEPT = 512

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OfficialRoute:
    """What the reference planner knows of its way."""

    roadblocks: tuple[str, ...]
    """Corrected route: roadblock and roadblock-connector ids in driving order, none twice."""
    lanes: tuple[str, ...]
    """Lanes and lane connectors of ``roadblocks``, in route order, within a roadblock in table order. The metric
    cache's route_lane_ids."""
    given_lanes: tuple[str, ...]
    """Lanes of the route as it was given, before correction: those whose red lights the cache of navsim v2 keeps."""
    starting_lane: str
    """On-route lane that the ego is in or nearest to."""
    speed_limit: float
    """[m/s] of the starting lane; NaN where the map has none."""
    centerline_lanes: tuple[str, ...]
    """Chain of lanes behind the centerline, beginning with the starting lane."""
    reaches_end: bool
    """Whether the chain reaches the last roadblock that it was to lead to; else it is the longest one, by lanes."""
    centerline: Float
    """(point, 3) x, y [m], heading [rad], global frame, read-only: the points of the lanes' base lines, one lane after
    the other. The last point of a lane and the first of the next are both there, mostly at the same place, and the
    last point of a lane has the heading of its last step."""


def official_route(vector_map: VectorMap, roadblock_ids: Sequence[str], pose: Float) -> OfficialRoute:
    """Corrected route, its lanes and the centerline of one scene.

    What neighboring scenes share is kept per map, for the last few maps.

    Args:
        vector_map: map of the scene's location.
        roadblock_ids: the route of the scene's frame at t = 0, in the log's order.
        pose: (3,) x, y, heading of the rear axle at t = 0, global frame.

    Raises:
        MapError: the route names a roadblock that the map does not have, or has no lane at all, nothing drivable is
            near the ego, or a lane or connector of the route has no usable polygon where one is needed.
        ValueError: an empty route, or a pose that is not three finite numbers.
    """
    return _finder(vector_map).find(roadblock_ids, pose)


@lru_cache(maxsize=8)
def _finder(vector_map: VectorMap) -> RouteFinder:
    return RouteFinder(vector_map)


class RouteFinder:
    """Finds official routes on one map; searches that neighboring scenes share are done once."""

    def __init__(self, vector_map: VectorMap) -> None:
        self._map = vector_map
        self._points: dict[str, tuple[Float, NDArray[np.int64]]] = {}
        self._shapes = lru_cache(None)(vector_map.shapes)
        self._shape = lru_cache(_KEPT)(self._find_shape)
        self._route_lanes = lru_cache(_KEPT)(self._find_route_lanes)
        self._corrected = lru_cache(_KEPT)(self._correct)
        self._chain = lru_cache(_KEPT)(self._find_chain)
        self._length = lru_cache(None)(self._find_length)

    def find(self, roadblock_ids: Sequence[str], pose: Float) -> OfficialRoute:
        """As `official_route`."""
        pose = np.asarray(pose, dtype=np.float64)
        if pose.shape != (3,) or not np.isfinite(pose).all():
            raise ValueError(f"expected a pose of three finite numbers (x, y, heading), found {pose.tolist()}")
        given = tuple(dict.fromkeys(map(str, roadblock_ids)))
        if not given:
            raise ValueError("the scene has no route (roadblock_ids is empty)")
        given_lanes = self._route_lanes(given)
        forward = ego_centers(np.array([0.0, 0.0, pose[2]]))
        center = pose[:2] + forward
        rear = np.append(center - forward, pose[2])  # the devkit stores the center and computes the rear axle from it
        roadblocks = self._corrected(given, *self._blocks_at(rear, given))
        lanes = self._route_lanes(roadblocks)
        start = self._starting_lane(lanes, rear, center)
        chain, reaches_end, centerline = self._chain(roadblocks, start.id)
        return OfficialRoute(
            roadblocks=roadblocks,
            lanes=lanes,
            given_lanes=given_lanes,
            starting_lane=start.id,
            speed_limit=start.speed_limit,
            centerline_lanes=chain,
            reaches_end=reaches_end,
            centerline=centerline,
        )

    def _find_route_lanes(self, route: tuple[str, ...]) -> tuple[str, ...]:
        lanes: dict[str, None] = {}
        for block in route:
            if block not in self._map.blocks:
                raise MapError(f"{self._map.path}: route names roadblock {block}, which the map does not have")
            lanes.update(dict.fromkeys(self._map.blocks[block].lanes))
        return tuple(lanes)

    # Where the ego is

    def _blocks_at(self, rear: Float, route: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The roadblock that the ego is on, and all that it may be on.

        Roadblocks count that have a lane near the ego in its direction; those on the route come before all others.
        Where none counts, it is the nearest, whatever its direction.
        """
        layers = ("ROADBLOCK", "ROADBLOCK_CONNECTOR")
        found = [p.token for layer in layers for p in self._map.near(layer, rear[0], rear[1], NEAR)]
        around = list(dict.fromkeys(found)) or [i for layer in layers for i in self._nearest_block(layer, rear)]
        on_route: list[tuple[float, str]] = []
        off_route: list[tuple[float, str]] = []
        nearest: list[float] = []
        for block in around:
            displacement, heading_error = self._errors(block, rear)
            nearest.append(min(displacement, default=np.inf))
            suits = on_route if block in route else off_route
            for meters, radians in zip(displacement, heading_error):
                if radians < MAX_HEADING_ERROR and meters < MAX_DISPLACEMENT:
                    suits.append((meters, block))
        for suits in (on_route, off_route):
            if suits:
                return min(suits, key=lambda pair: pair[0])[1], tuple(dict.fromkeys(block for _, block in suits))
        if not around:
            raise MapError(f"{self._map.path}: the map has no roadblock")
        return around[int(np.argmin(nearest))], tuple(around)

    def _nearest_block(self, layer: str, rear: Float) -> tuple[str, ...]:
        shapes = self._shapes(layer)
        if not len(shapes):
            return ()
        distances = shapely.distance(shapes, shapely.Point(rear[0], rear[1]))
        # The devkit sorts all distances by numpy's default (unstable) sort; equal ones are common, because
        # neighboring roadblocks share corners.
        return (self._map.polygons[layer][int(np.argsort(distances)[0])].token,)

    def _errors(self, block: str, rear: Float) -> tuple[list[float], list[float]]:
        """Per lane of a roadblock, at the base-line point nearest to the rear axle: distance and heading error."""
        points, starts = self._base_points(block)
        away = np.sqrt(((points[:, :2] - rear[:2]) ** 2).sum(axis=1))
        nearest = [int(start + np.argmin(away[start:stop])) for start, stop in pairwise(starts)]
        error = points[nearest, 2] - rear[2]
        return away[nearest].tolist(), np.abs(np.arctan2(np.sin(error), np.cos(error))).tolist()

    def _base_points(self, block: str) -> tuple[Float, NDArray[np.int64]]:
        """(point, 3) of all lanes of a roadblock, and where each lane begins."""
        if block not in self._points:
            lines = [self._map.lanes[i].baseline for i in self._map.blocks[block].lanes]
            starts = np.cumsum([0] + [len(line) for line in lines])
            self._points[block] = (np.concatenate(lines) if lines else np.zeros((0, 3))), starts
        return self._points[block]

    # Route correction

    def _correct(self, given: tuple[str, ...], current: str, may_be_on: tuple[str, ...]) -> tuple[str, ...]:
        blocks = self._map.blocks
        route = list(given)
        if current not in route:
            back = link_blocks(blocks, route[0], may_be_on, SEARCH_BACKWARD, forward=False)
            ahead = back or link_blocks(blocks, current, route[:FORWARD_TARGETS], SEARCH_FORWARD)
            if back:
                route = [*back[:-1], *route]
            elif ahead:
                route = [*ahead, *route[route.index(ahead[-1]) + 1 :]]
        whole = route[:1]
        for before, after in pairwise(route):
            if before not in blocks[after].incoming:
                whole += (link_blocks(blocks, before, (after,), SEARCH_FORWARD) or ())[1:-1]
            whole.append(after)
        # A block that is met again goes where it was met first, as in the devkit's dictionaries.
        return tuple(dict.fromkeys(self._without_loops(whole)))

    def _without_loops(self, route: list[str]) -> list[str]:
        """The route up to the first roadblock connector that lies over an earlier one."""
        earlier: list[shapely.Geometry] = []
        for i, block in enumerate(route):
            if not self._map.blocks[block].is_connector:
                continue
            shape = self._shape("ROADBLOCK_CONNECTOR", block)
            low_x, low_y, high_x, high_y = shape.bounds
            for other in earlier:
                left, bottom, right, top = other.bounds
                apart = left > high_x or right < low_x or bottom > high_y or top < low_y
                if not apart and self._overlap(other, shape, block) > LOOP_AREA:
                    return route[:i]
            earlier.append(shape)
        return route

    def _overlap(self, one: shapely.Geometry, other: shapely.Geometry, block: str) -> float:
        try:
            return float(shapely.area(shapely.intersection(one, other)))
        except shapely.errors.GEOSException as error:
            raise MapError(f"{self._map.path}: roadblock connector {block} on the route: {error}") from error

    def _find_shape(self, layer: str, token: str) -> shapely.Geometry:
        parts = [polygon.shape() for polygon in self._map.polygons_of(layer, token)]
        if not parts:
            raise MapError(f"{self._map.path}: {token} on the route has no polygon in layer {layer}")
        return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)

    # Centerline

    def _starting_lane(self, lanes: tuple[str, ...], rear: Float, center: Float) -> Lane:
        on_route = set(lanes)
        here = [lane for lane in self._map.lanes_at(rear[0], rear[1]) if lane.id in on_route]
        if not here:
            if not self._map.drivable(center[0], center[1], MAP_RADIUS):
                raise MapError(
                    f"{self._map.path}: nothing drivable within {MAP_RADIUS:g} m of the ego at x {center[0]:.1f}, "
                    f"y {center[1]:.1f}; the devkit has no centerline there either"
                )
            return self._map.lanes[self._lane_at_footprint(lanes, rear[2], center)]
        errors = [self._heading_error(lane, rear) for lane in here]
        best = [lane for lane, error in zip(here, errors) if error == min(errors)]
        return best[0] if len(best) == 1 else self._first_in_tree(best, rear, center)

    def _heading_error(self, lane: Lane, rear: Float) -> float:
        of_block = self._map.blocks[lane.block].lanes
        return self._errors(lane.block, rear)[1][of_block.index(lane.id)]

    def _first_in_tree(self, lanes: list[Lane], rear: Float, center: Float) -> Lane:
        """Of equally good lanes, the one that the devkit's spatial index of the polygons around the ego names first.

        The index only knows the polygons' envelopes and the order in which they were put in.
        """
        polygons = self._map.drivable(center[0], center[1], MAP_RADIUS)
        low = np.array([p.vertices.min(axis=0) for p in polygons])
        high = np.array([p.vertices.max(axis=0) for p in polygons])
        envelopes = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
        tree = shapely.STRtree(envelopes, node_capacity=_NODE_CAPACITY)
        order = [polygons[i].token for i in tree.query(shapely.Point(rear[0], rear[1]))]
        return min(lanes, key=lambda lane: order.index(lane.id))

    def _lane_at_footprint(self, lanes: tuple[str, ...], heading: float, center: Float) -> str:
        """The first lane around the vehicle's center; else the first that is nearest to its outline."""
        if not lanes:
            raise MapError(f"{self._map.path}: no roadblock of the route has a lane")
        layer = {True: "LANE_CONNECTOR", False: "LANE"}
        shapes = np.array([self._shape(layer[self._map.lanes[i].is_connector], i) for i in lanes])
        around = shapely.contains_xy(shapes, center[0], center[1])
        if around.any():
            return lanes[int(np.argmax(around))]
        outline = shapely.Polygon(corners(center, np.array(heading), EGO_HALF))
        return lanes[int(np.argmin(shapely.distance(shapes, outline)))]

    def _find_chain(self, roadblocks: tuple[str, ...], start: str) -> tuple[tuple[str, ...], bool, Float]:
        first = roadblocks.index(self._map.lanes[start].block)
        target = roadblocks[first : first + MAX_BLOCKS][-1]
        allowed = frozenset(self._route_lanes(roadblocks))
        chain, reaches_end = chain_lanes(self._map.lanes, start, allowed, target, self._length)
        centerline = np.concatenate([self._map.lanes[i].baseline for i in chain])
        centerline.flags.writeable = False
        return chain, reaches_end, centerline

    def _find_length(self, lane: str) -> float:
        return float(shapely.length(shapely.LineString(self._map.lanes[lane].baseline[:, :2])))
