"""Where vehicles start, on roads made by hand and on a generated map."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from navsim_bridge.files.map_tables import MapError
from navsim_bridge.files.maps import Lane, Polygon, VectorMap, open_map
from navsim_bridge.pdm.metric_scene import TrafficInputs
from navsim_bridge.traffic.starts import traffic_inputs
from tests.navsim_bridge.conftest import LOCATION, write_map

Float = NDArray[np.float64]
EGO = np.array([-50.0, 0.0, 0.0])


class Roads:
    """A map of areas and lanes, as much of `VectorMap` as starts need."""

    def __init__(self) -> None:
        self.areas: list[Polygon] = []
        self.lanes: dict[str, Lane] = {}

    def add(self, layer: str, token: str, box: tuple[float, float, float, float], line: Float | None = None,
            limit: float = np.nan) -> Roads:  # fmt: skip
        corners = np.array(shapely.box(*box).exterior.coords)[:-1]
        self.areas.append(Polygon(token, layer, (4,), corners))
        if line is not None:
            points = np.column_stack([line, np.zeros(len(line))])
            self.lanes[token] = Lane(token, "", layer != "LANE", limit, (), (), points)
        return self

    def at(self, layer: str, x: float, y: float) -> list[Polygon]:
        point = shapely.Point(x, y)
        return [area for area in self.areas if area.layer == layer and area.shape().intersects(point)]


def straight(y: float = 0.0, first: float = 0.0, last: float = 100.0) -> Float:
    x = np.linspace(first, last, 101)
    return np.column_stack([x, np.full(101, y)])


def start(roads: Roads | VectorMap, *vehicles: tuple[float, ...], ego: Float = EGO) -> TrafficInputs:
    """Vehicles (x, y, heading, speed, ...), 4 m long and 2 m wide, named a, b, ..."""
    found = np.array([v[:4] for v in vehicles])
    boxes = np.column_stack([found[:, :3], np.full(len(found), 4.0), np.full(len(found), 2.0)])
    velocities = found[:, 3, None] * np.stack([np.cos(found[:, 2]), np.sin(found[:, 2])], axis=1)
    tokens = tuple("abcdefgh"[: len(found)])
    types = ["VEHICLE"] * len(found)
    return traffic_inputs(("later", *tokens), tokens, types, boxes, velocities, ego, cast(VectorMap, roads))


@pytest.fixture
def road() -> Roads:
    return Roads().add("LANE", "1", (0, -2, 100, 2), straight(), limit=13.0)


def test_a_vehicle_on_a_lane_is_moved_onto_its_line(road: Roads) -> None:
    found = start(road, (20.0, 1.0, 0.2, 5.0))
    assert found.follower.tolist() == [0] and found.follower_limit.tolist() == [13.0]
    np.testing.assert_allclose(found.follower_pose, [[20.0, 0.0, 0.0]])
    np.testing.assert_allclose(found.follower_progress, [20.0])
    np.testing.assert_array_equal(found.line_points, straight())
    assert found.present.tolist() == [False, True] and found.vehicle_track.tolist() == [1]


def test_at_the_end_of_a_line_the_heading_is_that_of_its_last_piece(road: Roads) -> None:
    bent = np.vstack([straight(first=0.0, last=90.0), [95.0, 5.0]])
    roads = Roads().add("LANE", "1", (0, -9, 120, 9), bent)
    np.testing.assert_allclose(start(roads, (96.0, 6.0, 0.0, 1.0)).follower_pose, [[95.0, 5.0, np.pi / 4]])


def test_what_has_no_lane_is_parked_when_it_stands_and_gone_when_it_moves(road: Roads) -> None:
    found = start(road, (20.0, 9.0, 0.0, 0.0), (40.0, 9.0, 0.0, 0.09), (60.0, 9.0, 0.0, 0.1), (80.0, 2.0, 0.0, 0.0))
    assert found.parked.tolist() == [True, True, False, True]  # the last on the lane's edge: not in it
    assert found.follower.tolist() == []


def test_what_is_far_from_its_line_stays_whether_it_moves_or_not() -> None:
    wide = Roads().add("LANE", "1", (0, -9, 100, 9), straight())
    found = start(wide, (20.0, 3.5, 0.0, 9.0), (40.0, 3.0, 0.0, 0.0))
    assert found.parked.tolist() == [True, False] and found.follower.tolist() == [1]


def test_in_an_intersection_the_line_with_the_nearest_heading_is_followed_not_wrapped() -> None:
    roads = Roads().add("INTERSECTION", "9", (0, -9, 100, 9))
    roads.add("LANE_CONNECTOR", "1", (0, -9, 100, 9), straight(0.5)[::-1])  # heads to pi
    roads.add("LANE_CONNECTOR", "2", (0, -9, 100, 9), straight(0.0))
    assert start(roads, (30.0, 0.0, 3.1, 5.0)).follower_pose[0, 2] == pytest.approx(np.pi)
    # -3.1 is 0.04 from pi on the circle, but 6.2 away as a number
    assert start(roads, (30.0, 0.0, -3.1, 5.0)).follower_pose[0, 2] == pytest.approx(0.0)


def test_connectors_count_in_intersections_alone_and_lanes_come_first() -> None:
    outside = Roads().add("LANE_CONNECTOR", "1", (0, -9, 100, 9), straight())
    assert start(outside, (30.0, 0.0, 0.0, 5.0)).follower.tolist() == []
    both = outside.add("INTERSECTION", "9", (0, -9, 100, 9)).add("LANE", "2", (0, -9, 100, 9), straight(1.0))
    np.testing.assert_allclose(start(both, (30.0, 0.0, 0.0, 5.0)).follower_pose[0, :2], [30.0, 1.0])


def test_no_vehicle_starts_where_the_ego_or_an_earlier_one_is(road: Roads) -> None:
    on_road = np.array([18.0, 0.0, 0.0])
    found = start(
        road, (20.0, 0.0, 0.0, 5.0), (40.0, 1.9, 0.0, 5.0), (43.0, -1.9, 0.0, 5.0), (60.0, 0, 0, 5), ego=on_road
    )
    assert found.follower.tolist() == [1, 3] and not found.parked.any()


def test_a_lane_without_a_limit_takes_that_of_the_vehicle_before() -> None:
    roads = Roads().add("LANE", "1", (0, -2, 100, 2), straight()).add("LANE", "2", (0, 2, 100, 6), straight(4.0), 7.0)
    roads.add("LANE", "3", (0, 6, 100, 10), straight(8.0), limit=0.0)
    found = start(roads, (10.0, 0, 0, 1), (30.0, 4, 0, 1), (50.0, 0, 0, 1), (70.0, 8, 0, 1))
    assert found.follower_limit.tolist() == [10.0, 7.0, 7.0, 7.0]


def test_a_lane_whose_line_the_map_lacks_is_no_lane() -> None:
    class Broken(dict[str, Lane]):
        def get(self, key: str, default: Any = None) -> Any:
            raise MapError("no line")

    roads = Roads().add("LANE", "1", (0, -2, 100, 2))
    roads.lanes = Broken()
    found = start(roads, (20.0, 0.0, 0.0, 0.0))
    assert found.follower.tolist() == [] and found.parked.tolist() == [False]  # it stands in a lane, all the same


def test_what_is_no_vehicle_is_left_alone(road: Roads) -> None:
    boxes = np.array([[20.0, 0.0, 0.0, 4.0, 2.0]] * 2)
    arguments = (boxes, np.zeros((2, 2)), EGO, cast(VectorMap, road))
    found = traffic_inputs(("a", "b"), ("a", "b"), ("PEDESTRIAN", "VEHICLE"), *arguments)
    assert found.vehicle_track.tolist() == [1] and found.follower.tolist() == [0] and found.present.all()
    none = traffic_inputs((), (), (), np.zeros((0, 5)), np.zeros((0, 2)), EGO, cast(VectorMap, road))
    assert all(len(getattr(none, f.name)) == (f.name == "line_offsets") for f in dataclasses.fields(none))


def test_starts_on_a_generated_map_are_those_found_by_looking_at_every_lane(tmp_path: Path) -> None:
    write_map(tmp_path)
    vector_map, rng = open_map(tmp_path, LOCATION), np.random.default_rng(3)
    lanes = [vector_map.lanes[token] for token in vector_map.lanes]
    shapes = {
        layer: list(zip((p.token for p in vector_map.polygons[layer]), vector_map.shapes(layer)))
        for layer in ("LANE", "INTERSECTION", "LANE_CONNECTOR")
    }
    on_lanes = 0
    for _ in range(40):
        line = lanes[int(rng.integers(len(lanes)))].baseline
        x, y, heading = line[int(rng.integers(len(line)))] + rng.normal(0.0, [2.0, 2.0, 1.0])
        point = shapely.Point(x, y)
        held = {layer: [t for t, shape in some if shape.contains(point)] for layer, some in shapes.items()}
        tokens = held["LANE"] or (held["LANE_CONNECTOR"] if held["INTERSECTION"] else [])
        far = np.array([x + 60.0, y, 0.0])
        found = start(vector_map, (x, y, heading, 5.0), ego=far)
        if not tokens:
            assert not len(found.follower) and not found.parked.any()
            continue
        on_lanes += 1
        near = [shapely.LineString(vector_map.lanes[token].baseline[:, :2]).distance(point) for token in tokens]
        if len(found.follower):
            np.testing.assert_allclose(np.hypot(*(found.follower_pose[0, :2] - [x, y])), near, atol=4.0)
            assert any(np.array_equal(found.line_points, vector_map.lanes[t].baseline[:, :2]) for t in tokens)
        else:
            assert found.parked.all() and max(near) > 3.0
    assert on_lanes > 10
