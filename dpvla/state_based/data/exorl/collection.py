"""Collect a small ExORL-like data set with RND: same files, own exploration, resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla import provenance
from dpvla.config import check
from dpvla.files import check_folder, one_writer, write_atomically, write_json
from dpvla.parallel import torch_threads
from dpvla.state_based.data.exorl.collection_config import ExORLCollection
from dpvla.state_based.data.exorl.files import EpisodeFile, buffer_folder, list_episodes, read_episode, write_episode
from dpvla.state_based.data.exorl.load import COLLECTION
from dpvla.state_based.data.exorl.rewards import sizes_of
from dpvla.state_based.data.exorl.rnd_explorer import RNDExplorer
from dpvla.state_based.data.local_data import ORIGIN, OtherDataError, refuse_other
from dpvla.state_based.environments.control_suite import TASKS, ControlEnvironment

CHECKPOINT = "collector.pt"


def collect_episodes(config: ExORLCollection) -> Path:
    """Collect, or what is missing of it; returns the buffer's folder.

    Raises:
        OtherDataError: the folder holds other episodes.
        DirectoryInUseError: another process is collecting there.
        OSError: the folder cannot be made or written to.
    """
    check(config)
    check_folder(config.out)
    buffer = buffer_folder(config.out, config.domain, "rnd")
    _refuse_other_episodes(config, buffer)
    env = ControlEnvironment(f"{config.domain}-{TASKS[config.domain][0]}", config.seed)
    with one_writer(buffer.parent):
        _refuse_other_episodes(config, buffer)  # again: now nobody else can add some
        _describe(config, buffer)
        _collect(config, buffer, env)
    return buffer


def _collect(config: ExORLCollection, buffer: Path, env: ControlEnvironment) -> None:
    steps = config.steps or env.max_steps
    explorer = RNDExplorer(env.observation_size, env.action_size, config.hidden, config.seed)
    done = _resume(buffer, explorer)
    replay = _Replay(max(config.episodes, done) * steps, env)
    if done:
        for episode in list_episodes(config.out, config.domain, "rnd"):
            replay.extend(read_episode(episode, sizes_of(env), ["observation", "action"]))
    title = f"{config.domain} rnd"
    with (
        torch_threads(config.threads),
        tqdm(total=config.episodes, initial=done, desc=title, unit="episode", disable=config.quiet) as bar,
    ):
        for index in range(done, config.episodes):
            episode_rows, novelty = _episode(config, env, explorer, replay, index, steps)
            write_episode(buffer, index, episode_rows)
            if (index + 1) % config.checkpoint_every == 0 or index + 1 == config.episodes:
                _save(buffer, explorer, index + 1)
            bar.set_postfix(intrinsic_reward=f"{novelty:.3g}")
            bar.update()


class _Replay:
    """All transitions so far."""

    def __init__(self, rows: int, env: ControlEnvironment) -> None:
        self.size = 0
        self._observations = torch.empty(rows, env.observation_size)
        self._actions = torch.empty(rows, env.action_size)
        self._next_observations = torch.empty(rows, env.observation_size)

    def add(self, observation: NDArray[Any], action: NDArray[Any], next_observation: NDArray[Any]) -> None:
        self._observations[self.size] = torch.from_numpy(observation)
        self._actions[self.size] = torch.from_numpy(action)
        self._next_observations[self.size] = torch.from_numpy(next_observation)
        self.size += 1

    def extend(self, episode: dict[str, NDArray[Any]]) -> None:
        """Append an episode file's rows."""
        observations = episode["observation"]
        for before, action, after in zip(observations[:-1], episode["action"][1:], observations[1:]):
            self.add(before, action, after)

    def sample(self, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen = torch.randint(self.size, (rows,), generator=generator)
        return self._observations[chosen], self._actions[chosen], self._next_observations[chosen]


def _episode(
    config: ExORLCollection, env: ControlEnvironment, explorer: RNDExplorer, replay: _Replay, index: int, steps: int
) -> tuple[dict[str, NDArray[Any]], float]:
    """One episode in the official layout, learning on the way; and the last update's mean intrinsic reward."""
    own_seed = int(np.random.SeedSequence((config.seed, index)).generate_state(1)[0])
    observation, novelty = env.reset(own_seed), 0.0
    rows: dict[str, list[Any]] = {
        "observation": [observation],
        "action": [np.zeros(env.action_size, np.float32)],
        "reward": [[0.0]],
        "discount": [[1.0]],
        "physics": [env.physics_state()],
    }
    for _ in range(steps):
        seen = replay.size
        exploring = seen >= config.random_steps
        action = (explorer.act(torch.from_numpy(observation)) if exploring else explorer.random_action()).numpy()
        if exploring and seen > 0 and seen % config.update_every == 0:
            novelty = explorer.update(*replay.sample(config.batch_size, explorer.generator))
        step = env.step(action)
        replay.add(observation, action, step.observation)
        observation = step.observation
        row = (observation, action, [step.reward], [step.mask], env.physics_state())
        for values, value in zip(rows.values(), row):
            values.append(value)
        if step.finished:
            break
    types = {"physics": np.float64}
    return {key: np.array(values, dtype=types.get(key, np.float32)) for key, values in rows.items()}, novelty


def _refuse_other_episodes(config: ExORLCollection, buffer: Path) -> None:
    about, mine = buffer.parent / COLLECTION, config.identity()
    if about.exists():
        refuse_other(mine, json.loads(about.read_text(encoding="utf-8"))["settings"], about)
    elif buffer.exists() and any(buffer.iterdir()):
        raise OtherDataError(f"{buffer} holds episodes that were not collected by this tool: choose another --out")


def _describe(config: ExORLCollection, buffer: Path) -> None:
    about = buffer.parent / COLLECTION
    if not about.exists():
        note = "collected with this project's own RND agent; not the official ExORL data"
        made_by = provenance.made_by(config.seed)
        write_json(about, {"origin": ORIGIN, "note": note, "settings": config.identity(), "provenance": made_by})


def _resume(buffer: Path, explorer: RNDExplorer) -> int:
    """Number of episodes the last saved state had seen; later ones are removed, as they will be collected again."""
    path = buffer.parent / CHECKPOINT
    done = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        explorer.restore(saved["agent"])
        done = int(saved["episodes"])
    if buffer.exists():
        for leftover in buffer.glob(".*"):
            leftover.unlink()
        for episode in _episodes(buffer):
            if episode.index >= done:
                episode.path.unlink()
    kept = len(list(buffer.glob("*.npz"))) if buffer.exists() else 0
    if kept != done:
        raise OtherDataError(
            f"{path} has learned from {done} episodes but {buffer} holds {kept} of them: put the others back or "
            f"delete {buffer.parent}"
        )
    return done


def _episodes(buffer: Path) -> list[EpisodeFile]:
    out, domain, collector = buffer.parents[2], buffer.parents[1].name, buffer.parent.name
    return list_episodes(out, domain, collector) if any(buffer.glob("*.npz")) else []


def _save(buffer: Path, explorer: RNDExplorer, episodes: int) -> None:
    state = {"episodes": episodes, "agent": explorer.state()}
    write_atomically(buffer.parent / CHECKPOINT, lambda file: torch.save(state, file))
