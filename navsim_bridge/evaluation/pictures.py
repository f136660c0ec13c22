"""Scenes and plans as pictures: NAVSIM's photos, map, objects and scores handed to ``dpvla.report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely import Point, Polygon

from dpvla.files import write_atomically
from dpvla.report.scene_picture import Array, BirdsEyeScene, Car, DrawnPlan, Palette, Photo, draw_scene, view
from navsim_bridge.data.images import read_whole
from navsim_bridge.ego import EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scenes import SceneRecord, scene_log
from navsim_bridge.splits.sensors import image_file

FRONT = "CAM_F0"
CAR = Car(EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER)
ROAD, CROSSING = ("#c9ccd1", "none"), ("#bfc3c9", "none")
PALETTE = Palette(
    areas={
        "ROADBLOCK": ROAD, "DRIVABLE_AREA": ROAD, "CARPARK_AREA": ROAD, "ROADBLOCK_CONNECTOR": ROAD,
        "INTERSECTION": CROSSING, "LANE": ("none", "white"),
    },
    objects={
        "VEHICLE": "#5b6472", "PEDESTRIAN": "#c2185b", "BICYCLE": "#8e44ad", "TRAFFIC_CONE": "#e67e22",
        "BARRIER": "#a0522d", "CZONE_SIGN": "#e67e22", "GENERIC_OBJECT": "#7f8c8d",
    },
)  # fmt: skip
REACH = 60.0
"""Map and objects within so many meters are drawn, unless the view goes farther."""


def save_scene_picture(
    path: Path | str,
    record: SceneRecord,
    scene: MetricScene,
    data_root: Path | str,
    plans: Sequence[DrawnPlan],
    title: str,
) -> Path:
    """Write a PNG of the front camera and the bird's-eye view of ``record`` with ``plans`` (ego frame)."""
    reach = max(REACH, float(np.hypot(*view(plans))))
    figure = draw_scene(front_photo(record, data_root), birds_eye(scene, reach), plans, title)
    return write_atomically(path, lambda file: figure.savefig(file, format="png"))


def front_photo(record: SceneRecord, data_root: Path | str) -> Photo:
    """The front image with its calibration; the intrinsics of the log belong to that image's own size.

    Raises ValueError when the log has no calibration of it.
    """
    log = scene_log(record, data_root)
    calibration = log.calibrations[record.first_frame + record.now].get(FRONT)
    if calibration is None:
        raise ValueError(f"{log.path}: no calibration of {FRONT} for scene {record.token}: it cannot be drawn")
    pixels = read_whole(image_file(record, data_root, FRONT))
    return Photo(pixels, calibration.intrinsic, calibration.rotation, calibration.translation)


def birds_eye(scene: MetricScene, reach: float = REACH) -> BirdsEyeScene:
    """Map polygons and the objects of t = 0 within ``reach`` [m] of the ego vehicle's rear axle, in its frame."""
    origin = scene.ego_state[:3]
    ego = Point(0, 0)
    areas: list[tuple[str, list[Array]]] = []
    for index, layer in enumerate(scene.polygon_types):
        first, last = scene.polygon_ring_offsets[index : index + 2]
        rings: list[Array] = [
            _to_ego(scene.vertices[scene.ring_offsets[ring] : scene.ring_offsets[ring + 1]], origin)
            for ring in range(first, last)
        ]
        if Polygon(rings[0]).distance(ego) < reach:  # 0 inside, else to the nearest edge: vertices may be far away
            areas.append((layer, rings))
    rows = slice(scene.frame_offsets[0], scene.frame_offsets[1])
    boxes = scene.object_boxes[rows].copy()
    boxes[:, :2] = _to_ego(boxes[:, :2], origin)
    boxes[:, 2] -= origin[2]
    near = np.hypot(boxes[:, 0], boxes[:, 1]) < reach + boxes[:, 3:].max(axis=1, initial=0)
    kinds = [scene.track_types[track] for track in scene.object_track[rows][near]]
    return BirdsEyeScene(areas, boxes[near], kinds, _to_ego(scene.centerline[:, :2], origin), CAR, PALETTE)


def _to_ego(points: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    cos, sin = np.cos(origin[2]), np.sin(origin[2])
    return (points - origin[:2]) @ np.array([[cos, -sin], [sin, cos]])
