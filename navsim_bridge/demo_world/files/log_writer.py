"""A simulated drive as an OpenScene log pickle: a list of frames at 2 Hz with every key of the public files."""

from __future__ import annotations

import datetime
import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import write_atomically
from navsim_bridge.demo_world.config import Location
from navsim_bridge.demo_world.files.map_writer import MapIds
from navsim_bridge.demo_world.pictures.cameras import MOUNTS, make_camera
from navsim_bridge.demo_world.traffic.drive import Drive
from navsim_bridge.demo_world.traffic.paths import SPACING
from navsim_bridge.demo_world.traffic.signals import RED
from navsim_bridge.demo_world.traffic.simulation import Snapshot

Float = NDArray[np.float64]

SIGHT = 75.0  # objects farther from the car are not annotated [m]
SCENE_FRAMES = 40  # nuPlan scenes last about 20 s
ROUTE_AHEAD = 130.0  # a scene's route goes on this far behind its last frame [m]
COMMAND_DISTANCE, COMMAND_OFFSET = 20.0, 2.0  # m
WALKER_SIZE = (0.7, 0.7, 1.75)


@dataclass(frozen=True)
class LogName:
    """Identity of one log."""

    folder: str  # trainval or test
    number: int  # within the folder
    seed: int
    location: Location

    @property
    def start(self) -> datetime.datetime:
        day = 8 if self.folder == "trainval" else 24
        base = datetime.datetime(2021, 6, day, 8, 0, 5, tzinfo=datetime.timezone.utc)
        return base + datetime.timedelta(minutes=37 * self.number)

    def name(self, num_frames: int) -> str:
        """In the official pattern: start time, vehicle, first and last second of the excerpt."""
        first = 100 + 173 * self.number % 2000
        last = first + num_frames // 2
        return f"{self.start:%Y.%m.%d.%H.%M.%S}_veh-{self.location.vehicle}_{first:05d}_{last:05d}"

    def token(self, *parts: object) -> str:
        """16 hexadecimal digits that are the same at every run."""
        text = "/".join(str(p) for p in ("dpvla", self.seed, self.folder, self.number, *parts))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def image_path(log: LogName, num_frames: int, camera: str, frame: int) -> str:
    """Path of an image relative to ``sensor_blobs/<folder>``."""
    return f"{log.name(num_frames)}/{camera}/{log.token(camera, frame)}.jpg"


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
    data = _rename_numpy_core(pickle.dumps(frames, protocol=4))
    return write_atomically(path, lambda file: file.write(data))


def driving_command(drive: Drive, snapshot: Snapshot) -> NDArray[np.int64]:
    """One-hot left, straight, right, unknown from the route's centre line 20 m ahead, as OpenScene has it."""
    path = drive.vehicles[0].path
    index = int(snapshot.station[0] / SPACING)
    window = slice(max(0, index - 10), index + 10)
    nearest = window.start + int(np.argmin(np.hypot(*(path.centre[window] - snapshot.position[0]).T)))
    ahead = min(nearest + round(COMMAND_DISTANCE / SPACING), len(path.centre) - 1)
    tangent = path.centre[nearest + 1] - path.centre[nearest - 1 if nearest else 0]
    tangent = tangent / np.hypot(*tangent)
    way = path.centre[ahead] - path.centre[nearest]
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


def object_table(drive: Drive, snapshot: Snapshot) -> tuple[Float, list[str], list[str]]:
    """All objects but the recorded car: rows (x, y, heading, length, width, height, speed), names, track keys."""
    rows, names, tracks = [], [], []
    for i, v in enumerate(drive.vehicles):
        if i and snapshot.active[i]:
            heading = snapshot.heading[i]
            x, y = snapshot.position[i] + v.rear_to_centre * np.array([np.cos(heading), np.sin(heading)])
            rows.append((x, y, heading, v.length, v.width, v.height, snapshot.speed[i]))
            names.append(v.kind)
            tracks.append(f"vehicle {i}")
    for i, o in enumerate(drive.dressing.objects):
        rows.append((o.x, o.y, o.heading, o.length, o.width, o.height, 0.0))
        names.append(o.kind)
        tracks.append(f"object {i}")
    for i, (x, y, heading, speed) in enumerate(snapshot.walkers):
        rows.append((x, y, heading, *WALKER_SIZE, speed))
        names.append("pedestrian")
        tracks.append(f"walker {i}")
    return np.array(rows, float).reshape(-1, 7), names, tracks


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


def _rename_numpy_core(data: bytes) -> bytes:
    """Call numpy 2's private module by the name that numpy 1 knows too (both resolve it).

    The name is stored once, then referenced; it is one letter shorter, so its length byte and the length of the
    protocol-4 frame around it shrink by one.
    """
    old = b"\x8c\x16numpy._core.multiarray"
    at = data.find(old)
    if at < 0:
        return data
    if data.find(old, at + 1) >= 0 or b"numpy._core" in data[at + len(old) :] or data[2:3] != b"\x95":
        raise RuntimeError("unexpected pickle layout: numpy._core is named in more than one place")
    frame = int.from_bytes(data[3:11], "little")
    if at > 11 + frame:
        raise RuntimeError("unexpected pickle layout: numpy._core is named outside the first pickle frame")
    head = data[:3] + (frame - 1).to_bytes(8, "little") + data[11:at]
    return head + b"\x8c\x15numpy.core.multiarray" + data[at + len(old) :]
