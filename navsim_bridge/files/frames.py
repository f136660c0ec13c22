"""One frame of a log as it is pickled: checked access to what it holds.

What cannot be right is refused, with file, frame and key; a log (`logs.Log`) is made of what the frames give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short

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

LAST_TIME = 4_102_444_800_000_000
"""The year 2100 [us]."""
LONGEST_NAME = 200
"""Characters of a token."""
_STATIC = ("traffic_cone", "barrier", "czone_sign", "generic_object")


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera on the car. Axes: x right, y down, z forward; ego frame: rear axle, z = 0 on the ground."""

    intrinsic: NDArray[np.float64]  # (3, 3) for the camera's own image size [pixel]
    rotation: NDArray[np.float64]  # (3, 3) camera to ego
    translation: NDArray[np.float64]  # (3,) camera center in the ego frame [m]


@dataclass(frozen=True)
class Annotations:
    """Boxes of one frame, in the order of the log.

    They are given in the ego's rear-axle frame, or, what follows the frames of a synthetic scene, in the global one.
    """

    boxes: NDArray[np.float64]  # (box, 7) x, y, z, length, width, height, yaw
    types: NDArray[np.int64]  # (box,) index into OBJECT_NAMES
    velocities: NDArray[np.float64]  # (box, 2) in the ground plane, not relative to the ego's motion [m/s]
    track_tokens: tuple[str, ...]  # (box,)
    is_global: bool = False  # boxes and velocities are in the global frame and axes, not in the ego's

    @property
    def speeds(self) -> NDArray[np.float64]:
        """(box,) norm of the velocities [m/s]."""
        return np.linalg.norm(self.velocities, axis=1)

    def global_poses(self, ego: NDArray[np.float64]) -> NDArray[np.float64]:
        """(box, 3) centers and headings in the global frame; ``ego`` (3,) is the rear axle's pose in this frame."""
        return self.boxes[:, [0, 1, 6]] if self.is_global else to_global(self.boxes, ego)

    def global_velocities(self, ego: NDArray[np.float64]) -> NDArray[np.float64]:
        """(box, 2) velocities in global axes; ``ego`` as above."""
        if self.is_global:
            return self.velocities
        cos, sin = np.cos(ego[2]), np.sin(ego[2])
        forward, left = self.velocities.T
        return np.stack([cos * forward - sin * left, sin * forward + cos * left], axis=1)

    def around(self, ego: NDArray[np.float64]) -> NDArray[np.float64]:
        """The boxes (box, 7) with their centers seen from the ego, whose pose is ``ego``, in whichever axes."""
        if not self.is_global:
            return self.boxes
        return self.boxes - np.array([*ego[:2], 0, 0, 0, 0, 0])


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


def plain_numbers(raw: Any, dimensions: int, kinds: str = "iuf") -> NDArray[np.float64] | None:
    """Numbers as float64, from an array or from lists in lists; None for anything else, such as text of digits.

    Args:
        raw: of ``dimensions`` (or an array of any), which are looked into no deeper.
        dimensions: of the result.
        kinds: of numpy's types that are numbers here.
    """
    if not isinstance(raw, np.ndarray):
        if not _is_nested(raw, dimensions, kinds):
            return None
        try:
            raw = np.asarray(raw)
        except (ValueError, OverflowError):  # rows of different lengths
            return None
    if raw.size == 0:
        return np.zeros(raw.shape)
    return np.asarray(raw, dtype=np.float64) if raw.dtype.kind in kinds else None


_NUMBERS = {"iuf": (int, float, np.integer, np.floating), "biuf": (int, float, np.integer, np.floating, np.bool_)}


def _is_nested(raw: Any, dimensions: int, kinds: str) -> bool:
    if isinstance(raw, np.ndarray):
        return raw.ndim == dimensions and (raw.dtype.kind in kinds or raw.size == 0)
    if dimensions == 0:
        return isinstance(raw, _NUMBERS[kinds]) and not (isinstance(raw, bool) and "b" not in kinds)
    return isinstance(raw, (list, tuple)) and all(_is_nested(value, dimensions - 1, kinds) for value in raw)


@dataclass(frozen=True)
class Annotated:
    """What a frame shows, and whether static objects in it have no velocity, which is then 0."""

    annotations: Annotations
    unknown_velocities: bool = False


class Frame:
    """Checked access to one raw frame of a log. Formats that call things otherwise derive from it."""

    REQUIRED: ClassVar[tuple[str, ...]] = REQUIRED_KEYS
    ANNOTATIONS: ClassVar[str] = "anns"
    BOXES: ClassVar[tuple[str, ...]] = ANNOTATION_KEYS  # boxes, names, velocities, tokens of instances and of tracks
    CAMERAS: ClassVar[str] = "cams"
    COMMAND: ClassVar[str] = "driving_command"
    MOTION: ClassVar[type[np.floating[Any]]] = np.float32  # precision in which the devkit keeps velocities

    def __init__(self, path: Path, index: int, raw: dict[str, Any]) -> None:
        self.path, self.index, self.raw = path, index, raw
        for key in self.REQUIRED:
            if key not in raw:
                raise ValueError(f"{path}: frame {index}: no key '{key}'; found {short(list(raw))}")

    def error(self, key: str, expected: str, found: Any) -> ValueError:
        token = self.raw.get("token")
        named = token[:64] if isinstance(token, str) and token.isprintable() else short(token, 64)
        where = f"{self.path}: frame {self.index} (token {named})"
        return ValueError(f"{where}: '{key}': expected {expected}, found {short(found)}")

    def string(self, key: str) -> str:
        value = self.raw[key]
        if not isinstance(value, str) or not value:
            raise self.error(key, "a non-empty string", value)
        return str(value)

    def name(self, key: str) -> str:
        """A string that can stand in file names and tables."""
        value = self.string(key)
        if len(value) > LONGEST_NAME or not value.isprintable() or value != value.strip() or set(value) & set("/\\"):
            raise self.error(key, f"at most {LONGEST_NAME} printable characters without slashes", value)
        return value

    def time(self) -> int:
        value = self.raw["timestamp"]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self.error("timestamp", "an integer", value)
        if not 0 <= value < LAST_TIME:
            raise self.error("timestamp", "microseconds since 1970", value)
        return int(value)

    def numbers(self, key: str, *shape: int, kinds: str = "iuf") -> NDArray[np.float64]:
        return self._numbers(key, self.value(key), shape, kinds)

    def value(self, key: str) -> Any:
        """What stands under ``key``."""
        return self.raw[key]

    def _numbers(self, key: str, raw: Any, shape: tuple[int, ...], kinds: str = "iuf") -> NDArray[np.float64]:
        value = plain_numbers(raw, len(shape), kinds)
        if value is None or value.shape != shape:
            found = raw if value is None else f"shape {value.shape}"
            raise self.error(key, f"{' x '.join(map(str, shape))} numbers", found)
        if not np.isfinite(value).all():
            raise self.error(key, "finite numbers", value.tolist())
        return value

    def pose(self) -> NDArray[np.float64]:
        x, y, _ = self.numbers("ego2global_translation", 3)
        rotation = self.numbers("ego2global_rotation", 4)
        if not 0.9 < np.linalg.norm(rotation) < 1.1:
            raise self.error("ego2global_rotation", "a unit quaternion w, x, y, z", rotation.tolist())
        return np.array([x, y, yaw(rotation)])

    def dynamics(self) -> NDArray[np.float64]:
        """(4,) velocity and acceleration in ego axes."""
        return self.numbers("ego_dynamic_state", 4)

    def command(self) -> int:
        value = self.numbers(self.COMMAND, 4, kinds="biuf")
        if sorted(value.tolist()) != [0, 0, 0, 1]:
            raise self.error(self.COMMAND, "a one-hot of 4 (left, straight, right, unknown)", value.tolist())
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

    def cameras(self) -> dict[str, dict[str, Any]]:
        """By NAVSIM's names, what the frame holds of those cameras that it says something of."""
        cams = self.raw[self.CAMERAS]
        if not isinstance(cams, dict):
            raise self.error(self.CAMERAS, "a dict of cameras", cams)
        found = {}
        for key, camera in cams.items():
            name = self.camera_name(key)
            if name not in ALL_CAMERAS:
                raise self.error(self.CAMERAS, f"cameras among {', '.join(ALL_CAMERAS)}", key)
            if camera is not None and not isinstance(camera, dict):
                raise self.error(f"{self.CAMERAS}/{key}", "a dict", camera)
            if camera:
                found[name] = camera
        return found

    def camera_name(self, key: Any) -> Any:
        """NAVSIM's name of the camera that the format calls ``key``."""
        return key

    def camera_paths(self) -> dict[str, str]:
        """Of each camera, the path of its image below the folder of the sensors."""
        paths = {}
        for name, camera in self.cameras().items():
            path = self.as_path(camera.get("data_path"))
            if not isinstance(path, str) or not path.isprintable() or not _is_below(path):
                raise self.error(f"{self.CAMERAS}/{name}/data_path", "a path below sensor_blobs/<split>", path)
            paths[name] = path
        return paths

    def as_path(self, value: Any) -> Any:
        """A path as text, where the format may hold it as something else."""
        return value

    def calibrations(self) -> dict[str, Calibration]:
        """Of those cameras that have one, which images alone do without."""
        found = {}
        for name, camera in self.cameras().items():
            if all(camera.get(key) is not None for key in CALIBRATION_KEYS):
                intrinsic, rotation, translation = (
                    self._numbers(f"{self.CAMERAS}/{name}/{key}", camera[key], shape)
                    for key, shape in zip(CALIBRATION_KEYS, ((3, 3), (3, 3), (3,)))
                )
                found[name] = Calibration(intrinsic, rotation, translation)
        return found

    def red_lights(self) -> tuple[str, ...] | None:
        value = self.raw.get("traffic_lights")
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(map(_is_light, value)):
            raise self.error("traffic_lights", "a list of pairs (lane connector id, is red)", value)
        return tuple(str(connector) for connector, is_red in value if is_red)

    def annotations(self) -> Annotated | None:
        anns = self.raw.get(self.ANNOTATIONS)
        if anns is None:
            return None
        if not isinstance(anns, dict):
            raise self.error(self.ANNOTATIONS, "a dict", anns)
        for key in self.BOXES:
            if key not in anns:
                raise self.error(f"{self.ANNOTATIONS}/{key}", "a value", "no such key")
            is_array = isinstance(anns[key], np.ndarray) and anns[key].ndim > 0
            if not is_array and not isinstance(anns[key], (list, tuple)):
                raise self.error(f"{self.ANNOTATIONS}/{key}", "a list", anns[key])
        box_key, name_key, velocity_key, _, track_key = self.BOXES
        tracks = anns[track_key]
        counts = {key: len(anns[key]) for key in self.BOXES}
        if len(set(counts.values())) > 1:
            raise self.error(self.ANNOTATIONS, "lists of one length", counts)
        if not all(isinstance(track, str) for track in tracks):
            raise self.error(f"{self.ANNOTATIONS}/{track_key}", "strings", tracks)
        types = np.array([self._object_type(name, name_key) for name in anns[name_key]], dtype=np.int64)
        velocities = self._table(anns, velocity_key, 3)
        unknown = np.isnan(velocities).any(axis=1) & IS_STATIC[types]
        if unknown.any():  # which the devkit does not look at
            velocities = np.where(unknown[:, None], 0.0, velocities)
        self._require_finite(anns, velocity_key, velocities)
        boxes = self._table(anns, box_key, 7)
        self._require_finite(anns, box_key, boxes)
        return Annotated(
            Annotations(boxes=boxes, types=types, velocities=velocities[:, :2], track_tokens=tuple(map(str, tracks))),
            unknown_velocities=bool(unknown.any()),
        )

    def _table(self, anns: dict[str, Any], key: str, columns: int) -> NDArray[np.float64]:
        value = plain_numbers(anns[key], 2) if len(anns[key]) else np.zeros((0, columns))
        if value is None:
            raise self.error(f"{self.ANNOTATIONS}/{key}", f"numbers (box, {columns})", anns[key])
        if value.ndim != 2 or value.shape[1] != columns:
            raise self.error(f"{self.ANNOTATIONS}/{key}", f"shape (box, {columns})", f"shape {value.shape}")
        return value

    def _require_finite(self, anns: dict[str, Any], key: str, value: NDArray[np.float64]) -> None:
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if bad.size:
            track = anns[self.BOXES[-1]][bad[0]][:64]
            found = f"{value[bad[0]].tolist()} for track {track}"
            raise self.error(f"{self.ANNOTATIONS}/{key}", "finite numbers", found)

    def _object_type(self, name: Any, key: str) -> int:
        found = _TYPES.get(name) if isinstance(name, str) else None
        if found is None:
            raise self.error(f"{self.ANNOTATIONS}/{key}", f"one of {', '.join(OBJECT_NAMES)}", name)
        return found

    def box_error(self, column: int, found: str) -> ValueError:
        """Of boxes (0) or velocities (2) that cannot be."""
        return self.error(f"{self.ANNOTATIONS}/{self.BOXES[column]}", "a box that can be", found)


_TYPES = {name: index for index, name in enumerate(OBJECT_NAMES)}
IS_STATIC = np.isin(OBJECT_NAMES, _STATIC)  # (type,) things that do not move by themselves
_IDS, _FLAGS = frozenset((int, np.int64, np.int32, str)), frozenset((bool, np.bool_, int, np.int64))


def _is_below(path: str) -> bool:
    return len(path) < 4096 and path[:1] not in ("", "/", "\\") and ".." not in path.replace("\\", "/").split("/")


def _is_light(value: Any) -> bool:
    """A pair of a lane connector's id and whether its light is red."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    connector, is_red = value
    return type(connector) in _IDS and type(is_red) in _FLAGS and is_red in (0, 1)
