"""Synthetic scenes of NAVSIM's second stage, read without the devkit.

A file is a pickled dict: metadata, the frames up to t = 0, and nuPlan's objects for what follows: boxes and traffic
lights every 0.5 s, since there are no frames after t = 0. Classes that it names are mapped to holders; nothing of it
runs, and a file that names anything else is refused.

A scene is read as a `Log` of its own: its frames, then those made of what follows. There the ego stays where it was at
last, as the devkit has it, and boxes are given in the global frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from navsim_bridge.files.frames import LONGEST_NAME, MAP_LOCATIONS, Annotated, Frame
from navsim_bridge.files.logs import Log, log_of, odd_boxes
from navsim_bridge.files.nuplan_objects import GEOMETRY, NUPLAN, Value, boxes_of, holders, path_text
from navsim_bridge.files.odd import Frames
from navsim_bridge.files.pickles import load_plain_pickle

STEP_US = 500_000
"""From one frame to the next, where none are recorded."""
MOST_BYTES = 2**25
"""Of a file: a scene takes some 160 kB."""
MOST_FRAMES = 256
"""Of a scene, what follows included; they have 4 and 8."""
RED = 2
"""nuPlan's number of the status of a red light."""
KNOWN = NUPLAN | GEOMETRY | holders(
    {
        "nuplan.common.maps.maps_datatypes": (
            "TrafficLightStatuses", "TrafficLightStatusData", "TrafficLightStatusType",
        ),
    }
)  # fmt: skip
"""Names that a scene may use besides numpy's, and what stands for their objects here."""


@dataclass(frozen=True)
class SyntheticScene:
    """One scene of the second stage."""

    token: str  # that it is scored by
    scene_token: str  # that its file is named after
    original: str  # of the recorded frame at the same time
    num_history: int  # frames up to and including t = 0
    num_frames: int  # of them all, without what follows
    log: Log  # named as the recorded one: the scene's frames, and what follows every 0.5 s


def read_synthetic_scene(path: Path | str) -> SyntheticScene:
    """Read and check one file.

    Raises:
        FileNotFoundError, UnsafePickleError: see `load_plain_pickle`.
        ValueError: naming file and place of the first value that is not as the format says.
    """
    path = Path(path)
    raw = load_plain_pickle(path, KNOWN, MOST_BYTES)
    if not isinstance(raw, dict) or not {"scene_metadata", "frames"} <= set(raw):
        found = list(raw) if isinstance(raw, dict) else raw
        raise ValueError(f"{path}: expected a dict with scene_metadata and frames, found {short(found)}")
    try:
        about = _Metadata(raw["scene_metadata"])
        log = _frames(path, raw["frames"], about)
        later = _later(raw, log)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    return SyntheticScene(
        token=about.token,
        scene_token=about.name("scene_token"),
        original=about.name("corresponding_original_scene"),
        num_history=about.num_history,
        num_frames=len(log),
        log=_extended(log, later),
    )


@lru_cache(maxsize=128)
def _kept(path: Path, _stamp: tuple[int, int]) -> SyntheticScene:
    return read_synthetic_scene(path)


def open_synthetic_scene(path: Path | str) -> SyntheticScene:
    """`read_synthetic_scene`, keeping the last ones in memory (read again when the file has changed)."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no synthetic scene {path}")
    stat = path.stat()
    return _kept(path.absolute(), (stat.st_mtime_ns, stat.st_size))


class _Metadata:
    """Checked access to what a scene says of itself."""

    def __init__(self, raw: Any) -> None:
        if not isinstance(raw, dict):
            raise ValueError(f"scene_metadata: expected a dict, found {short(raw)}")
        self._raw = raw
        self.token, self.log_name = self.name("initial_token"), self.name("log_name")
        self.num_history = self._value("num_history_frames").whole()
        if not 1 <= self.num_history <= MOST_FRAMES:
            raise self._value("num_history_frames").error(f"1 to {MOST_FRAMES}")
        self.location = self.name("map_name")
        if self.location not in MAP_LOCATIONS:
            raise self._value("map_name").error(f"one of {', '.join(MAP_LOCATIONS)}")

    def _value(self, key: str) -> Value:
        if key not in self._raw:
            raise ValueError(f"scene_metadata: no key '{key}'; found {short(list(self._raw))}")
        return Value(self._raw[key], f"scene_metadata/{key}")

    def name(self, key: str) -> str:
        """A text that can stand in file names and tables."""
        value = self._value(key)
        text = value.text()
        if len(text) > LONGEST_NAME or not text.isprintable() or text != text.strip() or set(text) & set("/\\"):
            raise value.error(f"at most {LONGEST_NAME} printable characters without slashes")
        return text


class _SceneFrame(Frame):
    """A frame of a scene, which is stored under other names than one of a log."""

    REQUIRED = ("token", "timestamp", "roadblock_ids", "traffic_lights", "annotations", "ego_status", "camera_dict")
    ANNOTATIONS = "annotations"
    BOXES = ("boxes", "names", "velocity_3d", "instance_tokens", "track_tokens")
    CAMERAS = "camera_dict"
    COMMAND = "ego_status/driving_command"
    MOTION = np.float64  # the devkit keeps what the file has

    def __init__(self, path: Path, index: int, raw: dict[str, Any], location: str) -> None:
        super().__init__(path, index, raw)
        self._location = location

    def value(self, key: str) -> Any:
        """What stands under ``key``, of the ego's status where it begins so."""
        if not key.startswith("ego_status/"):
            return super().value(key)
        status, part = self.raw["ego_status"], key.partition("/")[2]
        if not isinstance(status, dict) or part not in status:
            raise self.error(key, "a value", "no such key")
        return status[part]

    def pose(self) -> NDArray[np.float64]:
        return self.numbers("ego_status/ego_pose", 3)

    def dynamics(self) -> NDArray[np.float64]:
        return np.concatenate([self.numbers(f"ego_status/ego_{key}", 2) for key in ("velocity", "acceleration")])

    def location(self) -> str:
        return self._location

    def camera_name(self, key: Any) -> Any:
        return key.upper() if isinstance(key, str) else key

    def as_path(self, value: Any) -> Any:
        return path_text(value)


def _frames(path: Path, raw: Any, about: _Metadata) -> Log:
    """The log of a scene's frames alone."""
    if not isinstance(raw, (list, tuple)) or not all(isinstance(frame, dict) for frame in raw):
        raise ValueError(f"frames: expected a list of dicts, found {short(raw)}")
    if not about.num_history <= len(raw) <= MOST_FRAMES:
        raise ValueError(f"frames: expected {about.num_history} to {MOST_FRAMES}, found {len(raw)}")
    log = log_of([_SceneFrame(path, i, frame, about.location) for i, frame in enumerate(raw)], about.log_name)
    now = log.tokens[about.num_history - 1]
    if now != about.token:
        raise ValueError(
            f"scene_metadata/initial_token is {short(about.token)}, but the frame at t = 0 has {short(now)}: the "
            "devkit would not find the scene again"
        )
    return log


@dataclass(frozen=True)
class _Later:
    """What follows a scene's frames, every 0.5 s."""

    shown: tuple[Annotated, ...]
    red_lights: tuple[tuple[str, ...], ...]
    odd: Mapping[str, Frames]


def _later(raw: Mapping[str, Any], log: Log) -> _Later:
    key = "extended_detections_tracks"
    tracks = [] if raw.get(key) is None else Value(raw[key], key).items()
    if len(tracks) > MOST_FRAMES:
        raise ValueError(f"{key}: {len(tracks)} frames; at most {MOST_FRAMES} are read")
    shown = tuple(Annotated(boxes_of(detections)) for detections in tracks)
    poses = np.repeat(log.poses[-1:], len(shown), axis=0)

    def refuse(index: int, _: int, found: str) -> ValueError:
        return ValueError(f"{tracks[index].where}: expected a box that can be, found {found}")

    odd = odd_boxes(shown, poses, refuse)
    key = "extended_traffic_light_data"
    lights = [] if raw.get(key) is None else Value(raw[key], key).items()
    red = [_red(statuses) for statuses in lights[: len(shown)]]
    red += [()] * (len(shown) - len(red))  # the devkit takes none for missing ones
    return _Later(shown, tuple(red), odd)


def _red(statuses: Value) -> tuple[str, ...]:
    """Ids of the lane connectors whose light is red."""
    red = []
    for light in statuses["traffic_lights"].items():
        connector = light["lane_connector_id"]
        token = connector.text() if isinstance(connector.found, str) else str(connector.whole())
        if light["status"].argument(0).whole() == RED:
            red.append(token)
    return tuple(red)


def _extended(log: Log, later: _Later) -> Log:
    """``log`` with what follows as further frames."""
    count, first = len(later.shown), len(log)
    after = np.arange(1, count + 1)
    odd = {cause: [*log.odd.get(cause, ()), *(frames + first)] for cause, frames in later.odd.items()}

    def last(values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, np.repeat(values[-1:], count, axis=0)])

    def repeated(values: Sequence[Any], more: Any) -> tuple[Any, ...]:
        return (*values, *(more for _ in range(count)))

    return dataclasses.replace(
        log,
        tokens=(*log.tokens, *(f"{log.tokens[-1]} + {step / 2:g} s" for step in after.tolist())),
        times_us=np.concatenate([log.times_us, log.times_us[-1] + STEP_US * after]),
        poses=last(log.poses),
        velocities=last(log.velocities),
        accelerations=last(log.accelerations),
        commands=last(log.commands),
        locations=repeated(log.locations, log.locations[-1]),
        routes=repeated(log.routes, log.routes[-1]),
        cameras=repeated(log.cameras, {}),
        calibrations=repeated(log.calibrations, {}),
        annotations=(*log.annotations, *(shown.annotations for shown in later.shown)),
        red_lights=(*log.red_lights, *later.red_lights),
        odd={**log.odd, **{cause: np.array(frames, dtype=np.int64) for cause, frames in odd.items() if frames}},
    )
