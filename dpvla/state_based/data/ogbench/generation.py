"""Make OGBench data sets here: episode by episode, in parallel, resumable, the same bytes for the same seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla import provenance
from dpvla.config import Count, Whole, check
from dpvla.files import check_folder, read_json, remove_parts, write_atomically, write_json
from dpvla.parallel import available_cores, run_jobs
from dpvla.schema import checked
from dpvla.state_based.data.local_data import (
    ORIGIN,
    Counts,
    OtherDataError,
    Sidecar,
    read_sidecar,
    refuse_other,
    refuse_replaced,
    workshop,
)
from dpvla.state_based.data.npz import fingerprint, read_npz
from dpvla.state_based.data.ogbench.episodes import SOURCES, make_episode
from dpvla.state_based.environments.ogbench import versions

GENERATOR = 1
"""Raised whenever the same settings would give other data."""

PARTS = ("train", "val")


@dataclass(frozen=True)
class OGBenchGeneration:
    """Which data to make and where. A killed run goes on where it stopped; a larger --episodes adds to what is there.

    The result depends on neither workers nor interruptions.
    """

    env: str = "cube-single-play"  # data set name without -v0: cube-{single,double}-play, scene-play, pointmaze-*
    episodes: Whole = 0  # training episodes; a tenth more for validation; 0: as many as the official data has
    out: str = "data/ogbench"  # folder that receives <env>-v0.npz, <env>-v0-val.npz and <env>-v0.json
    seed: Whole = 0  # everything random derives from it
    steps: Whole = 0  # rows of an episode; 0: as in the official data (1001, giant mazes 2001)
    workers: Count = field(default_factory=available_cores)  # processes
    quiet: bool = False  # no progress bar

    def __post_init__(self) -> None:
        if self.env not in SOURCES:
            raise ValueError(f"cannot make '{self.env}' here; choose from: {', '.join(SOURCES)}")
        if self.rows < 2:
            raise ValueError(f"steps must be at least 2 (an episode's last row only ends it), found {self.steps}")

    @property
    def rows(self) -> int:
        """Rows of an episode."""
        return self.steps or SOURCES[self.env].rows

    @property
    def counts(self) -> dict[str, int]:
        """Episodes of each part."""
        train = self.episodes or SOURCES[self.env].episodes
        return {"train": train, "val": max(train // 10, 1)}

    def identity(self) -> dict[str, Any]:
        """All that one episode depends on; data of different identities are never mixed."""
        return {
            "generator": GENERATOR,
            "env": self.env,
            "seed": self.seed,
            "rows_per_episode": self.rows,
            "packages": versions(),
        }


def generate(config: OGBenchGeneration) -> Sidecar:
    """Make the data set, or what is missing of it; returns the content of its sidecar ``<env>-v0.json``.

    Raises:
        OtherDataError: the folder holds files of that name which are official, foreign or made with other settings.
        DirectoryInUseError: another process is making this data set there.
        OSError: the folder cannot be made or written to.
    """
    check(config)
    check_folder(config.out)
    out, shards = Path(config.out), _shards_folder(config, Path(config.out))
    about = _finished(config, out)
    if (
        about is not None
        and about["episodes"] == config.counts
        and about["files"] == _prints(config, out)
        and not _left_over(config, shards)
    ):
        return about
    with workshop(shards):
        for name in _names(config):
            remove_parts(out, name)
        about = _finished(config, out)  # again: now nobody else can change it
        if about is not None:
            refuse_replaced(sidecar_path(out, f"{config.env}-v0"), about, _prints(config, out))
        if about is None or about["episodes"] != config.counts:
            about = _made(config, out, shards, about)
    return about


def _made(config: OGBenchGeneration, out: Path, shards: Path, about: Sidecar | None) -> Sidecar:
    """Make the data set in ``shards``, with the episodes of a finished one of another size that ``about`` describes."""
    _open_shards(config, shards)
    if about is not None:
        _split(config, out, about, shards)
    jobs = [
        (config.env, config.rows, config.seed, part, index, shards / _shard_name(part, index))
        for part in PARTS
        for index in range(config.counts[part])
        if not (shards / _shard_name(part, index)).exists()
    ]
    total = sum(config.counts.values())
    with tqdm(total=total, initial=total - len(jobs), desc=config.env, unit="episode", disable=config.quiet) as bar:
        for _ in run_jobs(write_shard, jobs, config.workers):
            bar.update()
    made: dict[str, Any] = {
        "origin": ORIGIN,
        "note": "made with the package's scripted oracles and the official scripts' settings; not the official data",
        **config.identity(),
        "episodes": config.counts,
        "rows": {part: count * config.rows for part, count in config.counts.items()},
        "files": {},
        "provenance": provenance.made_by(config.seed),
    }
    # Until the sidecar is there again the shards are the data set, so a kill in between loses nothing.
    sidecar_path(out, f"{config.env}-v0").unlink(missing_ok=True)
    for part in PARTS:
        path = data_path(out, f"{config.env}-v0", part)
        _write_data(path, [shards / _shard_name(part, index) for index in range(config.counts[part])])
        made["files"][path.name] = fingerprint(path)
    write_json(sidecar_path(out, f"{config.env}-v0"), made)
    return cast(Sidecar, made)


def data_path(folder: Path, stem: str, part: str) -> Path:
    """The package's file name of the training or validation part."""
    return folder / f"{stem}{'' if part == 'train' else '-val'}.npz"


def sidecar_path(folder: Path, stem: str) -> Path:
    """The file that says how locally generated data was made."""
    return folder / f"{stem}.json"


def write_shard(env: str, rows: int, seed: int, part: str, index: int, path: Path) -> None:
    """Make one episode and write it; its seed depends on the data set's seed, the part and the index alone."""
    own_seed = np.random.SeedSequence((seed, PARTS.index(part), index)).generate_state(1)[0]
    episode = make_episode(env, rows, int(own_seed))
    write_atomically(path, lambda file: np.savez(file, **episode))  # type: ignore[arg-type]


def _finished(config: OGBenchGeneration, out: Path) -> Sidecar | None:
    """The sidecar of a complete data set with the same identity; None when there is no data set."""
    stem = f"{config.env}-v0"
    sidecar, files = sidecar_path(out, stem), [data_path(out, stem, part) for part in PARTS]
    about, found = read_sidecar(sidecar), [path for path in files if path.exists()]
    if about is not None:
        refuse_other(config.identity(), about, sidecar)
        checked(about, _Made, str(sidecar))
        return about if found == files else None
    if found and not (_shards_folder(config, out) / "settings.json").exists():
        raise OtherDataError(
            f"{found[0]} was not made by this tool (no {sidecar.name} beside it): choose another --out"
        )
    return None


class _Made(TypedDict):
    """What a sidecar of data that was made here has beyond what every one has."""

    episodes: Counts
    rows: Counts


def _names(config: OGBenchGeneration) -> list[str]:
    stem = f"{config.env}-v0"
    return [sidecar_path(Path(), stem).name, *(data_path(Path(), stem, part).name for part in PARTS)]


def _prints(config: OGBenchGeneration, out: Path) -> dict[str, str]:
    paths = [data_path(out, f"{config.env}-v0", part) for part in PARTS]
    return {path.name: fingerprint(path) for path in paths}


def _left_over(config: OGBenchGeneration, shards: Path) -> bool:
    """Whether a killed run left shards of a finished data set behind; more episodes than it has are work under way."""
    own = {_shard_name(part, index) for part in PARTS for index in range(config.counts[part])}
    return shards.exists() and {path.name for path in shards.glob("*.npz")} <= own


def _shards_folder(config: OGBenchGeneration, out: Path) -> Path:
    return out / f".{config.env}-v0.parts"


def _shard_name(part: str, index: int) -> str:
    return f"{part}-{index:06d}.npz"


def _open_shards(config: OGBenchGeneration, shards: Path) -> None:
    settings = shards / "settings.json"
    if settings.exists():
        refuse_other(config.identity(), read_json(settings), settings)
    else:
        for left in shards.glob("*.npz"):  # of what, nothing tells
            left.unlink()
        write_json(settings, config.identity())


def _split(config: OGBenchGeneration, out: Path, about: Sidecar, shards: Path) -> None:
    """Turn a finished data set of another size back into shards, so that its episodes are not made again."""
    paths = {part: data_path(out, f"{config.env}-v0", part) for part in PARTS}
    counts, wanted = dict[str, Any](about["episodes"]), config.counts
    for part, path in paths.items():
        data = read_npz(path)
        for index in range(min(counts[part], wanted[part])):
            episode = {key: rows[index * config.rows : (index + 1) * config.rows] for key, rows in data.items()}
            write_atomically(shards / _shard_name(part, index), lambda file, e=episode: np.savez(file, **e))  # type: ignore[misc]


def _write_data(path: Path, shards: list[Path]) -> None:
    data: dict[str, list[NDArray[Any]]] = {}
    for shard in shards:
        for key, rows in read_npz(shard).items():
            data.setdefault(key, []).append(rows)
    joined = {key: np.concatenate(rows) for key, rows in data.items()}
    write_atomically(path, lambda file: np.savez_compressed(file, **joined))  # type: ignore[arg-type]
