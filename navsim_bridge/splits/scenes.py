"""Scenes of a split: windows of log frames with what agents and the dataset need of them."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpvla.parallel import Workers, executor_of, run_jobs
from dpvla.plan import NUM_POSES
from navsim_bridge.files.logs import Log, list_logs, log_path, open_log
from navsim_bridge.files.odd import ODD, in_window
from navsim_bridge.files.private_logs import read_sequences
from navsim_bridge.files.synthetic_scenes import open_synthetic_scene
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.shard import Shard
from navsim_bridge.splits.two_stage import TwoStages

LOGS_PER_PROCESS = 50
"""Fewer logs are not worth another process."""
SCENES_PER_PROCESS, FILES_AT_ONCE = 200, 32
"""The same of files of the second stage, and those that a process reads at once."""

ASK_FOR_THE_REST = "{}, or ask for the rest (--allow-missing, where the tool has it)."


@dataclass(frozen=True)
class Selection:
    """Scenes that a split or a shard of it selects, and what is known of the split's others."""

    records: list[SceneRecord]  # ordered by log name and time
    scenes: int | None  # of the split, over all shards; None: a shard that has looked at its own logs alone
    absent: tuple[str, ...]  # tokens of the split that no log has; none where logs were left unread
    logs: list[str]  # of the split, those that there are, sorted


@dataclass(frozen=True)
class SyntheticSource:
    """Where a scene of the second stage comes from; its frames are those of a log of its own, see `scene_log`."""

    file: Path
    images: Path  # folder that its camera paths begin in
    original: str  # token of the recorded frame at the same time; empty where it is not told


@dataclass(frozen=True)
class SceneRecord:
    """One scene without its images, boxes and map; poses of the rear axle in the global frame."""

    token: str  # of the frame at t = 0
    log_name: str
    data_split: str
    location: str  # map
    first_frame: int  # index in the log of the first history frame
    num_history: int  # frames up to and including t = 0
    times_us: NDArray[np.int64]  # (frame,) history and future
    poses: NDArray[np.float64]  # (frame, 3) x, y [m], heading [rad]
    velocity: NDArray[np.float64]  # (2,) at t = 0, ego axes [m/s]
    acceleration: NDArray[np.float64]  # (2,) at t = 0, ego axes [m/s^2]
    command: int  # index into dpvla.batch.COMMANDS
    route: tuple[str, ...]  # roadblock ids
    cameras: dict[str, str]  # camera -> path below the folder of its images, at t = 0
    odd: tuple[str, ...] = ()  # what is odd in its frames, of `odd.ODD`
    synthetic: SyntheticSource | None = None  # where a synthetic scene comes from; None: a recorded one

    @property
    def now(self) -> int:
        """Index of t = 0 among the frames."""
        return self.num_history - 1

    @property
    def pose(self) -> NDArray[np.float64]:
        """(3,) global pose at t = 0."""
        return self.poses[self.now]

    def relative_poses(self, frames: slice | Sequence[int]) -> NDArray[np.float64]:
        """(frame, 3) poses of ``frames`` in the ego frame at t = 0, float64, headings in [-pi, pi)."""
        return relative(self.poses[frames], self.pose)

    def plan(self) -> NDArray[np.float64]:
        """(8, 3) what the recorded driver did, in the ego frame.

        Raises ValueError when the scene is synthetic, or has fewer than 8 future frames.
        """
        future = self.relative_poses(slice(self.num_history, self.num_history + NUM_POSES))
        if len(future) < NUM_POSES and self.synthetic is not None:
            raise ValueError(f"scene {self.token} of log {self.log_name} is synthetic: nobody drove there")
        if len(future) < NUM_POSES:
            raise ValueError(
                f"scene {self.token} of log {self.log_name} has {len(future)} future frames; a recorded plan needs "
                f"{NUM_POSES}: use a split with num_future_frames >= {NUM_POSES}"
            )
        return future


def relative(poses: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Poses (..., 3) in the frame of ``origin`` (3,): rotated differences, heading wrapped to [-pi, pi)."""
    dx, dy = poses[..., 0] - origin[0], poses[..., 1] - origin[1]
    cos, sin = np.cos(-origin[2]), np.sin(-origin[2])
    heading = np.mod(poses[..., 2] - origin[2] + np.pi, 2 * np.pi) - np.pi
    return np.stack([dx * cos - dy * sin, dx * sin + dy * cos, heading], axis=-1)


def select_logs(split: Split, data_root: Path | str, allow_missing: bool = False) -> list[str]:
    """Names of the logs that a split looks at, sorted.

    Raises FileNotFoundError when logs that it names are missing, with their count, unless ``allow_missing``.
    """
    there, wanted = list_logs(data_root, split.data_split), split.scene_filter.log_names
    if wanted is None:
        return there
    missing = sorted(set(wanted) - set(there))
    if missing:
        found = (
            f"split {split.name}: {len(missing)} of {len(wanted)} logs are not in "
            f"{log_path(data_root, split.data_split, '*').parent}, first {missing[0]}"
        )
        _leave_out(found, "Get them", allow_missing, FileNotFoundError)
    return sorted(set(wanted) & set(there))


def _leave_out(found: str, remedy: str, allowed: bool, error: type[Exception]) -> None:
    """Say on stderr that what is missing is left out, or raise ``error`` where that is not allowed."""
    if not allowed:
        raise error(f"{found}. {ASK_FOR_THE_REST.format(remedy)}")
    print(f"{found}; they are left out", file=sys.stderr)


def select_scenes(
    split: Split,
    data_root: Path | str,
    allow_missing: bool = False,
    workers: Workers = 1,
    preload: Sequence[str] = (),
) -> list[SceneRecord]:
    """The records of `find_scenes`, with its arguments and errors."""
    return find_scenes(split, data_root, allow_missing, workers, preload=preload).records


def find_scenes(
    split: Split,
    data_root: Path | str,
    allow_missing: bool = False,
    workers: Workers = 1,
    shard: Shard | None = None,
    preload: Sequence[str] = (),
) -> Selection:
    """The scenes of a split, ordered by log name and time; those of its second stage last, by log and file name.

    Windows are cut as the devkit cuts them: a log's windows start at frame 0 and every ``frame_interval``, and frames
    that follow each other are taken to be 0.5 s apart. How many scenes hold something odd (`odd.ODD`), such as a gap,
    is said on stderr. Reading stops at the log that has the last of ``max_scenes``: which tokens of a split are in no
    log is then known only if that was the last log.

    Args:
        split: from `load_split`.
        data_root: folder with `navsim_logs/`.
        allow_missing: say on stderr which named logs or tokens are missing, and go on with the rest.
        workers: processes that read logs, or an executor.
        shard: only the scenes of this part of `select_logs`, maybe none; without ``max_scenes`` it cannot tell
            whether every token of the split is there.
        preload: modules that the workers share, see `run_jobs`.

    Raises:
        FileNotFoundError: logs named by the split are missing, with their count, or the folder of its second stage.
        ValueError: tokens of the split are in no log that there is (with counts), a token names two scenes, or no
            scene is left.
    """
    names = select_logs(split, data_root, allow_missing)
    limit = split.scene_filter.max_scenes
    mine = names if shard is None else shard.take(names)
    records: list[SceneRecord] = []
    to_read, read = names if limit is not None else mine, 0  # the first so many of a split are those of all its logs
    for found in _windows_of_logs(split, data_root, to_read, workers, preload):
        records += found
        read += 1
        if limit is not None and len(records) >= limit:
            break
    if split.two_stage is not None:
        records += _second_stage(split, split.two_stage, mine, workers, preload)
    there = {r.token for r in records}
    records = records[:limit]
    twice = [token for token, count in Counter(r.token for r in records).items() if count > 1]
    if twice:
        places = sorted({r.synthetic.file.name if r.synthetic else r.log_name for r in records if r.token == twice[0]})
        raise ValueError(f"split {split.name}: token {twice[0]} names two scenes, in {' and '.join(places)}")
    for line in _odd_in(records, split.name):
        _say(line)
    absent = _absent(split, there, data_root, allow_missing) if read == len(names) else ()
    if shard is not None:
        in_shard = {*mine, *(r.log_name for r in records if r.synthetic)}
        scenes = len(records) if limit is not None else None
        return Selection([r for r in records if r.log_name in in_shard], scenes, absent, names)
    if not records:
        raise ValueError(f"split {split.name} selects no scene from {len(names)} logs below {data_root}")
    return Selection(records, len(records), absent, names)


def _absent(split: Split, there: Collection[str], data_root: Path | str, allow_missing: bool) -> tuple[str, ...]:
    """Tokens of a split that are not ``there``; raises ValueError, or says so where that is allowed."""
    first, second = split.scene_filter.tokens or (), split.two_stage.tokens if split.two_stage else ()
    absent = tuple(token for token in first if token not in there)
    if absent:
        lack = (
            f"split {split.name}: {len(absent)} of {len(first)} scenes are in no log below {data_root} (or no window "
            f"of the split starts there), first {absent[0]}"
        )
        _leave_out(lack, "Get the missing logs", allow_missing, ValueError)
    synthetic = tuple(token for token in second if token not in there)
    if synthetic:
        assert split.two_stage is not None
        lack = (
            f"split {split.name}: {len(synthetic)} of {len(second)} synthetic scenes are not in "
            f"{split.two_stage.scenes} (or their logs are not in the split), first {synthetic[0]}"
        )
        _leave_out(lack, "Get them", allow_missing, ValueError)
    return absent + synthetic


def _odd_in(records: Sequence[SceneRecord], split: str) -> Iterator[str]:
    """What to say of odd scenes, by cause."""
    for cause, words in ODD.items():
        found = [r for r in records if cause in r.odd]
        if found:
            logs = len({r.log_name for r in found})
            yield (
                f"split {split}: {len(found)} of {len(records)} scenes have {words} (in {logs} "
                f"log{'s' * (logs > 1)}, first {found[0].token} of {found[0].log_name}); they are used as the devkit "
                "uses them"
            )


@lru_cache(maxsize=256)
def _say(line: str) -> None:
    """Once per process: a split is read for several purposes."""
    print(line, file=sys.stderr)


def windows(log: Log, data_split: str, rules: SceneFilter) -> Iterator[SceneRecord]:
    """The scenes that ``rules`` cut from one log (``log_names`` and ``max_scenes`` are not looked at)."""
    for first in range(0, len(log) - rules.num_frames + 1, rules.step):
        now = first + rules.num_history_frames - 1
        if rules.has_route and not log.routes[now]:
            continue
        if rules.wanted is not None and log.tokens[now] not in rules.wanted:
            continue
        yield record(log, data_split, first, rules.num_history_frames, rules.num_future_frames)


def record(log: Log, data_split: str, first: int, num_history: int, num_future: int) -> SceneRecord:
    """The scene of ``log`` whose first history frame has index ``first``."""
    now, frames = first + num_history - 1, slice(first, first + num_history + num_future)
    return SceneRecord(
        token=log.tokens[now],
        log_name=log.name,
        data_split=data_split,
        location=log.locations[now],
        first_frame=first,
        num_history=num_history,
        times_us=log.times_us[frames],
        poses=log.poses[frames],
        velocity=log.velocities[now],
        acceleration=log.accelerations[now],
        command=int(log.commands[now]),
        route=log.routes[now],
        cameras=log.cameras[now],
        odd=in_window(log.odd, first, first + num_history + num_future),
    )


def by_log(records: Sequence[SceneRecord]) -> dict[tuple[str, str], list[SceneRecord]]:
    """Records grouped by (data split, log name), in order of first appearance."""
    groups: dict[tuple[str, str], list[SceneRecord]] = {}
    for r in records:
        groups.setdefault((r.data_split, r.log_name), []).append(r)
    return groups


def _windows_of_logs(
    split: Split, data_root: Path | str, names: Sequence[str], workers: Workers, preload: Sequence[str]
) -> Iterator[list[SceneRecord]]:
    executor = executor_of(workers).worth(len(names) // LOGS_PER_PROCESS)
    folder = log_path(data_root, split.data_split, "*").parent
    private = split.two_stage is not None and split.two_stage.is_private
    opener = partial(_Windows, Path(data_root), split.data_split, split.scene_filter, private)
    jobs = [(name,) for name in names]
    yield from run_jobs(_read_windows, jobs, executor, in_order=True, opener=opener, preload=preload, reads=[folder])


@dataclass(frozen=True)
class _Windows:
    """What every log is cut by: a worker is sent it once, since it may hold 100,000 tokens."""

    data_root: Path
    data_split: str
    rules: SceneFilter
    private: bool


def _read_windows(by: _Windows, name: str) -> list[SceneRecord]:
    path = log_path(by.data_root, by.data_split, name)
    if not by.private:
        return list(windows(open_log(path), by.data_split, by.rules))
    return [found for log in read_sequences(path) for found in windows(log, by.data_split, _of_sequence(by.rules))]


def _of_sequence(rules: SceneFilter) -> SceneFilter:
    """The rules that the devkit cuts private sequences by."""
    return dataclasses.replace(rules, num_future_frames=0, frame_interval=1, has_route=False)


def _second_stage(
    split: Split, stages: TwoStages, logs: Collection[str], workers: Workers, preload: Sequence[str]
) -> list[SceneRecord]:
    """The synthetic scenes of a split that follow scenes of ``logs``, by log and file name."""
    folder = stages.scenes
    files = sorted(folder.glob("*.pkl"))
    executor = executor_of(workers).worth(len(files) // SCENES_PER_PROCESS)
    opener = partial(_SecondStage, split.data_split, split.scene_filter, stages, frozenset(stages.tokens))
    parts = [(files[first : first + FILES_AT_ONCE],) for first in range(0, len(files), FILES_AT_ONCE)]
    read = run_jobs(_read_synthetic, parts, executor, in_order=True, opener=opener, preload=preload, reads=[folder])
    found = [r for part in read for r in part if stages.is_private or r.log_name in logs]
    return sorted(found, key=lambda r: r.log_name)


@dataclass(frozen=True)
class _SecondStage:
    """What synthetic scenes are chosen by."""

    data_split: str
    rules: SceneFilter
    stages: TwoStages
    wanted: frozenset[str]


def _read_synthetic(by: _SecondStage, files: Sequence[Path]) -> list[SceneRecord]:
    assert by.stages.images is not None  # files were found
    images = by.stages.images.absolute()
    found = []
    for file in files:
        if by.stages.is_private:
            rules = dataclasses.replace(_of_sequence(by.rules), tokens=by.stages.tokens)
            of_file = [(r, "") for log in read_sequences(file) for r in windows(log, by.data_split, rules)]
        else:
            scene = open_synthetic_scene(file)
            future = scene.num_frames - scene.num_history
            whole = record(scene.log, by.data_split, 0, scene.num_history, future)
            whole = dataclasses.replace(whole, odd=in_window(scene.log.odd, 0, len(scene.log)))
            of_file = [(whole, scene.original)]
        found += [
            dataclasses.replace(r, synthetic=SyntheticSource(file.absolute(), images, original))
            for r, original in of_file
            if r.token in by.wanted
        ]
    return found


def scene_log(scene: SceneRecord, data_root: Path | str) -> Log:
    """The log that a scene's frames are counted in: the recorded one, or that of a synthetic scene alone."""
    if scene.synthetic is not None:
        return open_synthetic_scene(scene.synthetic.file).log
    return open_log(log_path(data_root, scene.data_split, scene.log_name))
