"""Recordings of robots in LeRobot's layout, v2 and v3: ``meta/info.json`` and parquet files below ``data/``.

Of a frame the numbers are read (``observation.*`` of one axis, ``action``, ``next.reward``, ``next.done``, and
``next.success`` and ``next.truncated`` where they are recorded); cameras are left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from dpvla.config import Whole, one_line
from dpvla.files import FileError, short
from dpvla.schema import read_as
from dpvla.state_based.data.transitions import Transitions

VERSIONS = ("v2.", "v3.")
ACTION, REWARD, DONE, SUCCESS, TRUNCATED = "action", "next.reward", "next.done", "next.success", "next.truncated"
EPISODE, FRAME = "episode_index", "frame_index"
INSTALL = "reading parquet files needs pyarrow; in the source tree: pip install -e '.[lerobot]'"

Numbers = NDArray[Any]


class _Feature(TypedDict):
    dtype: str
    shape: list[Whole]


class _Info(TypedDict):
    """``meta/info.json``, as far as it is read here."""

    codebase_version: str
    total_frames: Whole
    features: dict[str, _Feature]


@dataclass(frozen=True)
class Scaling:
    """Between a robot's own units and an agent's: observations of mean 0 and deviation 1, actions in [-1, 1]."""

    mean: tuple[float, ...]  # (observation,)
    deviation: tuple[float, ...]  # (observation,), 1 where a number never changes
    low: tuple[float, ...]  # (action,), the smallest recorded
    high: tuple[float, ...]  # (action,), the largest; above ``low``

    def observed(self, observations: Numbers) -> Numbers:
        """(..., observation) as an agent sees them."""
        return ((observations - np.array(self.mean)) / np.array(self.deviation)).astype(np.float32)

    def taken(self, actions: Numbers) -> Numbers:
        """(..., action) as an agent takes them."""
        low, high = np.array(self.low), np.array(self.high)
        return (2 * (actions - low) / (high - low) - 1).astype(np.float32)

    def commanded(self, actions: Numbers) -> Numbers:
        """An agent's actions (..., action) as the robot takes them."""
        low, high = np.array(self.low), np.array(self.high)
        return low + (np.asarray(actions, np.float64) + 1) / 2 * (high - low)


@dataclass(frozen=True)
class LeRobotData:
    """What an agent learns from, and how to ask it for actions of the robot."""

    transitions: Transitions
    scaling: Scaling
    about: dict[str, Any]  # what of the data set a result depends on


def load_lerobot(folder: Path | str) -> LeRobotData:
    """Transitions of a data set; observations are its features ``observation.*`` of one axis, in their order.

    A frame leads to the next one of its episode. The task ends (mask 0) with a frame of ``next.success``; where that is
    not recorded, with one of ``next.done`` that is not ``next.truncated``. The last frame of an episode that did not
    end so leads nowhere and is left out.

    Raises:
        ModuleNotFoundError: pyarrow is not installed; says how to install it.
        FileError: no such data set, an incomplete one, one without rewards, or numbers that cannot be.
    """
    folder = Path(folder).expanduser()
    path = folder / "meta" / "info.json"
    info = read_as(path, _Info)
    if not info["codebase_version"].startswith(VERSIONS):
        raise FileError(f"{path}: codebase_version is {short(info['codebase_version'], 40)}, read are v2 and v3")
    names, features = _observations(info), info["features"]
    flags = [name for name in (DONE, SUCCESS, TRUNCATED) if name in features]
    for needed in (ACTION, REWARD, EPISODE, FRAME):
        if needed not in features:
            hint = ": a reward of each frame is what an agent learns by" if needed == REWARD else ""
            raise FileError(f"{path}: features.{needed} is missing{hint}")
    if not names:
        raise FileError(f"{path}: no feature observation.* is a list of numbers")
    columns = _read(folder, info, [*names, ACTION, REWARD, EPISODE, FRAME, *flags])
    order = np.lexsort((columns[FRAME][:, 0], columns[EPISODE][:, 0]))
    columns = {name: values[order] for name, values in columns.items()}
    _refuse_gaps(folder, columns[EPISODE][:, 0], columns[FRAME][:, 0])
    observations = np.concatenate([columns[name] for name in names], 1)
    scaling = _scaling(observations, columns[ACTION])
    transitions = _transitions(scaling.observed(observations), scaling.taken(columns[ACTION]), columns)
    if not len(transitions):
        raise FileError(f"{folder}: no frame leads to another one or ends the task")
    about = {
        "dataset": folder.resolve().name,
        "origin": f"LeRobot {info['codebase_version']}",
        "observations": names,
        "fingerprint": " ".join(f"{name}:{zlib.crc32(values.tobytes()):08x}" for name, values in columns.items()),
    }
    return LeRobotData(transitions, scaling, about)


def _observations(info: _Info) -> list[str]:
    return [
        name
        for name, feature in info["features"].items()
        if name.startswith("observation.") and len(feature["shape"]) == 1 and feature["dtype"].startswith("float")
    ]


def _transitions(observations: Numbers, actions: Numbers, columns: Mapping[str, Numbers]) -> Transitions:
    """Rows from the frames of all episodes in their order."""
    same = np.diff(columns[EPISODE][:, 0]) == 0
    follows = np.append(same, False)  # the next frame is of the same episode
    never = np.zeros(len(follows), bool)
    flags = {name: columns[name][:, 0] != 0 if name in columns else never for name in (DONE, SUCCESS, TRUNCATED)}
    ended = flags[SUCCESS] if SUCCESS in columns else flags[DONE] & ~flags[TRUNCATED]
    kept = np.flatnonzero(follows | ended)
    following = np.where(follows[kept], kept + 1, kept)  # behind the end nobody looks
    episodes = columns[EPISODE][kept, 0]
    return Transitions.from_arrays(
        {
            "observations": observations[kept],
            "actions": actions[kept],
            "rewards": columns[REWARD][kept, 0],
            "next_observations": observations[following],
            "masks": ~ended[kept],
            "terminals": np.append(np.diff(episodes) != 0, True)[: len(kept)],
        }
    )


def _scaling(observations: Numbers, actions: Numbers) -> Scaling:
    deviation = observations.std(0)
    low, high = actions.min(0), actions.max(0)
    high = np.where(high > low, high, low + 1)
    parts = (observations.mean(0), np.where(deviation > 0, deviation, 1.0), low, high)
    return Scaling(*(tuple(part.tolist()) for part in parts))


def _refuse_gaps(folder: Path, episodes: Numbers, frames: Numbers) -> None:
    """Raise FileError unless every episode's frames are 0, 1, 2, ..."""
    starts = np.flatnonzero(np.diff(episodes, prepend=-1))
    expected = np.arange(len(frames)) - np.repeat(starts, np.diff(starts, append=len(frames)))
    wrong = np.flatnonzero(frames != expected)
    if len(wrong):
        place = wrong[0]
        raise FileError(
            f"{folder}: episode {int(episodes[place])} has frame {int(frames[place])} where {expected[place]} belongs"
        )


def _read(folder: Path, info: _Info, names: Sequence[str]) -> dict[str, Numbers]:
    """Columns of all files below ``data/``, (frame, number) float64."""
    arrow = _pyarrow()
    paths = sorted((folder / "data").rglob("*.parquet"))
    parts: dict[str, list[Numbers]] = {name: [] for name in names}
    rows = 0
    for path in paths:
        try:
            file = arrow.parquet.ParquetFile(path)
            rows += file.metadata.num_rows
            if rows > info["total_frames"]:
                break
            lacking = [name for name in names if name not in file.schema_arrow.names]
            if lacking:
                raise FileError(f"{path} has no column {lacking[0]}")
            table = file.read(list(names))
        except (arrow.ArrowException, OSError) as error:
            raise FileError(f"{path} cannot be read as parquet: {one_line(error)[:200]}") from None
        for name in names:
            parts[name].append(_numbers(arrow, table.column(name), info["features"][name], f"{path}: {name}"))
    if rows != info["total_frames"] or not rows:
        raise FileError(
            f"{folder}: meta/info.json tells of {info['total_frames']} frames, {len(paths)} files below data/ have "
            f"{rows}{' or more' if rows > info['total_frames'] else ''}; copy the data set again"
        )
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _numbers(arrow: ModuleType, column: Any, feature: _Feature, where: str) -> Numbers:
    """A column as (frame, number) float64; raises FileError where it is not as ``feature`` says."""
    size, rows = int(np.prod(feature["shape"], dtype=np.int64)), len(column)
    listed = arrow.types.is_list(column.type) or arrow.types.is_fixed_size_list(column.type)
    if listed and rows:
        lengths = set(arrow.compute.unique(arrow.compute.list_value_length(column)).to_pylist())
        if lengths != {size}:
            raise FileError(f"{where} has lists of {short(sorted(lengths, key=str), 60)} numbers, told of are {size}")
        column = arrow.compute.list_flatten(column)
    kind = column.type
    if not (arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_boolean(kind)):
        raise FileError(f"{where} is {short(str(kind), 60)}, expected {feature['dtype']}")
    if len(column) != rows * size or column.null_count:
        raise FileError(f"{where} has {len(column) - column.null_count} numbers for {rows} frames of {size}")
    values = column.to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise FileError(f"{where} holds NaN or infinity")
    return values.reshape(rows, size)


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; {INSTALL}", name=error.name) from error
    return pyarrow
