"""OGBench's data through the ``ogbench`` package: found or downloaded, relabeled for one task, checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import FileError, write_json
from dpvla.state_based.data.local_data import read_sidecar, refuse_replaced, workshop
from dpvla.state_based.data.npz import (
    ACTION_TOLERANCE,
    STATE_LIMIT,
    Column,
    check_columns,
    fingerprint,
    open_npz,
    read_column,
)
from dpvla.state_based.data.offline_data import OfflineData, episodes_needed
from dpvla.state_based.data.ogbench.episodes import SOURCES
from dpvla.state_based.data.ogbench.generation import PARTS, data_path, sidecar_path
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.environments.headless import load
from dpvla.state_based.environments.ogbench import (
    OGBenchEnvironment,
    OGBenchName,
    parse_name,
    refuse_unknown,
    success_timing,
    versions,
)

CONNECT_SECONDS = 20.0
"""Patience with a download that does not answer."""


def load_ogbench(name: str, folder: Path | str | None = None, max_transitions: int | None = None) -> OfflineData:
    """Transitions of a single-task name such as ``cube-single-play-singletask-task2-v0``.

    Rewards and masks are the package's own relabelling: of the state an action was taken in (``mask`` is 0 where the
    task is solved there). The last row of every episode only supplies a next observation. Files are looked for in
    ``folder`` (None: the package's ``~/.ogbench/data``) and downloaded into it when missing.

    Raises:
        ValueError: unknown name, or a file that is corrupt or does not fit the environment.
        FileNotFoundError: no file and no download.
    """
    parts = parse_name(name)
    refuse_unknown(parts)
    folder = Path(folder if folder is not None else load("ogbench.utils").DEFAULT_DATASET_DIR).expanduser()
    files = {part: data_path(folder, parts.dataset, part) for part in PARTS}
    _download_missing(parts, folder, list(files.values()))
    about = _origin(parts, folder, list(files.values()))
    environment = OGBenchEnvironment(name)
    for path in files.values():
        _check(path, environment)
    env, load_them = environment.raw, load("ogbench").make_env_and_datasets
    train, validation = load_them(name, dataset_path=str(files["train"]), dataset_only=True, cur_env=env)
    about |= {"packages": versions(), "success_timing": success_timing(env)}
    train = _first_episodes(train, max_transitions)
    about["rows_used"] = {"train": len(train["rewards"]), "val": len(validation["rewards"])}
    return OfflineData(Transitions.from_arrays(train), Transitions.from_arrays(validation), about)


def _download_missing(name: OGBenchName, folder: Path, files: list[Path]) -> None:
    if all(path.exists() for path in files):
        return
    with workshop(folder / f".{name.dataset}.download") as place:
        missing = [path for path in files if not path.exists()]
        if missing != files:
            _download(name, folder, missing)
            return
        _download(name, place, files)
        prints = {path.name: fingerprint(place / path.name) for path in files}
        origin = {"origin": "official", "source": load("ogbench.utils").DATASET_URL, "env": name.dataset[:-3]}
        write_json(sidecar_path(folder, name.dataset), origin | {"files": prints})  # first, so that no kill loses it
        for path in files:
            os.replace(place / path.name, path)


def _download(name: OGBenchName, folder: Path, files: list[Path]) -> None:
    """Have the package download ``files``, as far as they are not there, into ``folder``."""
    package = load("ogbench.utils")
    try:
        with _network_patience():
            package.download_datasets([name.dataset], str(folder))
        _refuse_cut_off([folder / path.name for path in files])
    except (OSError, HTTPException, FileError) as error:  # OSError includes urllib's
        how = (
            f"make data of this kind here with `python tools/make_ogbench_data.py --env {name.dataset[:-3]} "
            f"--out {files[0].parent}`"
            if name.dataset[:-3] in SOURCES
            else "data of this kind cannot be made here (its experts are trained policies)"
        )
        raise FileNotFoundError(
            f"{files[0].name} is not in {files[0].parent} and could not be downloaded from "
            f"{package.DATASET_URL}/{files[0].name} ({error}). Put the official file there, or {how}"
        ) from error


def _refuse_cut_off(paths: list[Path]) -> None:
    """Remove files that are no npz files, as the package would leave them there; raises FileError for the first."""
    wrong = []
    for path in paths:
        try:
            fingerprint(path)
        except FileError as error:
            path.unlink()
            wrong.append(error)
    if wrong:
        raise wrong[0]


@contextmanager
def _network_patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _origin(name: OGBenchName, folder: Path, files: list[Path]) -> dict[str, Any]:
    """What is known about the files, checked against them."""
    about: dict[str, Any] = {"benchmark": "OGBench", "dataset": name.dataset}
    prints = {path.name: fingerprint(path) for path in files}
    sidecar = sidecar_path(folder, name.dataset)
    known = read_sidecar(sidecar)
    if known is None:
        return {**about, "origin": "unknown (local file)", "files": prints}
    refuse_replaced(sidecar, known, prints)
    made: dict[str, Any] = {
        key: known[key] for key in ("seed", "generator", "episodes", "rows_per_episode") if key in known
    }  # type: ignore[literal-required]
    if "packages" in known:
        made["made_with"] = known["packages"]
    return {**about, "origin": known["origin"], "files": prints, **made}


def _check(path: Path, environment: OGBenchEnvironment) -> None:
    """Raise FileError where a file is no recording of this environment, or holds what cannot be right."""
    states = environment.state_shapes()
    columns = {
        "observations": Column((environment.observation_size,), STATE_LIMIT),
        "actions": Column((environment.action_size,), ACTION_TOLERANCE),
        "terminals": Column((), 1.0, kinds="biuf", flags=True),
        **{name: Column(shape, STATE_LIMIT) for name, shape in states.items()},
    }
    if "button_states" in states:
        columns["button_states"] = Column(states["button_states"], 1.0, kinds="biu", flags=True)
    with open_npz(path) as file:
        lacking = [name for name in columns if name not in file.arrays and name != "qvel"]  # no reward looks at speeds
        if lacking:
            raise FileError(f"{path} lacks {', '.join(lacking)}: not OGBench's format")
        check_columns(file, columns)
        for name in columns.keys() & file.arrays.keys() - {"terminals"}:
            read_column(file, name, columns[name])
        ends = np.flatnonzero(read_column(file, "terminals", columns["terminals"]))
        rows = file.arrays["terminals"].shape[0]
    if not len(ends) or ends[-1] != rows - 1:
        raise FileError(f"{path}: the last row does not end an episode (terminals): the file is incomplete")
    short = ends[np.diff(ends, prepend=-1) < 2]
    if len(short):
        raise FileError(f"{path}: terminals[{short[0]}] ends an episode of one row, in which nothing happens")


def _first_episodes(arrays: dict[str, NDArray[Any]], max_transitions: int | None) -> dict[str, NDArray[Any]]:
    ends = np.flatnonzero(arrays["terminals"]) + 1
    rows = int(ends[episodes_needed(np.diff(ends, prepend=0), max_transitions) - 1])
    return {key: values[:rows] for key, values in arrays.items()}
