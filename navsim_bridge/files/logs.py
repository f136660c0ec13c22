"""OpenScene log pickles read without the devkit.

A log is a pickled list of frames, one every 0.5 s. `read_log` checks every frame and returns a `Log`:
plain arrays over the frames, in the units and frames that the devkit uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.files.roots import LOGS

ALL_CAMERAS = ("CAM_F0", "CAM_L0", "CAM_R0", "CAM_L1", "CAM_R1", "CAM_L2", "CAM_R2", "CAM_B0")
OBJECT_NAMES = (
    "vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object", "ego",
)  # fmt: skip
"""Annotation names in the devkit's type order (the order of `metric_scene.OBJECT_TYPES`)."""
MAP_LOCATIONS = ("sg-one-north", "us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")

REQUIRED_KEYS = (
    "token", "timestamp", "map_location", "roadblock_ids", "ego2global_translation", "ego2global_rotation",
    "ego_dynamic_state", "driving_command", "cams",
)  # fmt: skip
ANNOTATION_KEYS = ("gt_boxes", "gt_names", "gt_velocity_3d", "instance_tokens", "track_tokens")
CALIBRATION_KEYS = ("cam_intrinsic", "sensor2lidar_rotation", "sensor2lidar_translation")


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera on the car. Axes: x right, y down, z forward; ego frame: rear axle, z = 0 on the ground."""

    intrinsic: NDArray[np.float64]  # (3, 3) for the camera's own image size [pixel]
    rotation: NDArray[np.float64]  # (3, 3) camera to ego
    translation: NDArray[np.float64]  # (3,) camera center in the ego frame [m]


@dataclass(frozen=True)
class Annotations:
    """Boxes of one frame, in the order of the log."""

    boxes: NDArray[np.float64]  # (box, 7) x, y, z, length, width, height, yaw; ego rear-axle frame
    types: NDArray[np.int64]  # (box,) index into OBJECT_NAMES
    velocities: NDArray[np.float64]  # (box, 2) in the ground plane, ego axes, not relative to the ego's motion [m/s]
    track_tokens: tuple[str, ...]  # (box,)

    @property
    def speeds(self) -> NDArray[np.float64]:
        """(box,) norm of the velocities [m/s]."""
        return np.linalg.norm(self.velocities, axis=1)


@dataclass(frozen=True)
class Log:
    """One log: arrays over its 2 Hz frames. Poses are of the rear axle in the global (UTM) frame."""

    name: str
    path: Path
    tokens: tuple[str, ...]  # (frame,)
    times_us: NDArray[np.int64]  # (frame,)
    poses: NDArray[np.float64]  # (frame, 3) x, y [m], heading [rad]
    velocities: NDArray[np.float64]  # (frame, 2) [m/s] ego axes; float32 precision, as in the devkit
    accelerations: NDArray[np.float64]  # (frame, 2) [m/s^2] ego axes; float32 precision
    commands: NDArray[np.int64]  # (frame,) index into dpvla.batch.COMMANDS
    locations: tuple[str, ...]  # (frame,) map location
    routes: tuple[tuple[str, ...], ...]  # (frame,) roadblock ids of the route
    cameras: tuple[dict[str, str], ...]  # (frame,) camera name -> path below sensor_blobs/<split>
    calibrations: tuple[dict[str, Calibration], ...]  # (frame,) of the cameras for which the log holds one
    annotations: tuple[Annotations | None, ...]  # (frame,) None where the log holds none (private test logs)
    red_lights: tuple[tuple[str, ...] | None, ...]  # (frame,) ids of red lane connectors; None where not recorded

    def __len__(self) -> int:
        return len(self.tokens)


def log_path(data_root: Path | str, data_split: str, name: str) -> Path:
    """Where the log ``name`` of a split lies."""
    return Path(data_root) / LOGS / data_split / f"{name}.pkl"


def list_logs(data_root: Path | str, data_split: str) -> list[str]:
    """Names of the logs of a split, sorted. Raises FileNotFoundError if the folder is missing or empty."""
    folder = Path(data_root) / LOGS / data_split
    names = sorted(p.stem for p in folder.glob("*.pkl"))
    if not names:
        there = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        raise FileNotFoundError(f"no log (*.pkl) in {folder}; splits with a folder there: {', '.join(there) or 'none'}")
    return names


def read_log(path: Path | str) -> Log:
    """Read and check one log.

    Raises:
        FileNotFoundError, UnsafePickleError: see `load_plain_pickle`.
        ValueError: naming file, frame and key of the first value that is not as the format says.
    """
    path = Path(path)
    frames = load_plain_pickle(path)
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise ValueError(f"{path}: expected a non-empty list of frames (dicts), found {type(frames).__name__}")
    read = [_Frame(path, index, frame) for index, frame in enumerate(frames)]
    times = np.array([frame.integer("timestamp") for frame in read], dtype=np.int64)
    late = np.flatnonzero(np.diff(times) <= 0)
    if late.size:
        raise read[late[0] + 1].error("timestamp", "a time after the previous frame's", int(times[late[0] + 1]))
    tokens = tuple(frame.string("token") for frame in read)
    if len(set(tokens)) < len(tokens):
        twice = next(i for i, token in enumerate(tokens) if token in tokens[:i])
        raise read[twice].error("token", "a token that no earlier frame has", tokens[twice])
    dynamics = np.stack([frame.numbers("ego_dynamic_state", 4) for frame in read])
    dynamics = dynamics.astype(np.float32).astype(np.float64)  # the devkit keeps these as float32
    cameras = tuple(frame.camera_paths() for frame in read)
    return Log(
        name=path.stem,
        path=path,
        tokens=tokens,
        times_us=times,
        poses=np.stack([frame.pose() for frame in read]),
        velocities=dynamics[:, :2],
        accelerations=dynamics[:, 2:],
        commands=np.array([frame.command() for frame in read], dtype=np.int64),
        locations=tuple(frame.location() for frame in read),
        routes=tuple(frame.route() for frame in read),
        cameras=cameras,
        calibrations=tuple(frame.calibrations(paths) for frame, paths in zip(read, cameras)),
        annotations=tuple(frame.annotations() for frame in read),
        red_lights=tuple(frame.red_lights() for frame in read),
    )


@lru_cache(maxsize=4)
def _kept_log(path: Path, _stamp: tuple[int, int]) -> Log:
    return read_log(path)


def open_log(path: Path | str) -> Log:
    """`read_log`, keeping the last few logs in memory (read again when the file has changed)."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no log {path}")
    stat = path.stat()
    return _kept_log(path.resolve(), (stat.st_mtime_ns, stat.st_size))


_UNIT = 1e-14
"""How far the square of a quaternion's length may be from one."""


def yaw(rotation: NDArray[np.float64]) -> float:
    """Heading [rad] of a quaternion w, x, y, z, with the formula of the library that the devkit uses.

    Its sign of the x*y term differs from the usual one; they agree for rotations about z alone. As there, a
    quaternion is scaled to unit length only where it is not within rounding of it.
    """
    square = np.dot(rotation, rotation)
    w, x, y, z = rotation if abs(1.0 - square) < _UNIT else rotation / np.sqrt(square)
    return float(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2)))


def to_global(boxes: NDArray[np.float64], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """(box, 3) global center and heading of boxes given in the ego frame."""
    x, y, heading = pose
    cos, sin = np.cos(heading), np.sin(heading)
    turned = boxes[:, 6] + heading
    for _ in range(2):  # as the devkit does: where an object turns by pi, the last bit decides which way round
        turned = np.arctan2(np.sin(turned), np.cos(turned))
    return np.stack(
        [boxes[:, 0] * cos - boxes[:, 1] * sin + x, boxes[:, 0] * sin + boxes[:, 1] * cos + y, turned], axis=1
    )


class _Frame:
    """Checked access to one raw frame."""

    def __init__(self, path: Path, index: int, raw: dict[str, Any]) -> None:
        self.path, self.index, self.raw = path, index, raw
        for key in REQUIRED_KEYS:
            if key not in raw:
                raise ValueError(f"{path}: frame {index}: no key '{key}'; found {', '.join(map(str, raw))}")

    def error(self, key: str, expected: str, found: Any) -> ValueError:
        token = self.raw.get("token")
        where = f"{self.path}: frame {self.index} (token {token if isinstance(token, str) else short(token)})"
        return ValueError(f"{where}: '{key}': expected {expected}, found {short(found)}")

    def string(self, key: str) -> str:
        value = self.raw[key]
        if not isinstance(value, str) or not value:
            raise self.error(key, "a non-empty string", value)
        return str(value)

    def integer(self, key: str) -> int:
        value = self.raw[key]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self.error(key, "an integer", value)
        return int(value)

    def numbers(self, key: str, *shape: int) -> NDArray[np.float64]:
        return self._numbers(key, self.raw[key], shape)

    def _numbers(self, key: str, raw: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
        expected = f"{' x '.join(map(str, shape))} numbers"
        try:
            value = np.asarray(raw, dtype=np.float64)
        except (TypeError, ValueError):
            raise self.error(key, expected, raw) from None
        if value.shape != shape:
            raise self.error(key, expected, f"shape {value.shape}")
        if not np.isfinite(value).all():
            raise self.error(key, "finite numbers", value.tolist())
        return value

    def pose(self) -> NDArray[np.float64]:
        x, y, _ = self.numbers("ego2global_translation", 3)
        rotation = self.numbers("ego2global_rotation", 4)
        if not 0.9 < np.linalg.norm(rotation) < 1.1:
            raise self.error("ego2global_rotation", "a unit quaternion w, x, y, z", rotation.tolist())
        return np.array([x, y, yaw(rotation)])

    def command(self) -> int:
        value = self.numbers("driving_command", 4)
        if sorted(value.tolist()) != [0, 0, 0, 1]:
            raise self.error("driving_command", "a one-hot of 4 (left, straight, right, unknown)", value.tolist())
        return int(value.argmax())

    def location(self) -> str:
        value = self.string("map_location")
        if value not in MAP_LOCATIONS:
            raise self.error("map_location", f"one of {', '.join(MAP_LOCATIONS)}", value)
        return value

    def route(self) -> tuple[str, ...]:
        value = self.raw["roadblock_ids"]
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise self.error("roadblock_ids", "a list of strings", value)
        return tuple(value)

    def camera_paths(self) -> dict[str, str]:
        cams = self.raw["cams"]
        if not isinstance(cams, dict):
            raise self.error("cams", "a dict of cameras", cams)
        paths = {}
        for name, camera in cams.items():
            if name not in ALL_CAMERAS:
                raise self.error("cams", f"cameras among {', '.join(ALL_CAMERAS)}", name)
            if camera:
                path = camera.get("data_path") if isinstance(camera, dict) else None
                if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
                    raise self.error(f"cams/{name}/data_path", "a path below sensor_blobs/<split>", path)
                paths[name] = path
        return paths

    def calibrations(self, cameras: Iterable[str]) -> dict[str, Calibration]:
        """Of those of ``cameras`` that have one, which images alone do without."""
        found = {}
        for name in cameras:
            camera = self.raw["cams"][name]
            if all(camera.get(key) is not None for key in CALIBRATION_KEYS):
                intrinsic, rotation, translation = (
                    self._numbers(f"cams/{name}/{key}", camera[key], shape)
                    for key, shape in zip(CALIBRATION_KEYS, ((3, 3), (3, 3), (3,)))
                )
                found[name] = Calibration(intrinsic, rotation, translation)
        return found

    def red_lights(self) -> tuple[str, ...] | None:
        if "traffic_lights" not in self.raw:
            return None
        value = self.raw["traffic_lights"]
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, (list, tuple)) and len(v) == 2 for v in value):
            raise self.error("traffic_lights", "a list of pairs (lane connector id, is red)", value)
        return tuple(str(connector) for connector, is_red in value if is_red)

    def annotations(self) -> Annotations | None:
        if "anns" not in self.raw:
            return None
        anns = self.raw["anns"]
        if not isinstance(anns, dict):
            raise self.error("anns", "a dict", anns)
        for key in ANNOTATION_KEYS:
            if key not in anns:
                raise self.error(f"anns/{key}", "a value", "no such key")
        tracks = anns["track_tokens"]
        counts = {key: len(anns[key]) for key in ANNOTATION_KEYS}
        if len(set(counts.values())) > 1:
            raise self.error("anns", "lists of one length", counts)
        if not all(isinstance(track, str) for track in tracks):
            raise self.error("anns/track_tokens", "strings", tracks)
        return Annotations(
            boxes=self._table(anns, "gt_boxes", 7),
            types=np.array([self._object_type(name) for name in anns["gt_names"]], dtype=np.int64),
            velocities=self._table(anns, "gt_velocity_3d", 3)[:, :2],
            track_tokens=tuple(map(str, tracks)),
        )

    def _table(self, anns: dict[str, Any], key: str, columns: int) -> NDArray[np.float64]:
        try:
            value = np.asarray(anns[key], dtype=np.float64)
        except (TypeError, ValueError):
            raise self.error(f"anns/{key}", f"numbers (box, {columns})", anns[key]) from None
        value = value.reshape(0, columns) if value.size == 0 else value
        if value.ndim != 2 or value.shape[1] != columns:
            raise self.error(f"anns/{key}", f"shape (box, {columns})", f"shape {value.shape}")
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if bad.size:
            track = anns["track_tokens"][bad[0]]
            raise self.error(f"anns/{key}", "finite numbers", f"{value[bad[0]].tolist()} for track {track}")
        return value

    def _object_type(self, name: Any) -> int:
        try:
            return OBJECT_NAMES.index(str(name))
        except ValueError:
            raise self.error("anns/gt_names", f"one of {', '.join(OBJECT_NAMES)}", name) from None


def annotated(annotations: Sequence[Annotations | None], log: Log, first: int) -> list[Annotations]:
    """``annotations`` when none is missing; ``first`` is the index of their first frame in ``log``."""
    complete = [a for a in annotations if a is not None]
    if len(complete) < len(annotations):
        missing = first + next(i for i, a in enumerate(annotations) if a is None)
        raise ValueError(
            f"{log.path}: frame {missing} (token {log.tokens[missing]}) has no 'anns': logs without annotations "
            "(private test logs) can be planned for, not scored"
        )
    return complete
