"""A simulated drive as an OpenScene log pickle: a list of frames at 2 Hz with every key of the public files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import write_atomically
from navsim_bridge.demo_world.cameras import MOUNTS, make_camera
from navsim_bridge.demo_world.files.map_writer import MapIds
from navsim_bridge.demo_world.log_name import LogName, image_path
from navsim_bridge.demo_world.traffic.drive import Drive
from navsim_bridge.demo_world.traffic.objects import object_table
from navsim_bridge.demo_world.traffic.paths import SPACING
from navsim_bridge.demo_world.traffic.signals import RED
from navsim_bridge.demo_world.traffic.simulation import Snapshot
from navsim_bridge.files.pickles import dump_plain_pickle

Float = NDArray[np.float64]

SIGHT = 75.0  # objects farther from the car are not annotated [m]
SCENE_FRAMES = 40  # nuPlan scenes last about 20 s
ROUTE_AHEAD = 130.0  # a scene's route goes on this far behind its last frame [m]
COMMAND_DISTANCE, COMMAND_OFFSET = 20.0, 2.0  # m


def make_frames(log: LogName, drive: Drive, ids: MapIds, image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """The frame dictionaries of a drive."""
    count = len(drive.frames)
    name = log.name(count)
    start_us = int(log.start.timestamp()) * 1_000_000
    routes = _routes(drive, ids)
    cameras = {camera: _camera_entry(camera, image_size) for camera in MOUNTS}
    frames = []
    for i, snapshot in enumerate(drive.frames):
        scene = i // SCENE_FRAMES
        x, y = snapshot.position[0] + np.asarray(log.location.origin)
        heading = float(np.arctan2(np.sin(snapshot.heading[0]), np.cos(snapshot.heading[0])))
        speed, acceleration = float(snapshot.speed[0]), float(snapshot.acceleration[0])
        yaw_rate = float(snapshot.yaw_rate[0])
        quaternion = [float(np.cos(heading / 2)), 0.0, 0.0, float(np.sin(heading / 2))]
        pose = _matrix(float(x), float(y), heading)
        token = log.token("frame", i)
        frames.append(
            {
                "token": token,
                "frame_idx": i % SCENE_FRAMES,
                "timestamp": start_us + 500_000 * i,
                "log_name": name,
                "log_token": log.token("log"),
                "scene_name": f"log-{log.number:04d}-scene-{scene:04d}",
                "scene_token": log.token("scene", scene),
                "map_location": log.location.name,
                "roadblock_ids": routes[scene],
                "vehicle_name": f"veh-{log.location.vehicle}",
                "can_bus": np.array(
                    [x, y, 0.0, *quaternion, acceleration, speed * yaw_rate, 0.0, speed, 0.0, 0.0, 0.0, 0.0,
                     yaw_rate, 0.0, 0.0]
                ),
                "lidar_path": f"{name}/MergedPointCloud/{token}.pcd",
                "lidar2ego_translation": np.zeros(3),
                "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
                "ego2global_translation": np.array([x, y, 0.0]),
                "ego2global_rotation": np.array(quaternion),
                "ego_dynamic_state": [speed, 0.0, acceleration, speed * yaw_rate],
                "traffic_lights": _traffic_lights(drive, ids, snapshot.time),
                "driving_command": driving_command(drive, snapshot),
                "cams": {c: {"data_path": image_path(log, count, c, i), **entry} for c, entry in cameras.items()},
                "sample_prev": log.token("frame", i - 1) if i > 0 else None,
                "sample_next": log.token("frame", i + 1) if i + 1 < count else None,
                "ego2global": pose,
                "lidar2ego": np.eye(4),
                "lidar2global": pose.copy(),
                "anns": _annotations(log, drive, snapshot, i),
            }
        )  # fmt: skip
    return frames


def write_log(path: Path, frames: list[dict[str, Any]]) -> Path:
    """Pickle a log (protocol 4) so that numpy 1.23 as well as numpy 2 can load it."""
    data = dump_plain_pickle(frames)
    return write_atomically(path, lambda file: file.write(data))


def driving_command(drive: Drive, snapshot: Snapshot) -> NDArray[np.int64]:
    """One-hot left, straight, right, unknown from the route's center line 20 m ahead, as OpenScene has it."""
    path = drive.vehicles[0].path
    index = int(snapshot.station[0] / SPACING)
    window = slice(max(0, index - 10), index + 10)
    nearest = window.start + int(np.argmin(np.hypot(*(path.center[window] - snapshot.position[0]).T)))
    ahead = min(nearest + round(COMMAND_DISTANCE / SPACING), len(path.center) - 1)
    tangent = path.center[nearest + 1] - path.center[nearest - 1 if nearest else 0]
    tangent = tangent / np.hypot(*tangent)
    way = path.center[ahead] - path.center[nearest]
    lateral = float(tangent[0] * way[1] - tangent[1] * way[0])
    command = np.zeros(4, np.int64)
    command[0 if lateral >= COMMAND_OFFSET else 2 if lateral <= -COMMAND_OFFSET else 1] = 1
    return command


def _routes(drive: Drive, ids: MapIds) -> list[list[str]]:
    """Per 20 s scene, the lane groups and lane-group connectors that the car drives through, in order."""
    path, network = drive.vehicles[0].path, drive.network
    named: list[tuple[float, str]] = []
    for station, kind, index in path.blocks:
        if kind == "carriageway":
            named.append((station, str(ids.lane_groups[index])))
        else:
            connector = network.connectors[index]
            named.append((station, str(ids.group_connectors[connector.source[0], connector.target[0]])))
    ends = [s for s, _ in named[1:]] + [path.length]
    routes = []
    for first in range(0, len(drive.frames), SCENE_FRAMES):
        last = min(first + SCENE_FRAMES, len(drive.frames)) - 1
        begin = drive.frames[first].station[0]
        finish = drive.frames[last].station[0] + ROUTE_AHEAD
        routes.append(list(dict.fromkeys(n for (s, n), e in zip(named, ends) if e > begin and s < finish)))
    return routes


def _traffic_lights(drive: Drive, ids: MapIds, time: float) -> list[tuple[int, bool]]:
    return [
        (ids.connectors[c.index], drive.signals.state(c.source[0], time) == RED)
        for c in drive.network.connectors
        if drive.network.nodes[c.node].signalled
    ]


def _annotations(log: LogName, drive: Drive, snapshot: Snapshot, frame: int) -> dict[str, Any]:
    """Boxes, names, velocities and tokens of everything within sight, in the car's frame."""
    rows, names, tracks = object_table(drive, snapshot)
    x, y = snapshot.position[0]
    heading = snapshot.heading[0]
    cos, sin = np.cos(heading), np.sin(heading)
    to_ego = np.array([[cos, sin], [-sin, cos]])
    local = (rows[:, :2] - [x, y]) @ to_ego.T
    seen = np.hypot(local[:, 0], local[:, 1]) < SIGHT
    rows, local = rows[seen], local[seen]
    yaw = rows[:, 2] - heading
    yaw = np.arctan2(np.sin(yaw), np.cos(yaw))
    boxes = np.concatenate([local, rows[:, 5:6] / 2, rows[:, 3:6], yaw[:, None]], axis=1)
    velocity = np.stack([rows[:, 6] * np.cos(yaw), rows[:, 6] * np.sin(yaw), np.zeros(len(rows))], axis=-1)
    kept = [t for t, s in zip(tracks, seen) if s]
    return {
        "gt_boxes": boxes,
        "gt_names": np.array([n for n, s in zip(names, seen) if s], dtype="<U15"),
        "gt_velocity_3d": velocity,
        "instance_tokens": [log.token("instance", frame, t) for t in kept],
        "track_tokens": [log.token("track", t) for t in kept],
    }


def _camera_entry(name: str, size: tuple[int, int]) -> dict[str, Float]:
    """nuPlan's camera-to-ego extrinsics stand in OpenScene's "sensor2lidar" slots."""
    camera = make_camera(name, *size)
    return {
        "sensor2lidar_rotation": camera.rotation,
        "sensor2lidar_translation": camera.translation,
        "cam_intrinsic": camera.intrinsic,
        "distortion": np.zeros(5),
    }


def _matrix(x: float, y: float, heading: float) -> Float:
    cos, sin = np.cos(heading), np.sin(heading)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, 0], [0, 0, 0, 1.0]])
