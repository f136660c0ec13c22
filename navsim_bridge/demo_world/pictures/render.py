"""The camera images of a drive: which things stand where at a frame, painted and written as JPEG."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dpvla.files import naming
from navsim_bridge.demo_world.cameras import make_camera
from navsim_bridge.demo_world.config import DemoWorldConfig
from navsim_bridge.demo_world.log_name import LogName, image_path
from navsim_bridge.demo_world.pictures import meshes
from navsim_bridge.demo_world.pictures.painter import WEATHERS, Painter, Thing
from navsim_bridge.demo_world.pictures.scenery import Scenery, build_scenery
from navsim_bridge.demo_world.roads.network import network_of
from navsim_bridge.demo_world.traffic.drive import Drive
from navsim_bridge.demo_world.traffic.objects import object_table

BRAKE_LIGHT_DECELERATION = 0.7  # m/s^2


@lru_cache(maxsize=8)
def _scenery(location: int, seed: int) -> Scenery:
    return build_scenery(network_of(location, seed), seed)


def paint_log(config: DemoWorldConfig, log: LogName, drive: Drive, blobs: Path) -> int:
    """Write the configured images of a log below ``blobs`` (``sensor_blobs/<folder>``); returns how many."""
    frames = config.rendered_frames()
    if not config.cameras or not len(frames):
        return 0
    cv2.setNumThreads(0)  # logs are painted in parallel
    painter = Painter(_scenery(log.location.index, config.seed), WEATHERS[(log.number * 3 + len(log.folder)) % 4])
    cameras = [make_camera(name, config.image_width, config.image_height) for name in config.cameras]
    written = 0
    for frame in frames:
        pose, things = things_at(drive, painter.scenery, frame)
        for camera in cameras:
            image = painter.paint(camera, pose, things)
            write_image(blobs / image_path(log, config.num_frames, camera.name, frame), image, config.jpeg_quality)
            written += 1
    return written


def write_image(path: Path, image: NDArray[np.uint8], quality: int) -> None:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"could not encode {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        path.write_bytes(data.tobytes())  # the log pickle, written after all its images, marks them complete


def things_at(drive: Drive, scenery: Scenery, frame: int) -> tuple[tuple[float, float, float], list[Thing]]:
    """The car's pose in local meters and everything that moves or belongs to this log, in its frame."""
    snapshot = drive.frames[frame]
    x, y = (float(v) for v in snapshot.position[0])
    heading = float(snapshot.heading[0])
    cos, sin = np.cos(heading), np.sin(heading)

    def local(px: float, py: float) -> tuple[float, float]:
        return (px - x) * cos + (py - y) * sin, -(px - x) * sin + (py - y) * cos

    rows, kinds, tracks = object_table(drive, snapshot)
    things: list[Thing] = []
    for row, kind, track in zip(rows, kinds, tracks):
        px, py = local(row[0], row[1])
        if np.hypot(px, py) > 150.0:
            continue
        mesh = _mesh(drive, frame, kind, track, row)
        shadow = None if kind in ("czone_sign", "traffic_cone", "pedestrian") else (float(row[3]), float(row[4]))
        things.append(Thing(mesh, px, py, float(row[2]) - heading, shadow=shadow))
    for head in scenery.heads:
        px, py = local(head.position[0], head.position[1])
        state = drive.signals.state(head.carriageway, snapshot.time)
        things.append(Thing(meshes.signal_head(state), px, py, head.heading - heading, z=float(head.position[2])))
    return (x, y, heading), things


def _mesh(drive: Drive, frame: int, kind: str, track: str, row: NDArray[np.float64]) -> meshes.Mesh:
    source, number = track.split()
    i = int(number)
    length, width, height = (float(v) for v in row[3:6])
    if source == "walker":
        stride = (frame + i) % 3 - 1 if row[6] > 0 else 0
        return meshes.pedestrian(drive.people[i].paint, stride)
    if source == "vehicle":
        vehicle = drive.vehicles[i]
        if kind == "bicycle":
            return meshes.bicycle(vehicle.paint)
        snapshot = drive.frames[frame]
        braking = snapshot.acceleration[i] < -BRAKE_LIGHT_DECELERATION or snapshot.speed[i] < 0.1
        return meshes.car(length, width, height, vehicle.paint, bool(braking))
    if kind == "vehicle":
        return meshes.car(length, width, height, drive.dressing.objects[i].paint, False)
    if kind == "traffic_cone":
        return meshes.cone()
    if kind == "barrier":
        return meshes.barrier(width)
    if kind == "czone_sign":
        return meshes.road_works_sign()
    if kind == "generic_object":
        return meshes.digger()
    raise ValueError(f"no picture for objects of kind {kind!r}")
