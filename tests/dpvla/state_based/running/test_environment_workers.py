"""Environments in worker processes, and evaluation in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws
from dpvla.state_based.running.environment_workers import EnvironmentPool, WorkerDied
from dpvla.state_based.running.evaluation import environments_at_once, evaluate_agent
from tests.dpvla.state_based.countdown import Countdown


class Guess(Agent):
    """Acts at random, and remembers how many rows it was asked about."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(AgentConfig(), 2, 2, seeds)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows: list[int] = []

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        raise NotImplementedError

    def update_targets(self, phase: int) -> None:
        raise NotImplementedError

    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        self.rows.append(observations.shape[1])
        samples = draws.normal(3 * observations.shape[1], 2)  # three samples a row, next to each other
        return samples.unflatten(1, (-1, 3)).mean(2).clamp(-1, 1)


def pool(count: int, workers: int = 0) -> EnvironmentPool:
    return EnvironmentPool("countdown", count, workers, make=Countdown)


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    results = []
    for workers in (0, 1, 3):
        with pool(4, workers) as environments:
            results.append(evaluate_agent(Guess((7, 8)), environments, 5, step=100, metric="success"))
    assert results[0].episodes == results[1].episodes == results[2].episodes
    assert [len(episodes) for episodes in results[0].episodes] == [5, 5]


def test_a_seed_plays_the_same_episodes_alone_beside_others_and_in_any_number_at_once() -> None:
    alone = evaluate_agent(Guess((8,)), pool(1), 6, step=3, metric="success")
    beside = evaluate_agent(Guess((7, 8, 9)), pool(9), 6, step=3, metric="success")
    assert alone.episodes[0] == beside.episodes[1]
    assert beside.episodes[0] != beside.episodes[1], "seeds must see different episodes"
    assert alone.episodes != evaluate_agent(Guess((8,)), pool(1), 6, step=4, metric="success").episodes


def test_the_score_is_the_last_steps_success_or_the_undiscounted_return() -> None:
    success = evaluate_agent(Guess((0,)), pool(4), 8, step=1, metric="success")
    total = evaluate_agent(Guess((0,)), pool(4), 8, step=1, metric="return")
    episodes = success.episodes[0]
    assert total.episodes[0] == episodes
    assert success.scores == [np.mean([episode.success for episode in episodes])]
    assert total.scores[0] == pytest.approx(np.mean([episode.total for episode in episodes]))
    assert {episode.success for episode in episodes} == {0.0, 1.0} and {e.length for e in episodes} <= {*range(2, 9)}


def test_one_policy_call_covers_all_episodes_and_always_has_the_same_number_of_rows() -> None:
    agent = Guess((0, 1))
    result = evaluate_agent(agent, pool(6), 10, step=1, metric="success")
    assert {*agent.rows} == {3}
    steps = sum(episode.length for episodes in result.episodes for episode in episodes)
    assert len(agent.rows) < steps / 3


def test_environments_are_shared_by_seeds_and_never_more_than_episodes() -> None:
    assert environments_at_once(16, 3, 50) == 15
    assert environments_at_once(16, 1, 10) == 10
    assert environments_at_once(2, 8, 50) == 8
    with pytest.raises(ValueError, match="environment for each of the 2 seeds"):
        evaluate_agent(Guess((0, 1)), pool(1), 5, step=1, metric="success")


def test_a_dead_worker_is_one_clear_error_and_the_pool_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = tmp_path / "die"
    monkeypatch.setenv("COUNTDOWN_DIES", str(trigger))
    with pool(4, workers=2) as environments:
        before = evaluate_agent(Guess((0,)), environments, 4, step=1, metric="success")
        trigger.touch()
        with pytest.raises(
            WorkerDied, match=r"environment worker \d of 2 \(countdown\) ended unexpectedly \(exit code 3"
        ):
            evaluate_agent(Guess((0,)), environments, 4, step=1, metric="success")
        assert evaluate_agent(Guess((0,)), environments, 4, step=1, metric="success").episodes == before.episodes


@pytest.mark.parametrize(
    "how, said",
    [
        ("memory", r"MemoryError: MemoryError: use fewer --workers or --environments"),
        (
            "the simulator is unstable\nat [1.0 s]" + "." * 10_000,
            r"RuntimeError: the simulator is unstable at \[1\.0 s\]",
        ),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_simulator_that_fails_is_one_line_and_the_pool_starts_afresh(
    workers: int, how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = tmp_path / "fail"
    trigger.write_text(how)
    monkeypatch.setenv("COUNTDOWN_DIES", str(trigger))
    with pool(2, workers) as environments:
        with pytest.raises(
            WorkerDied, match=rf"^(environment worker 1 of 1|the environments of) .*failed \({said}"
        ) as e:
            evaluate_agent(Guess((0,)), environments, 2, step=1, metric="success")
        assert len(str(e.value)) < 700 and "\n" not in str(e.value)
        evaluate_agent(Guess((0,)), environments, 2, step=1, metric="success")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environments_own_error_comes_through(workers: int) -> None:
    with pool(2, workers) as environments:
        environments.send({0: 1, 1: 2})
        environments.receive()
        environments.send({1: np.full(2, np.nan, np.float32)})
        with pytest.raises(ValueError, match="countdown: action is not finite"):
            environments.receive()
        environments.send({0: 1})
        assert environments.receive()[0].shape == (2,)  # type: ignore[union-attr]


def test_orders_wait_for_the_answers_to_the_last_ones() -> None:
    with pool(1) as environments:
        environments.send({0: 1})
        with pytest.raises(RuntimeError, match="have not been received"):
            environments.send({0: 2})
