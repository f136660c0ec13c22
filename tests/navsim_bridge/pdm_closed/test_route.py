from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from navsim_bridge.files.maps import MapError, VectorMap, open_map
from navsim_bridge.pdm_closed.route import official_route
from tests.navsim_bridge.conftest import FIXTURE, LOCATION, World
from tests.navsim_bridge.pdm_closed.tiny_map import ORIGIN, TinyMap, chain

STREET = [(30 * i, 30 * i + 20) for i in range(16)]
"""Blocks 1 to 16, each 20 m long, with 10 m of junction between them."""
CROSSING = [(20, -5), (30, -5), (30, 5), (20, 5)]


def at(x: float, y: float = 0.0, heading: float = 0.0) -> NDArray[np.float64]:
    return np.array([ORIGIN[0] + x, ORIGIN[1] + y, heading])


def local(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points - (*ORIGIN, 0.0)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> VectorMap:
    """One lane along x; roadblock i is lane 10 + i, followed by connector 200 + i of junction 100 + i."""
    return chain(*STREET).write(tmp_path_factory.mktemp("street"))


def ids(*numbers: int) -> tuple[Any, ...]:
    return tuple(map(str, numbers))


def test_centerlines_are_those_of_the_official_cache(world: World) -> None:
    vector_map = open_map(world.maps, LOCATION)
    with np.load(FIXTURE / "official_references.npz") as file:
        tokens, lines = (
            file["tokens"].tolist(),
            np.split(file["centerlines"], np.cumsum(file["centerline_counts"])[:-1]),
        )
    compared = 0
    for record in world.records:
        if record.token in tokens:
            found = official_route(vector_map, record.route, record.pose).centerline
            expected = lines[tokens.index(record.token)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            compared += 1
    assert compared == 7


def test_the_centerline_leads_from_the_ego_lane_to_the_end_of_the_route(street: VectorMap) -> None:
    found = official_route(street, ids(1, 101, 2), at(5))
    assert found.roadblocks == ids(1, 101, 2)
    assert found.lanes == found.given_lanes == found.centerline_lanes == ids(11, 201, 12)
    assert found.starting_lane == "11"
    assert found.speed_limit == 10.0
    assert found.reaches_end
    line = local(found.centerline)
    np.testing.assert_allclose(line[[0, -1]], [[0, 0, 0], [50, 0, 0]], atol=1e-5)
    joints = np.flatnonzero(np.abs(np.diff(line[:, 0])) < 1e-6)
    np.testing.assert_allclose(line[joints, 0], [20, 30], atol=1e-5)  # end of a lane and start of the next


def test_base_lines_keep_the_heading_of_their_last_step_at_the_joints(tmp_path: Path) -> None:
    tiny = TinyMap()
    tiny.road(1, {11: [(0, 0), (20, 0)]})
    tiny.road(2, {12: [(28, 8), (28, 30)]})
    tiny.junction(101, {201: (11, 12)})
    line = local(official_route(tiny.write(tmp_path), ids(1, 101, 2), at(5)).centerline)
    end_of_first = np.flatnonzero(np.abs(line[:, 0] - 20) < 1e-5)
    np.testing.assert_allclose(line[end_of_first, 2], [0, np.pi / 4], atol=1e-5)
    assert line[-1, 2] == line[-2, 2]


def test_scenes_share_a_centerline_that_cannot_be_written_to(street: VectorMap) -> None:
    one, other = (official_route(street, ids(1, 101, 2), at(x)).centerline for x in (5, 6))
    assert one is other
    with pytest.raises(ValueError, match="read-only"):
        one[0, 0] = 0.0


def test_repeated_roadblocks_are_dropped(street: VectorMap) -> None:
    assert official_route(street, ids(1, 101, 1, 2, 101), at(5)).roadblocks == ids(1, 101, 2)


def test_a_route_that_begins_ahead_is_extended_back_to_the_ego(street: VectorMap) -> None:
    found = official_route(street, ["3"], at(5))
    assert found.roadblocks == ids(1, 101, 2, 102, 3)
    assert found.given_lanes == ("13",)
    assert found.centerline_lanes == ids(11, 201, 12, 202, 13)


def test_a_route_is_left_alone_where_the_ego_is_too_far_from_it(street: VectorMap) -> None:
    # 29 roadblocks from first to last are within the forward search's 30, 31 are not
    assert len(official_route(street, ["15"], at(5)).roadblocks) == 29
    found = official_route(street, ["16"], at(5))
    assert found.roadblocks == ("16",)
    assert found.starting_lane == "26"


@pytest.fixture(scope="module")
def with_side_streets(tmp_path_factory: pytest.TempPathFactory) -> VectorMap:
    """Blocks 1, 2, 3 along x; block 5 leads to 2 and block 6 to 3 from below."""
    tiny = chain(*STREET[:3])
    tiny.road(5, {15: [(10, -40), (20, -10)]})
    tiny.road(6, {16: [(40, -40), (50, -10)]})
    tiny.junction(105, {205: (15, 12)})
    tiny.junction(106, {206: (16, 13)})
    return tiny.write(tmp_path_factory.mktemp("side"))


def test_an_ego_that_joins_the_route_later_skips_its_beginning(with_side_streets: VectorMap) -> None:
    heading = np.arctan2(30, 10)
    found = official_route(with_side_streets, ids(1, 101, 2, 102, 3), at(12, -34, heading))
    assert found.roadblocks == ids(5, 105, 2, 102, 3)
    assert found.centerline_lanes == ids(15, 205, 12, 202, 13)


def test_only_the_first_three_roadblocks_of_a_route_are_joined(with_side_streets: VectorMap) -> None:
    heading = np.arctan2(30, 10)
    found = official_route(with_side_streets, ids(1, 101, 2, 102, 3), at(42, -34, heading))
    assert found.roadblocks == ids(1, 101, 2, 102, 3)
    assert found.starting_lane == "12"  # nearest to the ego's outline


def test_gaps_are_filled(street: VectorMap) -> None:
    assert official_route(street, ids(1, 3, 103), at(5)).roadblocks == ids(1, 101, 2, 102, 3, 103)


def test_a_gap_that_no_road_closes_stays_and_ends_the_centerline(street: VectorMap) -> None:
    found = official_route(street, ids(2, 102, 3, 1), at(35))
    assert found.roadblocks == ids(2, 102, 3, 1)
    assert found.centerline_lanes == ids(12, 202, 13)
    assert not found.reaches_end


def test_a_route_ends_before_it_crosses_itself(tmp_path: Path) -> None:
    tiny = chain(*STREET[:2])
    tiny.road(3, {13: [(60, 0), (80, 0)]})
    tiny.road(4, {14: [(90, 0), (110, 0)]})
    tiny.junction(102, {202: (12, 13)}, area=CROSSING)
    tiny.junction(103, {203: (13, 14)})
    vector_map = tiny.write(tmp_path)
    assert official_route(vector_map, ids(1, 101, 2, 102, 3, 103, 4), at(5)).roadblocks == ids(1, 101, 2)
    # the first junction of a route is never the second of two
    assert official_route(vector_map, ids(2, 102, 3), at(35)).roadblocks == ids(2, 102, 3)


@pytest.mark.parametrize(("overlap", "cut"), [(0.9, False), (1.1, True)])
def test_junctions_may_overlap_by_a_square_meter(tmp_path: Path, overlap: float, cut: bool) -> None:
    tiny = chain(*STREET[:2])
    tiny.road(3, {13: [(60, 0), (80, 0)]})
    reach = 30 - overlap / 3.5  # junction 101 covers x from 20 to 30, 3.5 m wide
    tiny.junction(102, {202: (12, 13)}, area=[(reach, -5), (60, -5), (60, 5), (reach, 5)])
    found = official_route(tiny.write(tmp_path), ids(1, 101, 2, 102, 3), at(5))
    assert found.roadblocks == (ids(1, 101, 2) if cut else ids(1, 101, 2, 102, 3))


def test_an_ego_against_the_traffic_is_on_the_nearest_roadblock(street: VectorMap) -> None:
    found = official_route(street, ids(2, 102, 3), at(5, heading=np.pi))
    assert found.roadblocks == ids(1, 101, 2, 102, 3)
    assert found.starting_lane == "11"


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> VectorMap:
    """Lane 11 goes straight on to block 2 and, through junction 103, to the left to block 3."""
    tiny = chain(*STREET[:2])
    tiny.road(3, {13: [(30, 6), (50, 12)]})
    tiny.junction(103, {203: (11, 13)})
    return tiny.write(tmp_path_factory.mktemp("fork"))


def test_a_roadblock_on_the_route_comes_before_a_nearer_one(fork: VectorMap) -> None:
    heading = np.arctan2(6, 10)
    for route in (ids(1, 101, 2), ids(1, 103, 3)):
        assert official_route(fork, route, at(23, 1.6, heading)).roadblocks == route


def test_off_the_route_the_nearest_lane_in_its_direction_counts(fork: VectorMap) -> None:
    assert official_route(fork, ["3"], at(23, 1.2, 0.0)).roadblocks == ids(103, 3)
    assert official_route(fork, ["2"], at(23, 0.2, 0.5)).roadblocks == ids(101, 2)


def test_of_several_lanes_the_one_that_points_the_ego_way_is_taken(tmp_path: Path) -> None:
    tiny = TinyMap()
    tiny.road(1, {11: [(0, 0), (20, 0)]})
    tiny.road(2, {12: [(30, 0), (50, 0)], 13: [(30, 3.5), (50, 3.5)]})
    tiny.junction(101, {201: (11, 12), 202: (11, 13)})
    vector_map = tiny.write(tmp_path)
    for heading, start in ((0.1, "201"), (0.3, "202")):
        found = official_route(vector_map, ids(1, 101, 2), at(23, 0.5, heading))
        assert found.starting_lane == start
        assert found.speed_limit == 8.0


def test_equally_good_lanes_are_taken_as_the_official_index_names_them(tmp_path: Path) -> None:
    tiny = TinyMap()
    tiny.road(1, {11: [(0, 0), (20, 0)]})
    side = [(30.0, -3.5 * k) for k in range(12)]
    tiny.road(2, {12 + k: [start, (50, start[1])] for k, start in enumerate(side)})
    # each begins with the same 5 m and ends elsewhere
    lines = {201 + k: [(20.0, 0.0), (25.0, 0.0), end] for k, end in enumerate(side)}
    tiny.junction(101, {201 + k: (11, 12 + k) for k in range(12)}, lines)
    found = official_route(tiny.write(tmp_path), ids(1, 101, 2), at(22))
    assert found.starting_lane == "212"  # as the devkit's own code


@pytest.fixture(scope="module")
def two_lanes(tmp_path_factory: pytest.TempPathFactory) -> VectorMap:
    """Block 1 with lane 11 along x and lane 12 to its left, from x = 0 on; nothing follows lane 11."""
    tiny = TinyMap()
    tiny.road(1, {11: [(0, 0), (40, 0)], 12: [(0, 3.5), (40, 3.5)]}, limit=None)
    tiny.road(2, {13: [(50, 3.5), (70, 3.5)]})
    tiny.junction(101, {201: (12, 13)})
    return tiny.write(tmp_path_factory.mktemp("two"))


def test_off_the_lanes_the_one_around_the_vehicle_center_is_taken_then_the_first_touched(two_lanes: VectorMap) -> None:
    route = ids(1, 101, 2)
    assert official_route(two_lanes, route, at(-1.0, 2.5)).starting_lane == "12"
    assert official_route(two_lanes, route, at(-1.6, 2.5)).starting_lane == "11"


def test_off_the_road_the_lane_nearest_to_the_vehicle_is_taken(two_lanes: VectorMap) -> None:
    assert official_route(two_lanes, ids(1, 101, 2), at(10, 20)).starting_lane == "12"
    assert official_route(two_lanes, ids(1, 101, 2), at(70, 20)).starting_lane == "13"


def test_a_lane_that_does_not_go_on_ends_the_centerline(two_lanes: VectorMap) -> None:
    found = official_route(two_lanes, ids(1, 101, 2), at(5, 0))
    assert found.centerline_lanes == ("11",)
    assert not found.reaches_end
    assert np.isnan(found.speed_limit)
    assert official_route(two_lanes, ids(1, 101, 2), at(5, 3.5)).centerline_lanes == ids(12, 201, 13)


@pytest.mark.parametrize(("detour", "by"), [(201, 13), (202, 12)])
def test_the_centerline_takes_the_shorter_way(tmp_path: Path, detour: int, by: int) -> None:
    tiny = TinyMap()
    tiny.road(1, {11: [(0, 0), (20, 0)]})
    tiny.road(2, {12: [(40, -2), (60, -2)], 13: [(40, 2), (60, 2)]})
    tiny.road(3, {14: [(80, 0), (100, 0)]})
    ends = {201: (40.0, -2.0), 202: (40.0, 2.0)}
    lines = {i: [(20.0, 0.0), end] for i, end in ends.items()}
    lines[detour] = [(20.0, 0.0), (30.0, 6.0), ends[detour]]
    tiny.junction(101, {201: (11, 12), 202: (11, 13)}, lines)
    tiny.junction(102, {203: (12, 14), 204: (13, 14)})
    found = official_route(tiny.write(tmp_path), ids(1, 101, 2, 102, 3), at(5))
    assert found.centerline_lanes == ids(11, by + 189, by, by + 191, 14)


def test_the_centerline_ends_after_thirty_roadblocks(street: VectorMap) -> None:
    route = [str(i) for k in range(1, 17) for i in (k, 100 + k)][:-1]
    found = official_route(street, route, at(5))
    assert found.roadblocks == tuple(route)
    assert found.centerline_lanes[-1] == "215"  # of the 30th
    assert official_route(street, route, at(35)).centerline_lanes[-1] == "26"


def test_the_centerline_ends_with_the_route_though_the_road_goes_on(street: VectorMap) -> None:
    assert official_route(street, ["1"], at(5)).centerline_lanes == ("11",)


def test_what_cannot_be_planned_is_refused(street: VectorMap) -> None:
    with pytest.raises(ValueError, match="roadblock_ids is empty"):
        official_route(street, [], at(5))
    with pytest.raises(MapError, match="route names roadblock 77"):
        official_route(street, ids(1, 77), at(5))
    with pytest.raises(ValueError, match="three finite numbers"):
        official_route(street, ids(1), at(np.nan))
    with pytest.raises(MapError, match="nothing drivable within 100 m"):
        official_route(street, ids(1), at(-200))
