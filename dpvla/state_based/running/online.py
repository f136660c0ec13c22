"""Offline-to-online: one environment step per update, taken in a worker while the update runs.

Before update t the step that was under way is received and added to the replay, the policy chooses the next action with
the weights of update t - 1, and the worker sets off. So rows reach the replay one update later than they would without
overlap, and the result does not depend on who is faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.environments.environment import Step
from dpvla.state_based.networks.draws import FreshDraws
from dpvla.state_based.running.environment_workers import EnvironmentPool, WorkerDied
from dpvla.state_based.running.evaluation import start_seed
from dpvla.state_based.running.stage import AgentStage
from dpvla.tensors import CheckpointError, load_tensors, require_same, save_tensors
from dpvla.training.checkpoint import checkpoint_step

START, NOISE = 3, 4
"""Branches of a seed's random numbers: how episodes start, and what the policy draws."""


class OnlineCollector:
    """Steps one environment for each seed of an agent and fills the agent's replay.

    A checkpoint holds the actions of the episodes under way. They are simulated again when a run goes on, which brings
    deterministic simulators (all of ours, on one machine) exactly back; it is checked, and where it fails (another
    MuJoCo, another CPU) new episodes begin and a message says so.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        pool: EnvironmentPool,
        offline_steps: int,
        on_failure: Callable[[WorkerDied], None],
    ) -> None:
        """``pool`` has one environment per seed; ``on_failure`` is told of a worker that died twice in a row."""
        self.agent, self.replay, self.pool = agent, replay, pool
        self.offline_steps, self._on_failure = offline_steps, on_failure
        count = len(agent.seeds)
        self._episodes = [0] * count  # number of the episode under way, from 1
        self._totals = np.zeros(count)  # rewards in it so far
        self._actions: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]  # in it, the last one under way
        self._observations = np.zeros((count, agent.observation_dim), np.float32)  # that the last actions answer
        self._sent = False  # the last actions have been sent to the workers

    def collect(self, step: int) -> dict[str, float]:
        """Called before update ``step`` (from 1): receive, store, act, send; returns facts of finished episodes."""
        if step <= self.offline_steps:
            return {}
        try:
            values = self._take_step() if any(self._actions) else self._begin(range(len(self.agent.seeds)))
        except WorkerDied as error:
            self._on_failure(error)
            return {}
        draws = FreshDraws(self.agent.seeds, self.agent.device, NOISE, step)
        seen = torch.from_numpy(self._observations).to(self.agent.device).unsqueeze(1)
        actions = self.agent.act(seen, draws)[:, 0].cpu().numpy()
        for own, action in zip(self._actions, actions):
            own.append(action)
        try:
            self._send()
        except WorkerDied as error:  # the next call starts it again
            print(error, file=sys.stderr, flush=True)
        return values

    def save(self, path: Path) -> None:
        """Write the episodes under way."""
        longest = max(map(len, self._actions))
        actions = np.zeros((len(self._actions), longest, self.agent.action_dim), np.float32)
        for padded, own in zip(actions, self._actions):
            if own:
                padded[: len(own)] = own
        tensors = {
            "episodes": torch.tensor(self._episodes),
            "lengths": torch.tensor([len(own) for own in self._actions]),
            "totals": torch.from_numpy(self._totals),
            "observations": torch.from_numpy(self._observations),
            "actions": torch.from_numpy(actions),
        }
        save_tensors(path, tensors)

    def restore(self, path: Path) -> None:
        """Read back what ``save`` wrote; the environments follow when the next step is asked for."""
        if not path.exists():
            return
        tensors = load_tensors(path)
        count, longest = len(self.agent.seeds), tensors.get("actions", torch.empty(0, 0)).shape[1:2]
        whole, sizes = torch.empty(count, dtype=torch.int64), (count, *longest, self.agent.action_dim)
        expected = {"episodes": whole, "lengths": whole, "actions": torch.empty(sizes)}
        own = {"totals": torch.from_numpy(self._totals), "observations": torch.from_numpy(self._observations)}
        require_same(expected | own, tensors, path)
        if any(not 0 <= length <= longest[0] for length in tensors["lengths"].tolist()):
            raise CheckpointError(
                f"{path}: lengths are {tensors['lengths'].tolist()[:8]}, there are {longest[0]} actions"
            )
        self._episodes = tensors["episodes"].tolist()
        self._totals = tensors["totals"].numpy().copy()
        self._observations = tensors["observations"].numpy().copy()
        lengths = tensors["lengths"].tolist()
        self._actions = [list(own[:length]) for own, length in zip(tensors["actions"].numpy(), lengths)]
        self._sent = False

    def _take_step(self) -> dict[str, float]:
        if not self._sent and not self._come_back():
            return {}
        try:
            answers = self.pool.receive()
        except WorkerDied as error:
            print(f"{error}; starting it again", file=sys.stderr, flush=True)
            self._sent = False
            if not self._come_back():
                return {}
            answers = self.pool.receive()
        steps = [answer for _, answer in sorted(answers.items()) if isinstance(answer, Step)]
        following = np.stack([step.observation for step in steps])
        rewards = np.array([step.reward for step in steps])
        finished = [step.finished for step in steps]
        self.replay.add(
            torch.from_numpy(self._observations),
            torch.from_numpy(np.stack([own[-1] for own in self._actions])),
            torch.from_numpy(rewards),
            torch.from_numpy(following),
            torch.tensor([step.mask for step in steps]),
            torch.tensor(finished, dtype=torch.float32),
        )
        self._observations, self._sent = following, False
        self._totals += rewards
        over = [seed for seed, done in enumerate(finished) if done]
        if not over:
            return {}
        values = {
            "online/return": float(self._totals[over].mean()),
            "online/length": float(np.mean([len(self._actions[seed]) for seed in over])),
        }
        if successes := [success for seed in over if (success := steps[seed].success) is not None]:
            values["online/success"] = float(np.mean(successes))
        self._begin(over)
        return values

    def _begin(self, seeds: Sequence[int]) -> dict[str, float]:
        """Start a new episode for some seeds."""
        for seed in seeds:
            self._episodes[seed] += 1
            self._totals[seed] = 0.0
            self._actions[seed] = []
        for seed, first in self._reset(seeds).items():
            self._observations[seed] = first
        return {}

    def _reset(self, seeds: Sequence[int]) -> Mapping[int, NDArray[np.float32]]:
        names = self.agent.seeds
        self.pool.send({seed: start_seed(names[seed], START, self._episodes[seed]) for seed in seeds})
        return {seed: answer for seed, answer in self.pool.receive().items() if not isinstance(answer, Step)}

    def _send(self) -> None:
        self.pool.send({seed: own[-1] for seed, own in enumerate(self._actions)})
        self._sent = True

    def _come_back(self) -> bool:
        """Bring fresh environments to the episodes under way and send the last actions; False: new episodes began."""
        seeds = range(len(self._actions))
        reached = dict(self._reset(seeds))
        for number in range(max(map(len, self._actions)) - 1):
            orders = {seed: own[number] for seed, own in enumerate(self._actions) if number < len(own) - 1}
            self.pool.send(orders)
            for seed, answer in self.pool.receive().items():
                if isinstance(answer, Step):
                    reached[seed] = answer.observation
        if all((reached[seed] == self._observations[seed]).all() for seed in seeds):
            self._send()
            return True
        print(
            f"{self.pool.name}: the episodes of the checkpoint cannot be simulated again bit for bit (another machine "
            "or simulator version?); new episodes begin, collected rows are kept",
            file=sys.stderr,
            flush=True,
        )
        self.replay.end_episodes()
        self._begin(seeds)
        return False


class OnlineStage(AgentStage):
    """An ``AgentStage`` whose checkpoints also hold the episodes under way."""

    def __init__(self, collector: OnlineCollector, **given: Any) -> None:
        """``given``: what ``AgentStage`` takes."""
        super().__init__(**given, collect=collector.collect)
        self._collector = collector

    def save(self, directory: Path) -> None:
        """The agent, its replay, and the environments."""
        super().save(directory)
        self._collector.save(CheckpointLayout(directory).episodes)

    def restore(self, directory: Path) -> None:
        """The replay, and the environments as far as they can be simulated again."""
        layout = CheckpointLayout(directory)
        if checkpoint_step(directory) > self._collector.offline_steps:
            for needed in (layout.replay, layout.episodes):
                if not needed.exists():
                    raise CheckpointError(f"{needed} is missing: use another copy of {directory}")
        super().restore(directory)
        self._collector.restore(layout.episodes)
