"""Collect a small ExORL-like data set with RND: same files, own exploration, resumable."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dpvla import provenance
from dpvla.config import check, one_line
from dpvla.files import check_folder, one_writer, read_bytes, remove_parts, write_json
from dpvla.parallel import torch_threads
from dpvla.state_based.data.exorl.collection_config import ExORLCollection
from dpvla.state_based.data.exorl.files import (
    Checksums,
    EpisodeFile,
    Sizes,
    buffer_folder,
    list_episodes,
    look_at,
    read_episode,
    write_episode,
)
from dpvla.state_based.data.exorl.load import COLLECTION, read_collection
from dpvla.state_based.data.exorl.rewards import sizes_of
from dpvla.state_based.data.exorl.rnd_explorer import RNDExplorer
from dpvla.state_based.data.local_data import ORIGIN, OtherDataError, refuse_other
from dpvla.state_based.environments.control_suite import TASKS, ControlEnvironment
from dpvla.tensors import CheckpointError, load_tensors, save_tensors, shown

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

CHECKPOINT = "collector.safetensors"
"""What the agent has learned, after how many episodes, and checksums of these episodes and of the file itself."""

FORMER_CHECKPOINT = "collector.pt"
"""The same in version 0.1.0: a file of torch's own, without checksums."""

OWN = {"episodes", "learned_from"}
"""What a state holds beside the agent's."""

MOST_BYTES = 2**30
"""Of such a file."""


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
    done, learned_from = _resume(buffer, explorer, sizes_of(env))
    replay = _Replay(max(config.episodes, done) * steps, env)
    for episode in _episodes(buffer):
        replay.extend(read_episode(episode, sizes_of(env), ["observation", "action"]))
    title = f"{config.domain} rnd"
    with (
        torch_threads(config.threads),
        tqdm(total=config.episodes, initial=done, desc=title, unit="episode", disable=config.quiet) as bar,
    ):
        for index in range(done, config.episodes):
            episode_rows, novelty = _episode(config, env, explorer, replay, index, steps)
            written = write_episode(buffer, index, episode_rows)
            learned_from.update(_lines(look_at([written], sizes_of(env)), [written]))
            if (index + 1) % config.checkpoint_every == 0 or index + 1 == config.episodes:
                _save(buffer, explorer, index + 1, learned_from)
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
        refuse_other(mine, read_collection(about)["settings"], about)
    elif buffer.exists() and any(buffer.iterdir()):
        raise OtherDataError(f"{buffer} holds episodes that were not collected by this tool: choose another --out")


def _describe(config: ExORLCollection, buffer: Path) -> None:
    about = buffer.parent / COLLECTION
    if not about.exists():
        note = "collected with this project's own RND agent; not the official ExORL data"
        made_by = provenance.made_by(config.seed)
        write_json(about, {"origin": ORIGIN, "note": note, "settings": config.identity(), "provenance": made_by})


def _resume(buffer: Path, explorer: RNDExplorer, sizes: Sizes) -> tuple[int, Hash]:
    """Number of episodes the last saved state had seen, and a hash of them.

    Later ones are removed, as they will be collected again.
    """
    done, expected = _restore(buffer, explorer)
    remove_parts(buffer)
    kept = []
    for episode in _episodes(buffer):
        if episode.index >= done:
            episode.path.unlink()
        else:
            kept.append(episode)
    found = hashlib.sha256(_lines(look_at(kept, sizes), kept))
    if len(kept) != done:
        raise OtherDataError(
            f"{buffer.parent / CHECKPOINT} has learned from {done} episodes but {buffer} holds {len(kept)} of them: "
            f"put the others back or delete {buffer.parent}"
        )
    if expected is not None and expected != found.digest():
        raise OtherDataError(
            f"{buffer.parent / CHECKPOINT} has learned from other episodes than {buffer} holds: put them back or "
            f"delete {buffer.parent}"
        )
    return done, found


def _episodes(buffer: Path) -> list[EpisodeFile]:
    out, domain, collector = buffer.parents[2], buffer.parents[1].name, buffer.parent.name
    return list_episodes(out, domain, collector) if any(buffer.glob("*.npz")) else []


def _lines(found: Sequence[Checksums], episodes: Sequence[EpisodeFile]) -> bytes:
    """What is hashed of the episodes: names and checksums of what the agent learns from."""
    parts = (f"{e.path.name} {checksums['observation']} {checksums['action']}" for e, checksums in zip(episodes, found))
    return "".join(f"{part}\n" for part in parts).encode()


def _save(buffer: Path, explorer: RNDExplorer, episodes: int, learned_from: Hash) -> None:
    state = explorer.state() | {"episodes": torch.tensor(episodes), "learned_from": _bytes(learned_from)}
    save_tensors(buffer.parent / CHECKPOINT, state | {"sha256": _bytes(_hash_of(state))})
    (buffer.parent / FORMER_CHECKPOINT).unlink(missing_ok=True)


def _restore(buffer: Path, explorer: RNDExplorer) -> tuple[int, bytes | None]:
    """Put the last saved state into ``explorer``; how many episodes it has seen and their hash, where it has one."""
    path, former = buffer.parent / CHECKPOINT, buffer.parent / FORMER_CHECKPOINT
    if path.exists():
        state = load_tensors(path)
        sha256 = state.pop("sha256", torch.zeros(0))
        if sha256.tolist() != [*_hash_of(state).digest()] or not state.keys() >= OWN:
            raise CheckpointError(f"{path} is damaged, or of another tool: its checksum is another; {_remedy(buffer)}")
        count, hashed = state.pop("episodes"), state.pop("learned_from")
        if count.dtype != torch.int64 or count.numel() != 1 or hashed.dtype != torch.uint8 or hashed.dim() != 1:
            raise CheckpointError(
                f"{path}: episodes and learned_from are {shown(count)} and {shown(hashed)}, not a count and a hash; "
                f"{_remedy(buffer)}"
            )
        episodes, learned_from = int(count), bytes(hashed.tolist())
    elif former.exists():
        episodes, state = _former_state(former, explorer, buffer)
        learned_from = None
    else:
        return 0, None
    try:
        explorer.restore(state, path if path.exists() else former)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_remedy(buffer)}") from None
    if path.exists():
        former.unlink(missing_ok=True)  # of a kill between the first of the one and the end of the other
    return episodes, learned_from


def _former_state(path: Path, explorer: RNDExplorer, buffer: Path) -> tuple[int, dict[str, Tensor]]:
    content = read_bytes(path, MOST_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = torch.load(io.BytesIO(content), weights_only=True)
        return int(saved["episodes"]), explorer.former_state(saved["agent"])
    except Exception as error:  # whatever torch raises for what is none of its files, and we for what is in it
        why = one_line(error)[:100]
        raise CheckpointError(f"{path} is no readable state of a collection ({why}); {_remedy(buffer)}") from None


def _remedy(buffer: Path) -> str:
    return f"put a copy of it back, or delete {buffer.parent} to collect anew"


def _hash_of(state: Mapping[str, Tensor]) -> Hash:
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found


def _bytes(found: Hash) -> Tensor:
    return torch.tensor(list(found.digest()), dtype=torch.uint8)
