"""OpenScene log pickles read without the devkit.

A log is a pickled list of frames, one every 0.5 s. `read_log` checks every frame and returns a `Log`:
plain arrays over the frames, in the units and frames that the devkit uses. What cannot be right is refused; what is
merely odd (`odd.ODD`) is kept, with the frames that it concerns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from navsim_bridge.files.odd import Frames, odd_steps, unlikely_boxes, unlikely_motion
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

LAST_TIME = 4_102_444_800_000_000
"""The year 2100 [us]."""
MEDIAN_STEP = (0.05, 5.0)
"""Seconds that frames, 0.5 s apart, may be apart in the median."""
LONGEST_DRIVE = 86_400.0
"""Seconds."""
MOST_SPEED, MOST_ACCELERATION = 100.0, 100.0
"""Of a car, [m/s] and [m/s^2]."""
UTM_LIMITS = (1e6, 1e7)
"""Meters east and north that no UTM position exceeds."""
BOX_LIMITS = (1e4, 1e3, 1e3)
"""[m] from the ego, [m] of size and [m/s] that no annotated box exceeds."""
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
    odd: Mapping[str, Frames] = field(default_factory=dict)  # cause (of `odd.ODD`) -> frames

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
    times = np.array([frame.time() for frame in read], dtype=np.int64)
    _check_times(read, times)
    tokens = tuple(frame.name("token") for frame in read)
    if len(set(tokens)) < len(tokens):
        twice = _repeated(tokens)
        raise read[twice].error("token", "a token that no earlier frame has", tokens[twice])
    poses, dynamics = _checked_motion(read, times)
    locations = tuple(frame.location() for frame in read)
    for frame, location in zip(read, locations):
        if location != locations[0]:
            raise frame.error("map_location", f"{locations[0]}, where the log begins", location)
    cameras = tuple(frame.camera_paths() for frame in read)
    annotations = tuple(frame.annotations() for frame in read)
    shared = [i for i, paths in enumerate(cameras) if len(set(paths.values())) < len(paths)]
    odd = {
        "uneven_times": odd_steps(times),
        "unlikely_motion": unlikely_motion(times, poses, dynamics[:, :2]),
        "shared_images": np.array(shared, dtype=np.int64),
        **_odd_boxes(read, annotations),
    }
    return Log(
        name=path.stem,
        path=path,
        tokens=tokens,
        times_us=times,
        poses=poses,
        velocities=dynamics[:, :2],
        accelerations=dynamics[:, 2:],
        commands=np.array([frame.command() for frame in read], dtype=np.int64),
        locations=locations,
        routes=tuple(frame.route() for frame in read),
        cameras=cameras,
        calibrations=tuple(frame.calibrations(paths) for frame, paths in zip(read, cameras)),
        annotations=tuple(None if found is None else found.annotations for found in annotations),
        red_lights=tuple(frame.red_lights() for frame in read),
        odd={cause: found for cause, found in odd.items() if len(found)},
    )


def _check_times(read: Sequence[_Frame], times: NDArray[np.int64]) -> None:
    """Raise ValueError where times do not increase, or are not those of one drive in microseconds."""
    steps = np.diff(times)
    late = np.flatnonzero(steps <= 0)
    if late.size:
        raise read[late[0] + 1].error("timestamp", "a time after the previous frame's", int(times[late[0] + 1]))
    if not len(steps):
        return
    median = float(np.median(steps)) / 1e6
    if not MEDIAN_STEP[0] <= median <= MEDIAN_STEP[1]:
        raise read[1].error("timestamp", "microseconds, 500000 from frame to frame", f"{median:g} s in the median")
    if times[-1] - times[0] > LONGEST_DRIVE * 1e6:
        far = int(np.argmax(steps)) + 1
        raise read[far].error("timestamp", "frames of one drive", f"{steps[far - 1] / 1e6:g} s since the frame before")


def _checked_motion(
    read: Sequence[_Frame], times: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(frame, 3) poses and (frame, 4) velocity and acceleration of the ego, which are those of a car on the earth."""
    poses = np.stack([frame.pose() for frame in read])
    dynamics = np.stack([frame.numbers("ego_dynamic_state", 4) for frame in read])
    for columns, most, unit in ((slice(0, 2), MOST_SPEED, "m/s"), (slice(2, 4), MOST_ACCELERATION, "m/s^2")):
        size = _length(dynamics[:, columns])
        if (size > most).any():
            first = int(np.argmax(size > most))
            raise read[first].error("ego_dynamic_state", f"at most {most:g} {unit}", f"{size[first]:g}")
    away = (np.abs(poses[:, :2]) > UTM_LIMITS).any(axis=1)
    if away.any():
        first = int(np.argmax(away))
        raise read[first].error("ego2global_translation", "a position in UTM meters", poses[first, :2].tolist())
    speeds = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1) / (np.diff(times) / 1e6)
    if (speeds > MOST_SPEED).any():
        first = int(np.argmax(speeds > MOST_SPEED)) + 1
        found = f"{speeds[first - 1]:g} m/s from the frame before"
        raise read[first].error("ego2global_translation", "a way that a car can make", found)
    return poses, dynamics.astype(np.float32).astype(np.float64)  # the devkit keeps these as float32


def _length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(row,) of (row, 2); infinite where it is too large for a number."""
    with np.errstate(over="ignore"):
        return np.hypot(vectors[:, 0], vectors[:, 1])


def _odd_boxes(read: Sequence[_Frame], annotations: Sequence[_Annotated | None]) -> dict[str, Frames]:
    """Frames with odd boxes by cause; raises ValueError for boxes that cannot be."""
    found = [(index, a) for index, a in enumerate(annotations) if a is not None]
    if not found:
        return {}
    boxes = np.concatenate([a.annotations.boxes for _, a in found])
    velocities = np.concatenate([a.annotations.velocities for _, a in found])
    counts = [len(a.annotations.types) for _, a in found]
    frame = np.repeat([index for index, _ in found], counts)
    distance, size, speed = BOX_LIMITS
    wrong = {
        "gt_boxes": (np.abs(boxes[:, :3]) > distance).any(axis=1)
        | (boxes[:, 3:6] < 0).any(axis=1)
        | (boxes[:, 3:6] > size).any(axis=1),
        "gt_velocity_3d": _length(velocities) > speed,
    }
    for key, rows in wrong.items():
        if rows.any():
            row = int(np.argmax(rows))
            of, values = read[frame[row]], boxes if key == "gt_boxes" else velocities
            box = row - int(np.searchsorted(frame, frame[row]))
            track = of.raw["anns"]["track_tokens"][box]
            raise of.error(f"anns/{key}", "a box that can be", f"{values[row].tolist()} for track {track[:64]}")
    return {
        "unlikely_boxes": np.unique(frame[unlikely_boxes(boxes, velocities)]),
        "unknown_velocities": np.array([index for index, a in found if a.unknown_velocities], dtype=np.int64),
        "repeated_tracks": np.array(
            [index for index, a in found if len(set(a.annotations.track_tokens)) < len(a.annotations.track_tokens)],
            dtype=np.int64,
        ),
    }


def _repeated(names: Sequence[str]) -> int:
    """Index of the first that was there before."""
    there: set[str] = set()
    for index, name in enumerate(names):
        if name in there:
            return index
        there.add(name)
    raise AssertionError("none is repeated")


@lru_cache(maxsize=4)
def _kept_log(path: Path, _stamp: tuple[int, int]) -> Log:
    return read_log(path)


def open_log(path: Path | str) -> Log:
    """`read_log`, keeping the last few logs in memory (read again when the file has changed)."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no log {path}")
    stat = path.stat()
    return _kept_log(path.absolute(), (stat.st_mtime_ns, stat.st_size))


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
class _Annotated:
    annotations: Annotations
    unknown_velocities: bool


class _Frame:
    """Checked access to one raw frame."""

    def __init__(self, path: Path, index: int, raw: dict[str, Any]) -> None:
        self.path, self.index, self.raw = path, index, raw
        for key in REQUIRED_KEYS:
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
        return self._numbers(key, self.raw[key], shape, kinds)

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

    def command(self) -> int:
        value = self.numbers("driving_command", 4, kinds="biuf")
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
            if camera is not None and not isinstance(camera, dict):
                raise self.error(f"cams/{name}", "a dict", camera)
            if camera:
                path = camera.get("data_path")
                if not isinstance(path, str) or not path.isprintable() or not _is_below(path):
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
        if not isinstance(value, (list, tuple)) or not all(map(_is_light, value)):
            raise self.error("traffic_lights", "a list of pairs (lane connector id, is red)", value)
        return tuple(str(connector) for connector, is_red in value if is_red)

    def annotations(self) -> _Annotated | None:
        if "anns" not in self.raw:
            return None
        anns = self.raw["anns"]
        if not isinstance(anns, dict):
            raise self.error("anns", "a dict", anns)
        for key in ANNOTATION_KEYS:
            if key not in anns:
                raise self.error(f"anns/{key}", "a value", "no such key")
            is_array = isinstance(anns[key], np.ndarray) and anns[key].ndim > 0
            if not is_array and not isinstance(anns[key], (list, tuple)):
                raise self.error(f"anns/{key}", "a list", anns[key])
        tracks = anns["track_tokens"]
        counts = {key: len(anns[key]) for key in ANNOTATION_KEYS}
        if len(set(counts.values())) > 1:
            raise self.error("anns", "lists of one length", counts)
        if not all(isinstance(track, str) for track in tracks):
            raise self.error("anns/track_tokens", "strings", tracks)
        types = np.array([self._object_type(name) for name in anns["gt_names"]], dtype=np.int64)
        velocities = self._table(anns, "gt_velocity_3d", 3)
        unknown = np.isnan(velocities).any(axis=1) & _IS_STATIC[types]
        if unknown.any():  # which the devkit does not look at
            velocities = np.where(unknown[:, None], 0.0, velocities)
        self._require_finite(anns, "gt_velocity_3d", velocities)
        boxes = self._table(anns, "gt_boxes", 7)
        self._require_finite(anns, "gt_boxes", boxes)
        return _Annotated(
            Annotations(boxes=boxes, types=types, velocities=velocities[:, :2], track_tokens=tuple(map(str, tracks))),
            unknown_velocities=bool(unknown.any()),
        )

    def _table(self, anns: dict[str, Any], key: str, columns: int) -> NDArray[np.float64]:
        value = plain_numbers(anns[key], 2) if len(anns[key]) else np.zeros((0, columns))
        if value is None:
            raise self.error(f"anns/{key}", f"numbers (box, {columns})", anns[key])
        if value.ndim != 2 or value.shape[1] != columns:
            raise self.error(f"anns/{key}", f"shape (box, {columns})", f"shape {value.shape}")
        return value

    def _require_finite(self, anns: dict[str, Any], key: str, value: NDArray[np.float64]) -> None:
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if bad.size:
            track = anns["track_tokens"][bad[0]][:64]
            raise self.error(f"anns/{key}", "finite numbers", f"{value[bad[0]].tolist()} for track {track}")

    def _object_type(self, name: Any) -> int:
        found = _TYPES.get(name) if isinstance(name, str) else None
        if found is None:
            raise self.error("anns/gt_names", f"one of {', '.join(OBJECT_NAMES)}", name)
        return found


_TYPES = {name: index for index, name in enumerate(OBJECT_NAMES)}
_IS_STATIC = np.isin(OBJECT_NAMES, _STATIC)  # (type,)
_IDS, _FLAGS = frozenset((int, np.int64, np.int32, str)), frozenset((bool, np.bool_, int, np.int64))


def _is_below(path: str) -> bool:
    return len(path) < 4096 and path[:1] not in ("", "/", "\\") and ".." not in path.replace("\\", "/").split("/")


def _is_light(value: Any) -> bool:
    """A pair of a lane connector's id and whether its light is red."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    connector, is_red = value
    return type(connector) in _IDS and type(is_red) in _FLAGS and is_red in (0, 1)


def annotated(annotations: Sequence[Annotations | None], log: Log, first: int) -> list[Annotations]:
    """``annotations`` when none is missing, and none shows a track twice, which the devkit takes for an error, too.

    ``first`` is the index of their first frame in ``log``.
    """
    complete = [a for a in annotations if a is not None]
    if len(complete) < len(annotations):
        missing = first + next(i for i, a in enumerate(annotations) if a is None)
        raise ValueError(
            f"{log.path}: frame {missing} (token {log.tokens[missing]}) has no 'anns': logs without annotations "
            "(private test logs) can be planned for, not scored"
        )
    for frame in log.odd.get("repeated_tracks", ()):
        if first <= frame < first + len(annotations):
            tracks = complete[frame - first].track_tokens
            raise ValueError(
                f"{log.path}: frame {frame} (token {log.tokens[frame]}) shows one track twice: "
                f"{short(tracks[_repeated(tracks)])}"
            )
    return complete
