"""OGBench's data through the ``ogbench`` package: found or downloaded, relabeled for one task, checked."""

from __future__ import annotations

import json
import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import write_json
from dpvla.state_based.data.offline_data import OfflineData, episodes_needed
from dpvla.state_based.data.ogbench.episodes import SOURCES
from dpvla.state_based.data.ogbench.generation import PARTS, data_path, fingerprint, sidecar_path
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.environments.headless import load
from dpvla.state_based.environments.ogbench import (
    OGBenchName,
    parse_name,
    refuse_unknown,
    success_timing,
    versions,
)

CONNECT_SECONDS = 20.0
"""Patience with a download that does not answer."""

_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for npz files that are cut off, damaged or hold pickles."""


def load_ogbench(name: str, folder: Path | str | None = None, max_transitions: int | None = None) -> OfflineData:
    """Transitions of a single-task name such as ``cube-single-play-singletask-task2-v0``.

    Rewards and masks are the package's own relabelling: of the state an action was taken in (``mask`` is 0 where the
    task is solved there). The last row of every episode only supplies a next observation. Files are looked for in
    ``folder`` (None: the package's ``~/.ogbench/data``) and downloaded into it when missing.

    Raises:
        ValueError: unknown name, or a file that is corrupt or does not fit the environment.
        FileNotFoundError: no file and no download.
    """
    ogbench = load("ogbench")
    parts = parse_name(name)
    refuse_unknown(parts)
    folder = Path(folder if folder is not None else load("ogbench.utils").DEFAULT_DATASET_DIR).expanduser()
    files = {part: data_path(folder, parts.dataset, part) for part in PARTS}
    _download_missing(parts, folder, list(files.values()))
    about = _origin(parts, folder, list(files.values()))
    _refuse_broken(parts, list(files.values()))
    try:
        env, train, validation = ogbench.make_env_and_datasets(name, dataset_path=str(files["train"]))
    except _UNREADABLE as error:
        for path in files.values():
            _refuse_unreadable(path)
        raise ValueError(f"{files['train']}: ogbench cannot use it for {name}: {error}") from error
    observation_size = env.observation_space.shape[0]
    for path, arrays in zip(files.values(), (train, validation)):
        if arrays["observations"].shape[1] != observation_size:
            raise ValueError(
                f"{path}: observations have {arrays['observations'].shape[1]} numbers, the environment of {name} "
                f"gives {observation_size}: not this task's file"
            )
    about |= {"packages": versions(), "success_timing": success_timing(env)}
    train = _first_episodes(train, max_transitions)
    about["rows_used"] = {"train": len(train["rewards"]), "val": len(validation["rewards"])}
    return OfflineData(Transitions.from_arrays(train), Transitions.from_arrays(validation), about)


def _download_missing(name: OGBenchName, folder: Path, files: list[Path]) -> None:
    missing = [path for path in files if not path.exists()]
    if not missing:
        return
    package = load("ogbench.utils")
    try:
        with _network_patience():
            package.download_datasets([name.dataset], str(folder))
    except OSError as error:  # includes urllib's errors
        how = (
            f"make data of this kind here with `python tools/make_ogbench_data.py --env {name.dataset[:-3]} "
            f"--out {folder}`"
            if name.dataset[:-3] in SOURCES
            else "data of this kind cannot be made here (its experts are trained policies)"
        )
        raise FileNotFoundError(
            f"{missing[0].name} is not in {folder} and could not be downloaded from "
            f"{package.DATASET_URL}/{missing[0].name} ({error}). Put the official file there, or {how}"
        ) from error
    if missing == files:
        prints = {path.name: fingerprint(path) for path in files}
        write_json(
            sidecar_path(folder, name.dataset),
            {"origin": "official", "source": package.DATASET_URL, "env": name.dataset[:-3], "files": prints},
        )


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
    try:
        prints = {path.name: fingerprint(path) for path in files}
    except zipfile.BadZipFile:
        for path in files:
            _refuse_unreadable(path)
        raise
    sidecar = sidecar_path(folder, name.dataset)
    if not sidecar.exists():
        return {**about, "origin": "unknown (local file)", "files": prints}
    known = json.loads(sidecar.read_text(encoding="utf-8"))
    for file, found in prints.items():
        if known["files"].get(file) != found:
            raise ValueError(
                f"{folder / file} is not the file that {sidecar} describes; delete the sidecar if you replaced the "
                "file on purpose, or make the data again"
            )
    made = {key: known[key] for key in ("seed", "generator", "episodes", "rows_per_episode") if key in known}
    if "packages" in known:
        made["made_with"] = known["packages"]
    return {**about, "origin": known["origin"], "files": prints, **made}


def _refuse_broken(name: OGBenchName, files: list[Path]) -> None:
    needed = ["observations", "actions", "terminals", "qpos"]
    if name.world.startswith(("scene", "puzzle")):
        needed.append("button_states")
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as file:
                lacking = [key for key in needed if key not in file.files]
                terminals = file["terminals"] if "terminals" in file.files else None
        except _UNREADABLE as error:
            raise ValueError(_broken(path)) from error
        if lacking or terminals is None:
            raise ValueError(
                f"{path} lacks {', '.join(lacking)}, which rewards are computed from: not OGBench's format"
            )
        if not len(terminals) or not terminals[-1]:
            raise ValueError(f"{path}: the last row does not end an episode (terminals): the file is incomplete")


def _refuse_unreadable(path: Path) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                file[key]
    except _UNREADABLE as error:
        raise ValueError(_broken(path)) from error


def _broken(path: Path) -> str:
    return f"{path} is not a readable npz file (cut off?): delete it to download or make it again"


def _first_episodes(arrays: dict[str, NDArray[Any]], max_transitions: int | None) -> dict[str, NDArray[Any]]:
    ends = np.flatnonzero(arrays["terminals"]) + 1
    rows = int(ends[episodes_needed(np.diff(ends, prepend=0), max_transitions) - 1])
    return {key: values[:rows] for key, values in arrays.items()}
