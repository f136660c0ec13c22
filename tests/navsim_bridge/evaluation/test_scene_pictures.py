"""Pictures hold what is around the ego: all of it, and no more."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpvla.report.scene_picture import DrawnPlan, view
from navsim_bridge.agents import constant_velocity
from navsim_bridge.evaluation.pictures import birds_eye, save_scene_picture
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.pdm.metric_scene import MetricScene
from tests.navsim_bridge.conftest import World


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> MetricScene:
    cache = build_metric_cache(world.root, world.maps, world.split, tmp_path_factory.mktemp("cache"), progress=False)
    return cache.load([world.records[3].token])[0]


def with_polygons(scene: MetricScene, rings: list[Any]) -> MetricScene:
    """``scene`` with these polygons alone, given in the ego frame, each named after its place."""
    x, y, heading = scene.ego_state[:3]
    cos, sin = np.cos(heading), np.sin(heading)
    points = [np.array(ring, dtype=float) @ np.array([[cos, sin], [-sin, cos]]) + (x, y) for ring in rings]
    return dataclasses.replace(
        scene,
        polygon_tokens=tuple(map(str, range(len(rings)))),
        polygon_types=tuple(f"LAYER {i}" for i in range(len(rings))),
        polygon_ring_offsets=np.arange(len(rings) + 1),
        ring_offsets=np.cumsum([0, *map(len, points)]),
        vertices=np.concatenate(points),
    )


def square(x: int, y: int, half: float) -> list[Any]:
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def test_polygons_are_kept_by_their_distance_from_the_ego(scene: MetricScene) -> None:
    rings = [
        square(10, 10, 1),  # near
        square(100, 0, 1),  # far ahead, with a coordinate near zero
        square(0, -90, 1),  # far to the side
        square(0, 0, 500),  # around the ego: no vertex is near
        [(-400, 20), (400, 20), (400, 26), (-400, 26)],  # a road past the ego: no vertex is near
        [(-400, 70), (400, 70), (400, 76), (-400, 76)],  # a road farther away
        square(59, 0, 0.5),
        square(50, 50, 1),  # within 60 m in each coordinate, not in all
    ]
    kept = [layer for layer, _ in birds_eye(with_polygons(scene, rings)).areas]
    assert kept == ["LAYER 0", "LAYER 3", "LAYER 4", "LAYER 6"]
    kept = [layer for layer, _ in birds_eye(with_polygons(scene, rings), reach=95).areas]
    assert kept == [f"LAYER {i}" for i in (0, 2, 3, 4, 5, 6, 7)]


def test_polygons_are_drawn_in_the_ego_frame(scene: MetricScene) -> None:
    ring = square(10, -5, 1)
    ((_, (drawn,)),) = birds_eye(with_polygons(scene, [ring])).areas
    np.testing.assert_allclose(drawn, ring, atol=1e-6)


def test_objects_far_away_are_left_out(scene: MetricScene) -> None:
    rows = slice(scene.frame_offsets[0], scene.frame_offsets[1])
    boxes = scene.object_boxes.copy()
    boxes[rows.start, :2] = scene.ego_state[:2] + np.array([200, 0])
    far = birds_eye(dataclasses.replace(scene, object_boxes=boxes))
    everything = birds_eye(dataclasses.replace(scene, object_boxes=boxes), reach=1e4)
    assert len(everything.boxes) == len(everything.box_types) == rows.stop - rows.start
    assert len(far.boxes) == len(far.box_types)
    assert np.hypot(*far.boxes[:, :2].T).max() < 80 < np.hypot(*everything.boxes[:, :2].T).max()


def test_the_map_reaches_as_far_as_the_view_of_a_fast_plan(scene: MetricScene) -> None:
    fast = np.zeros((8, 3))
    fast[:, 0] = 15 * np.arange(1, 9)
    ahead, side = view([DrawnPlan("fast", fast)])
    assert (ahead, side) == (130, 20)
    beyond = with_polygons(scene, [square(125, 0, 2)])
    assert not birds_eye(beyond).areas
    assert len(birds_eye(beyond, reach=np.hypot(ahead, side)).areas) == 1


def test_a_picture_is_written_whole(world: World, scene: MetricScene, tmp_path: Path) -> None:
    record = world.records[3]
    path = tmp_path / "sensor_blobs/mini" / record.cameras["CAM_F0"]
    path.parent.mkdir(parents=True)
    Image.new("RGB", (192, 108), (90, 120, 200)).save(path)
    (tmp_path / "navsim_logs").symlink_to(world.root / "navsim_logs")
    plans = [DrawnPlan("recorded", record.plan()), DrawnPlan("straight", constant_velocity([record])[0], "PDMS 0")]
    file = save_scene_picture(tmp_path / "out/x.png", record, scene, tmp_path, plans, "title")
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        assert image.size[0] > 1000
        colors = {image.convert("RGB").getpixel((x, y)) for x in range(0, image.size[0], 9)
                   for y in range(0, image.size[1], 9)}  # fmt: skip
    assert (0xC9, 0xCC, 0xD1) in colors  # road
