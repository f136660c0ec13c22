"""Rewards of an ExORL task for recorded episodes, computed from their physics states and cached on disk."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla.files import FileError, one_writer, write_atomically
from dpvla.parallel import run_jobs
from dpvla.state_based.data.exorl.files import EpisodeFile, Sizes, read_episode
from dpvla.state_based.data.npz import STATE_LIMIT, Column, check_columns, open_npz, read_column
from dpvla.state_based.environments.control_suite import ControlEnvironment, versions
from dpvla.state_based.environments.headless import load

RELABELLING = 1
"""Raised whenever the same physics would give other rewards."""

_CHUNK = 50
"""Episodes of one job."""


def rewards_of(env: Any, physics: NDArray[np.float64]) -> NDArray[np.float32]:
    """The task's reward in each of the states ``physics`` (row, state) of a dm_control environment.

    Only what rewards look at is computed: poses, velocities, velocity sensors. No contacts, forces or accelerations,
    so this is several times faster than a reset to each state, and gives the same bits.
    """
    mujoco = load("mujoco")
    model, data = env.physics.model.ptr, env.physics.data.ptr
    rewards = np.empty(len(physics), np.float32)
    for row, state in enumerate(physics):
        env.physics.set_state(state)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        mujoco.mj_subtreeVel(model, data)
        mujoco.mj_sensorVel(model, data)
        rewards[row] = env.task.get_reward(env.physics)
    return rewards


def cached_rewards(
    name: str, episodes: list[EpisodeFile], physics: str, cache: Path, workers: int, progress: bool = True
) -> NDArray[np.float32]:
    """Rewards of all transitions of ``episodes``, one after the other; from ``cache`` when it holds these files'.

    Transition i's reward is that of the state it leads to. A cache file is named after the task and a hash of the
    files' checksums and the versions of dm_control and MuJoCo, so it is used for exactly what it was made from.

    Args:
        physics: fingerprint of the files' physics states.
    """
    used = [f"relabelling {RELABELLING}", physics, *(f"{k} {v}" for k, v in versions().items())]
    made_of = hashlib.sha256(" ".join(used).encode()).hexdigest()
    path, seal = cache / f"{name}-{made_of[:16]}.npz", f"{name} {made_of}"
    rows = sum(episode.length for episode in episodes)
    if (found := _read_cache(path, rows, seal)) is not None:
        return found
    with one_writer(cache, wait=True):
        if (found := _read_cache(path, rows, seal)) is not None:  # made by who was waited for
            return found
        rewards = _relabelled(name, episodes, workers, progress)
        arrays: dict[str, NDArray[Any]] = {"rewards": rewards, "sha256": _sealed(rewards, seal)}
        write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return rewards


def _sealed(rewards: NDArray[np.float32], seal: str) -> NDArray[np.uint8]:
    """A checksum of rewards and of what they were made from, so that no other file passes for theirs."""
    return np.frombuffer(hashlib.sha256(seal.encode() + rewards.tobytes()).digest(), np.uint8)


def _relabelled(name: str, episodes: list[EpisodeFile], workers: int, progress: bool) -> NDArray[np.float32]:
    chunks = [episodes[start : start + _CHUNK] for start in range(0, len(episodes), _CHUNK)]
    parts: dict[int, NDArray[np.float32]] = {}
    with tqdm(total=len(episodes), desc=f"rewards of {name}", unit="episode", disable=not progress) as bar:
        for number, part in run_jobs(_relabel, [(name, number, chunk) for number, chunk in enumerate(chunks)], workers):
            parts[number] = part
            bar.update(len(chunks[number]))
    return np.concatenate([parts[number] for number in range(len(chunks))])


def sizes_of(env: ControlEnvironment) -> Sizes:
    """Row sizes that files of this environment's domain must have."""
    return Sizes(env.observation_size, env.action_size, env.physics_size)


def _read_cache(path: Path, rows: int, seal: str) -> NDArray[np.float32] | None:
    """None where there is none, or one that is damaged or another's; files of earlier versions have no checksum."""
    if not path.exists():
        return None
    column = Column((), STATE_LIMIT)
    try:
        with open_npz(path) as file:
            check_columns(file, {"rewards": column}, rows)
            if "rewards" not in file.arrays:
                return None
            rewards = read_column(file, "rewards", column)
            own = "sha256" not in file.arrays or np.array_equal(file.read("sha256"), _sealed(rewards, seal))
            return rewards if own else None
    except FileError:
        return None


def _relabel(name: str, number: int, episodes: list[EpisodeFile]) -> tuple[int, NDArray[np.float32]]:
    env = _environment(name)
    sizes = sizes_of(env)
    physics = [read_episode(episode, sizes, ["physics"])["physics"][1:] for episode in episodes]
    return number, rewards_of(env.raw, np.concatenate(physics))


@lru_cache(maxsize=1)
def _environment(name: str) -> ControlEnvironment:
    return ControlEnvironment(name)
