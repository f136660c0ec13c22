"""OpenScene log pickles read without the devkit.

A log is a pickled list of frames, one every 0.5 s. `read_log` checks every frame and returns a `Log`:
plain arrays over the frames, in the units and frames that the devkit uses. What cannot be right is refused; what is
merely odd (`odd.ODD`) is kept, with the frames that it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from navsim_bridge.files.frames import Annotated, Annotations, Calibration, Frame
from navsim_bridge.files.odd import Frames, odd_steps, unlikely_boxes, unlikely_motion
from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.files.roots import LOGS

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
    frames = raw_frames(path)
    return log_of([Frame(path, index, frame) for index, frame in enumerate(frames)], path.stem)


def raw_frames(path: Path) -> list[dict[str, Any]]:
    """The frames of a log's pickle, as they are; errors as `read_log`."""
    frames = load_plain_pickle(path)
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise ValueError(f"{path}: expected a non-empty list of frames (dicts), found {type(frames).__name__}")
    return frames


def log_of(read: Sequence[Frame], name: str) -> Log:
    """The log made of frames, of which there are some; raises ValueError as `read_log`."""
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
    annotations = [frame.annotations() for frame in read]
    shared = [i for i, paths in enumerate(cameras) if len(set(paths.values())) < len(paths)]
    odd = {
        "uneven_times": odd_steps(times),
        "unlikely_motion": unlikely_motion(times, poses, dynamics[:, :2]),
        "shared_images": np.array(shared, dtype=np.int64),
        **odd_boxes(annotations, poses, lambda index, column, found: read[index].box_error(column, found)),
    }
    return Log(
        name=name,
        path=read[0].path,
        tokens=tokens,
        times_us=times,
        poses=poses,
        velocities=dynamics[:, :2],
        accelerations=dynamics[:, 2:],
        commands=np.array([frame.command() for frame in read], dtype=np.int64),
        locations=locations,
        routes=tuple(frame.route() for frame in read),
        cameras=cameras,
        calibrations=tuple(frame.calibrations() for frame in read),
        annotations=tuple(None if found is None else found.annotations for found in annotations),
        red_lights=tuple(frame.red_lights() for frame in read),
        odd={cause: found for cause, found in odd.items() if len(found)},
    )


def _check_times(read: Sequence[Frame], times: NDArray[np.int64]) -> None:
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


def _checked_motion(read: Sequence[Frame], times: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(frame, 3) poses and (frame, 4) velocity and acceleration of the ego, which are those of a car on the earth."""
    poses = np.stack([frame.pose() for frame in read])
    dynamics = np.stack([frame.dynamics() for frame in read])
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
    return poses, dynamics.astype(read[0].MOTION).astype(np.float64)


def _length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(row,) of (row, 2); infinite where it is too large for a number."""
    with np.errstate(over="ignore"):
        return np.hypot(vectors[:, 0], vectors[:, 1])


def odd_boxes(
    annotations: Sequence[Annotated | None],
    poses: NDArray[np.float64],
    error: Callable[[int, int, str], ValueError],
) -> dict[str, Frames]:
    """Frames with odd boxes by cause; raises ValueError for boxes that cannot be.

    Args:
        annotations: of the frames.
        poses: (frame, 3) of the ego.
        error: the error of a frame, by its index; and more as `Frame.box_error`.
    """
    found = [(index, a) for index, a in enumerate(annotations) if a is not None]
    if not found:
        return {}
    boxes = np.concatenate([a.annotations.around(poses[index]) for index, a in found])
    velocities = np.concatenate([a.annotations.velocities for _, a in found])
    frame = np.repeat([index for index, _ in found], [len(a.annotations.types) for _, a in found])
    distance, size, speed = BOX_LIMITS
    wrong = {
        0: (np.abs(boxes[:, :3]) > distance).any(axis=1)
        | (boxes[:, 3:6] < 0).any(axis=1)
        | (boxes[:, 3:6] > size).any(axis=1),
        2: _length(velocities) > speed,
    }
    for column, rows in wrong.items():
        if rows.any():
            row = int(np.argmax(rows))
            index, values = int(frame[row]), velocities if column else boxes
            shown = annotations[index]
            assert shown is not None
            track = shown.annotations.track_tokens[row - int(np.searchsorted(frame, index))]
            raise error(index, column, f"{values[row].tolist()} for track {track[:64]}")
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
