"""ExORL's data: episode files of a reward-free collector with one task's rewards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from dpvla.parallel import available_cores
from dpvla.schema import read_as
from dpvla.state_based.data.exorl.files import (
    DEFAULT_FOLDER,
    USED,
    buffer_folder,
    fingerprint,
    list_episodes,
    look_at,
    read_episode,
)
from dpvla.state_based.data.exorl.rewards import cached_rewards, sizes_of
from dpvla.state_based.data.offline_data import OfflineData, episodes_needed
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.environments.control_suite import ControlEnvironment, parse_task, versions

COLLECTION = "collection.json"
"""File beside a buffer that says it was collected here."""


def load_exorl(
    name: str,
    folder: Path | str | None = None,
    collector: str = "rnd",
    max_transitions: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> OfflineData:
    """Transitions of a task such as ``walker-run`` or ``jaco-reach-top-left``.

    Rewards are computed from the recorded physics at first use (in ``workers`` processes; None: all cores) and cached
    in ``<folder>/<domain>/<collector>/rewards``. Masks are 1 throughout: these tasks end by their time limit only.

    Args:
        max_transitions: use the first episodes that hold as many; None: all (the original trainer stops at 1M).

    Raises:
        ValueError: no such task, or a file that is corrupt or does not fit it (the message names the file).
        FileNotFoundError: no episodes.
        ModuleNotFoundError: the simulators are not installed.
    """
    domain, packages = parse_task(name).domain, versions()
    folder = Path(folder) if folder is not None else DEFAULT_FOLDER
    episodes = list_episodes(folder, domain, collector)
    episodes = episodes[: episodes_needed([episode.length for episode in episodes], max_transitions)]
    workers = workers or available_cores()
    sizes = sizes_of(ControlEnvironment(name))
    found = look_at(episodes, sizes)  # before memory is asked for
    rows = sum(episode.length for episode in episodes)
    arrays: dict[str, NDArray[Any]] = {
        "observations": np.empty((rows, sizes.observation), np.float32),
        "actions": np.empty((rows, sizes.action), np.float32),
        "next_observations": np.empty((rows, sizes.observation), np.float32),
        "masks": np.ones(rows, np.float32),
        "terminals": np.zeros(rows, np.float32),
    }
    starts = np.concatenate([[0], np.cumsum([episode.length for episode in episodes])])

    def fill(number: int) -> None:
        read = read_episode(episodes[number], sizes, ["observation", "action"], also=("reward", "discount"))
        here = slice(starts[number], starts[number + 1])
        arrays["observations"][here] = read["observation"][:-1]
        arrays["next_observations"][here] = read["observation"][1:]
        arrays["actions"][here] = read["action"][1:]
        arrays["terminals"][starts[number + 1] - 1] = 1.0

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, range(len(episodes))))
    root = buffer_folder(folder, domain, collector).parent
    physics = fingerprint(episodes, found, ("physics",))
    arrays["rewards"] = cached_rewards(name, episodes, physics, root / "rewards", workers, progress)
    about: dict[str, Any] = {
        "benchmark": "ExORL",
        "dataset": f"{domain}/{collector}",
        "episodes": len(episodes),
        "rows_used": {"train": rows},
        "files": physics,
        "contents": fingerprint(episodes, found, USED),
        "packages": packages,
        **_origin(root / COLLECTION),
    }
    return OfflineData(Transitions.from_arrays(arrays), None, about)


class Collection(TypedDict):
    """What ``collection.json`` holds."""

    origin: str
    settings: dict[str, Any]


def read_collection(path: Path) -> Collection:
    """A buffer's ``collection.json``; FileError names a key that is missing or wrong."""
    return read_as(path, Collection)


def _origin(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"origin": "unknown (local files; no collection.json, as with the official ones)"}
    known = read_collection(path)
    return {"origin": known["origin"], "collected_with": known["settings"]}
