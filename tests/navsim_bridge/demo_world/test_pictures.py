"""Pictures show things where the log's intrinsics and extrinsics say they are."""

import dataclasses

import numpy as np
import pytest

from navsim_bridge.demo_world.cameras import make_camera
from navsim_bridge.demo_world.config import LOCATIONS, DemoWorldConfig
from navsim_bridge.demo_world.pictures import meshes
from navsim_bridge.demo_world.pictures.painter import WEATHERS, Painter, Thing
from navsim_bridge.demo_world.pictures.scenery import build_scenery
from navsim_bridge.demo_world.roads.network import network_of
from navsim_bridge.files.frames import ALL_CAMERAS

MAGENTA = (255.0, 0.0, 255.0)


@pytest.fixture(scope="module")
def painter() -> Painter:
    scenery = build_scenery(network_of(0, 0), 0)
    empty = dataclasses.replace(
        scenery, meshes=scenery.meshes[:1], positions=np.full((1, 2), 1e5), headings=np.zeros(1),
        half_sizes=np.zeros((1, 2)),
    )  # fmt: skip
    return Painter(empty, dataclasses.replace(WEATHERS[0], tint=(1.0, 1.0, 1.0), visibility=1e9))


def magenta_box(length: float, width: float, height: float) -> meshes.Mesh:
    faces = meshes._Faces()
    faces.block(-length / 2, length / 2, width / 2, 0.0, height, MAGENTA)
    mesh = faces.mesh()
    return dataclasses.replace(mesh, glow=np.ones_like(mesh.glow))


@pytest.mark.parametrize("name, place", [("CAM_F0", (18.0, 2.0)), ("CAM_L0", (9.0, 11.0)), ("CAM_R0", (7.0, -12.0)),
                                         ("CAM_B0", (-15.0, -1.0))])  # fmt: skip
def test_a_box_covers_the_hull_of_its_projected_corners(
    painter: Painter, name: str, place: tuple[float, float]
) -> None:
    size, heading = (4.4, 1.9, 1.5), 0.7
    camera = make_camera(name, 960, 540)
    things = [Thing(magenta_box(*size), *place, heading)]
    image = painter.paint(camera, (0.0, 0.0, 0.3), things).astype(int)
    painted = (image[..., 0] > 180) & (image[..., 1] < 90) & (image[..., 2] > 180)
    signs = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (0, 1)]) * size
    cos, sin = np.cos(heading), np.sin(heading)
    corners = np.stack([place[0] + signs[:, 0] * cos - signs[:, 1] * sin,
                        place[1] + signs[:, 0] * sin + signs[:, 1] * cos, signs[:, 2]], axis=-1)  # fmt: skip
    # the log's convention, spelled out: ego point = R p + t with columns right, down, forward
    local = (corners - camera.translation) @ camera.rotation
    assert (local[:, 2] > 0).all()
    pixels = (local / local[:, 2:]) @ camera.intrinsic.T
    rows, columns = np.nonzero(painted)
    assert columns.min() == pytest.approx(pixels[:, 0].min(), abs=1.5)
    assert columns.max() + 1 == pytest.approx(pixels[:, 0].max(), abs=1.5)
    assert rows.min() == pytest.approx(pixels[:, 1].min(), abs=1.5)
    assert rows.max() + 1 == pytest.approx(pixels[:, 1].max(), abs=1.5)


def test_camera_axes_point_right_down_and_forward() -> None:
    camera = make_camera("CAM_F0", 1920, 1080)
    pixel, depth = camera.project(np.array([[21.7, 0.0, 1.53], [21.7, -1.0, 1.53], [21.7, 0.0, 0.53]]))
    assert np.allclose(depth, 20.0)
    assert np.allclose(pixel[0], [960, 560])
    assert np.allclose(pixel[1], [960 + 1545 / 20, 560])  # to the right of the car is right in the picture
    assert np.allclose(pixel[2], [960, 560 + 1545 / 20])  # lower is lower
    for name in ALL_CAMERAS:
        rotation = make_camera(name, 480, 270).rotation
        assert np.allclose(rotation.T @ rotation, np.eye(3))
        assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_intrinsics_scale_with_the_picture() -> None:
    small, full = make_camera("CAM_L0", 480, 270), make_camera("CAM_L0", 1920, 1080)
    assert np.allclose(small.intrinsic[:2] * 4, full.intrinsic[:2])


def test_a_near_box_hides_a_far_one(painter: Painter) -> None:
    camera = make_camera("CAM_F0", 480, 270)
    green = dataclasses.replace(
        magenta_box(2.0, 2.0, 1.4), colors=np.tile(np.array([0, 255, 0], dtype=np.float32), (5, 1))
    )
    things = [Thing(magenta_box(2.0, 2.0, 1.4), 10.0, 0.0, 0.0), Thing(green, 16.0, 0.0, 0.0)]
    for order in (things, things[::-1]):
        image = painter.paint(camera, (0.0, 0.0, 0.0), order)
        u, v = camera.project(np.array([[9.0, 0.0, 0.7]]))[0][0]
        assert np.allclose(image[int(v), int(u)], MAGENTA, atol=3)


def test_things_behind_the_camera_or_through_the_near_plane_do_not_break_the_picture(painter: Painter) -> None:
    camera = make_camera("CAM_F0", 480, 270)
    pose = (0.0, 0.0, 0.0)
    clear = painter.paint(camera, pose, [])
    behind = painter.paint(camera, pose, [Thing(magenta_box(4.0, 2.0, 1.5), -12.0, 0.0, 0.0)])
    assert np.array_equal(clear, behind)
    around = painter.paint(camera, pose, [Thing(magenta_box(30.0, 2.0, 1.4), 0.0, -2.0, 0.0)])
    assert (around != clear).any()


def test_a_waiting_driver_sees_the_red_lens() -> None:
    """The lens must be inside the front camera's picture from the spot where cars stop."""
    network = network_of(0, 0)
    scenery = build_scenery(network, 0)
    camera = make_camera("CAM_F0", *(getattr(DemoWorldConfig(), f"image_{side}") for side in ("width", "height")))
    assert len(scenery.heads) == sum(c.lanes for c in network.carriageways if network.nodes[c.to_node].signalled)
    for head in scenery.heads:
        c = network.carriageways[head.carriageway]
        along = np.array([np.cos(head.heading), np.sin(head.heading)])
        lane = int(np.argmin([np.hypot(*(c.lane_end(k, False)[0] - head.position[:2])) for k in range(c.lanes)]))
        rear_axle = c.lane_end(lane, False)[0] - along * (4.05 + 0.8)
        offset = head.position[:2] - rear_axle
        ego = np.array([[offset @ along, -offset[0] * along[1] + offset[1] * along[0], head.position[2] + 0.84]])
        (pixel,), (depth,) = camera.project(ego)
        assert depth > 0
        assert 0 < pixel[0] < camera.width
        assert 0 < pixel[1] < camera.height


def test_every_location_has_its_own_scenery() -> None:
    counts = {len(build_scenery(network_of(location.index, 0), 0).meshes) for location in LOCATIONS}
    assert len(counts) > 1
    assert min(counts) > 200
