"""The road network and the drives on it keep what the PDM score and the issue ask of them."""

import numpy as np
import pytest
import shapely

from navsim_bridge.demo_world.config import LOCATIONS
from navsim_bridge.demo_world.files.log_writer import driving_command
from navsim_bridge.demo_world.roads import curves
from navsim_bridge.demo_world.roads.dressing import Dressing
from navsim_bridge.demo_world.roads.network import RoadNetwork, network_of
from navsim_bridge.demo_world.traffic.drive import Drive, box_corners, record_drive
from navsim_bridge.demo_world.traffic.paths import SPACING, Leg, build_path
from navsim_bridge.demo_world.traffic.signals import GREEN, RED, Signals
from navsim_bridge.ego import EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER


@pytest.fixture(scope="module")
def drive() -> Drive:
    return record_drive(network_of(1, 0), [0, 0, 1], 80)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("location", range(len(LOCATIONS)))
def test_networks_are_sound(location: int, seed: int) -> None:
    network = network_of(location, seed)
    for c in network.carriageways:
        assert shapely.Polygon(c.polygon()).is_valid
        for lane in range(c.lanes):
            assert network.exits[c.index, lane], f"lane {lane} of {c.street_name} leads nowhere"
            assert np.hypot(*np.diff(c.lane_line(lane), axis=0).T).max() <= 2.0
    for n in network.nodes:
        assert shapely.Polygon(n.outline).is_valid
        assert (n.conflicts == n.conflicts.T).all()
    for connector in network.connectors:
        assert np.hypot(*np.diff(connector.line, axis=0).T).max() <= 2.0
        for (carriageway, lane), at_start, end in ((connector.source, False, 0), (connector.target, True, -1)):
            assert np.allclose(
                network.carriageways[carriageway].lane_end(lane, at_start)[0], connector.line[end], atol=0.1
            )
    turns = {connector.turn for connector in network.connectors}
    assert turns == {"left", "straight", "right"}
    assert sum(n.signalled for n in network.nodes) == 4
    assert any(c.left_margin > 0 for c in network.carriageways), "no one-way by-pass to merge from"


def test_the_recorded_car_stays_on_drivable_ground(drive: Drive) -> None:
    ground = drive.network.drivable()
    shapely.prepare(ground)
    position = np.array([f.position[0] for f in drive.frames])
    heading = np.array([f.heading[0] for f in drive.frames])
    center = position + REAR_AXLE_TO_CENTER * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    sizes = [np.full(len(center), v) for v in (EGO_LENGTH, EGO_WIDTH)]
    corners = box_corners(center[:, 0], center[:, 1], heading, *sizes)
    assert shapely.contains_xy(ground, corners[..., 0], corners[..., 1]).all()


def test_the_recorded_car_obeys_physics_and_is_never_stuck(drive: Drive) -> None:
    speed = np.array([f.speed[0] for f in drive.frames])
    acceleration = np.array([f.acceleration[0] for f in drive.frames])
    lateral = speed * np.array([f.yaw_rate[0] for f in drive.frames])
    assert (speed >= 0).all()
    assert speed.max() < 15
    assert acceleration.min() >= -4.0
    assert acceleration.max() <= 2.4
    assert np.abs(lateral).max() < 3.0
    standing = "".join("s" if v < 0.1 else "." for v in speed)
    assert max(map(len, standing.split("."))) / 2 <= 20


def test_nobody_enters_a_junction_at_red(drive: Drive) -> None:
    entered = 0
    for before, after in zip(drive.frames[:-1], drive.frames[1:]):
        for i, vehicle in enumerate(drive.vehicles):
            for gate in vehicle.path.gates:
                if before.station[i] + vehicle.front < gate.station <= after.station[i] + vehicle.front - 0.3:
                    source = drive.network.connectors[gate.connector].source[0]
                    entered += 1
                    states = {drive.signals.state(source, t) for t in (before.time, after.time)}
                    assert states != {RED}
    assert entered > 10


def test_opposite_arms_share_their_green_and_crossing_arms_do_not() -> None:
    network = network_of(2, 0)
    signals = Signals(network, (0.0,) * len(network.nodes))
    for node in network.nodes:
        if not node.signalled:
            continue
        for time in np.arange(0.0, 60.0, 0.5):
            green = {node.phase_of_source[c] for c in node.phase_of_source if signals.state(c, float(time)) == GREEN}
            assert len(green) <= 1


def test_commands_name_the_turn_20_meters_ahead(drive: Drive) -> None:
    path = drive.vehicles[0].path
    for frame in drive.frames:
        command = driving_command(drive, frame)
        i = int(frame.station[0] / SPACING)
        way = path.center[i + 40] - path.center[i]
        heading = np.arctan2(*(path.center[i + 1] - path.center[i - 1])[::-1])
        lateral = -np.sin(heading) * way[0] + np.cos(heading) * way[1]
        if abs(abs(lateral) - 2.0) > 0.7:
            assert command.tolist() == ([1, 0, 0, 0] if lateral > 2 else [0, 0, 1, 0] if lateral < -2 else [0, 1, 0, 0])


def _two_lane_leg(network: RoadNetwork) -> Leg:
    c = next(c for c in network.carriageways if c.lanes == 2 and c.length > 100)
    return Leg(c.index, 1, 1, network.exits[c.index, 1][0])


def test_a_path_swerves_around_a_car_that_juts_into_the_lane() -> None:
    network = network_of(0, 0)
    leg = _two_lane_leg(network)
    plain = build_path(network, Dressing(), [leg])
    nudged = build_path(network, Dressing(nudges={leg.carriageway: [(50.0, 54.0, 0.8)]}), [leg])
    i = int(52.0 / SPACING)
    normal = curves.normals(plain.points)[i]
    shift = (nudged.points[i] - plain.points[i]) @ normal
    assert 0.6 < shift < 0.9
    assert np.hypot(*(nudged.points[10] - plain.points[10])) < 0.05


def test_a_closed_lane_is_left_before_and_regained_after() -> None:
    network = network_of(0, 0)
    leg = _two_lane_leg(network)
    plain = build_path(network, Dressing(), [leg])
    closed = build_path(network, Dressing(closures={leg.carriageway: (45.0, 62.0)}), [leg])
    middle = closed.points[int(54.0 / SPACING)]
    shift = (middle - plain.points[int(54.0 / SPACING)]) @ curves.normals(plain.points)[int(54.0 / SPACING)]
    assert shift == pytest.approx(3.5, abs=0.3)
    assert {-1.0, 0.0, 1.0} == set(np.unique(closed.shift))
