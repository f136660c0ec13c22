"""AgentEvaluation: many episodes side by side, one policy call per step for all of them.

An episode's start and its policy's noise follow from (seed of the agent, update number, number of the episode) alone,
and the number of episodes at once is part of the protocol, so the number of worker processes changes nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.environments.environment import Step, TaskMetric
from dpvla.state_based.running.environment_workers import EnvironmentPool
from dpvla.training.order import step_seed

START, NOISE = 1, 2
"""Branches of a seed's random numbers: how evaluation episodes start, and what the policy draws in them."""


@dataclass(frozen=True)
class Episode:
    """One finished evaluation episode."""

    success: float | None  # of its last step, 0 or 1; None where the benchmark judges returns
    total: float  # undiscounted sum of rewards
    length: int  # control steps


@dataclass(frozen=True)
class AgentEvaluation:
    """All episodes of an agent after ``step`` updates: one list for each of its seeds, in the episodes' order."""

    step: int
    metric: TaskMetric
    seeds: tuple[int, ...]
    episodes: tuple[tuple[Episode, ...], ...]
    seconds: float  # wall time

    @property
    def scores(self) -> list[float]:
        """The metric's mean over episodes, one for each seed: share of successes, or return."""
        return [statistics.fmean(map(self._score, episodes)) for episodes in self.episodes]

    def _score(self, episode: Episode) -> float:
        if self.metric == "return":
            return episode.total
        assert episode.success is not None
        return episode.success


class EpisodeDraws:
    """An agent's random numbers in evaluation: every episode has a generator of its own, whoever runs beside it.

    They are drawn on the CPU, so that they are the same whatever the agent's device.
    """

    def __init__(self, rows: Sequence[Sequence[torch.Generator | None]], device: torch.device) -> None:
        """``rows``: (seed, row); None where no episode runs, which gets zeros."""
        self._rows, self._device = rows, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (seed, *shape); the first axis of ``shape`` is a multiple of the rows."""
        return self._drawn(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (seed, *shape)."""
        return self._drawn(torch.rand, shape)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        rows = len(self._rows[0])
        if shape[0] % rows:
            raise ValueError(f"an agent asked for {shape[0]} draws for {rows} episodes; expected a multiple")
        own = (shape[0] // rows, *shape[1:])
        parts = [torch.zeros(own) if g is None else draw(own, generator=g) for seed in self._rows for g in seed]
        return torch.stack(parts).reshape(len(self._rows), *shape).to(self._device)


@dataclass
class _Running:
    """An episode under way in a slot."""

    number: int
    generator: torch.Generator
    total: float = 0.0
    length: int = 0
    observed: bool = False  # its first observation has come


@torch.no_grad()
def evaluate_agent(
    agent: Agent, pool: EnvironmentPool, episodes: int, step: int, metric: TaskMetric
) -> AgentEvaluation:
    """Play ``episodes`` episodes with every seed's policy at temperature 0.

    Each seed has an equal share of the pool's environments (at least one; the pool must have as many). A slot whose
    episode is over takes the seed's next one; the policy always sees the same number of rows.

    Args:
        step: updates behind the agent; each evaluation of a run sees other episodes.

    Raises:
        ValueError: fewer environments than seeds, or fewer than 1 episode.
        WorkerDied: see ``EnvironmentPool``; nothing is kept of this evaluation, it can be repeated.
    """
    seeds = agent.seeds
    if episodes < 1 or pool.count < len(seeds):
        raise ValueError(
            f"evaluation needs at least 1 episode and an environment for each of the {len(seeds)} seeds, "
            f"found {episodes} episodes and {pool.count} environments"
        )
    began = time.perf_counter()
    width = min(pool.count // len(seeds), episodes)
    begun = [0] * len(seeds)  # episodes of each seed
    running: list[list[_Running | None]] = [[None] * width for _ in seeds]
    done: list[dict[int, Episode]] = [{} for _ in seeds]
    observations = np.zeros((len(seeds), width, agent.observation_dim), np.float32)
    slots = [(s, j) for s in range(len(seeds)) for j in range(width)]

    while any(len(finished) < episodes for finished in done):
        orders: dict[int, int | np.ndarray] = {}
        acting = [[r.generator if r is not None and r.observed else None for r in row] for row in running]
        if any(generator is not None for row in acting for generator in row):
            seen = torch.from_numpy(observations).to(agent.device)
            actions = agent.act(seen, EpisodeDraws(acting, agent.device), temperature=0.0).cpu().numpy()
        for slot, (s, j) in enumerate(slots):
            if acting[s][j] is not None:
                orders[slot] = actions[s, j]
            elif begun[s] < episodes:
                number, begun[s] = begun[s], begun[s] + 1
                noise = torch.Generator().manual_seed(step_seed(seeds[s], NOISE, step, number))
                running[s][j] = _Running(number, noise)
                orders[slot] = start_seed(seeds[s], START, step, number)
        pool.send(orders)
        for slot, answer in pool.receive().items():
            s, j = slots[slot]
            episode = running[s][j]
            assert episode is not None
            if not isinstance(answer, Step):
                observations[s, j] = answer
                episode.observed = True
                continue
            observations[s, j] = answer.observation
            episode.total += answer.reward
            episode.length += 1
            if answer.finished:
                if not math.isfinite(episode.total):
                    raise ValueError(f"{pool.name}: the rewards of an episode sum to {episode.total}")
                done[s][episode.number] = Episode(answer.success, episode.total, episode.length)
                running[s][j] = None
    return AgentEvaluation(
        step,
        metric,
        seeds,
        tuple(tuple(finished[number] for number in range(episodes)) for finished in done),
        time.perf_counter() - began,
    )


def start_seed(seed: int, *path: int) -> int:
    """A seed that simulators take (32 bits), depending on every number given."""
    return step_seed(seed, *path) & 0xFFFFFFFF


def environments_at_once(asked: int, seeds: int, episodes: int) -> int:
    """Environments that an evaluation uses: as many as asked for, at least one per seed, at most all episodes."""
    return seeds * min(max(1, asked // seeds), episodes)
