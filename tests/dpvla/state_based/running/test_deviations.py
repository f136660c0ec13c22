"""What a result says about where its run and its agent are not the paper's."""

from __future__ import annotations

from typing import Any

import pytest

from dpvla.state_based.running.config import StateBasedConfig, read_task
from dpvla.state_based.running.deviations import deviations

CUBE, DOUBLE, WALKER = "cube-single-play-singletask-v0", "cube-double-play-singletask-task2-v0", "walker-walk"


def said(env: str, agent: str, *options: str, **changes: Any) -> str:
    """All deviations of a full-size run on official data, one a line."""
    config = StateBasedConfig(env=env, agent=agent, options=options, **changes)
    task, recipe = read_task(config)
    return "\n".join(deviations(config, task, recipe, {"origin": "official"}))


@pytest.mark.parametrize(
    "env, agent, expected",
    [
        ("scene-play-singletask-v0", "rebrac", ["no critic penalty behind an episode's last row"]),
        (WALKER, "rebrac", ["no critic penalty", "penalties are ours"]),
        (CUBE, "cfgrl", ["w, 1 (", "no table of the paper has cfgrl on cube"]),
        (WALKER, "cfgrl", ["w, 1.5", "batches of 512"]),
        (WALKER, "iql", ["online Q (in CFGRL's code: target)", "batches of 512"]),
        (WALKER, "fql", ["alpha and normalized Q are ours"]),
        (WALKER, "idql", ["no table of the paper has idql on walker-walk"]),
        (CUBE, "flow_bc", ["no table of the paper has flow_bc"]),
        ("pointmaze-medium-navigate-singletask-v0", "iql", ["no table of the paper has iql on pointmaze"]),
        ("jaco-reach-bottom-left", "ifql", ["no table of the paper has ifql on jaco-reach-bottom-left"]),
    ],
)
def test_a_full_size_run_says_where_its_agent_is_not_the_released_one(
    env: str, agent: str, expected: list[str]
) -> None:
    lines = said(env, agent).splitlines()
    assert len(lines) == len(expected)
    for words in expected:
        assert any(words in line for line in lines), (words, lines)


@pytest.mark.parametrize(
    "env, expected",
    [
        (CUBE, ["omega 1 in acting and TD targets", "activation tanh", "advantages and the best of N by the mean"]),
        (DOUBLE, ["omega 1 in acting and TD targets", "activation tanh", "smaller target Q"]),
        (WALKER, ["omega 1 in acting (", "activation tanh"]),
    ],
)
def test_the_papers_reading_says_where_it_is_not_the_released_agent(env: str, expected: list[str]) -> None:
    lines = said(env, "dipole", reading="paper").splitlines()
    assert len(lines) == len(expected)
    for words, line in zip(expected, lines):
        assert line.startswith("dipole: ") and words in line


FORMER = {
    "dipole": ["next_omega None instead of 0.0", "omega 2 in acting and TD targets"],
    "iql": ["target_lag False instead of True", "targets follow the weights after"],
    "ifql": ["target_lag False instead of True", "targets follow the weights after"],
    "fql": ["target_lag False instead of True", "targets follow the weights after"],
    "rebrac": ["actor_coasts False instead of True", "actor rests", "targets follow the weights after"],
    "cfgrl": ["batches of 256", "by the target Q", "targets follow the weights after"],
}


@pytest.mark.parametrize("agent", FORMER)
def test_what_runs_of_earlier_versions_do_otherwise_is_said(agent: str) -> None:
    options = {
        "dipole": ("omega=2", "next_omega=null"),
        "rebrac": ("target_lag=false", "actor_coasts=false"),
        "cfgrl": ("target_lag=false", "batch_size=256", "advantage_from=target"),
    }.get(agent, ("target_lag=false",))
    text = said(CUBE, agent, *options)
    for words in FORMER[agent]:
        assert words in text


@pytest.mark.parametrize(
    "env, agent",
    [(CUBE, "dipole"), (DOUBLE, "dipole"), (WALKER, "dipole"), (CUBE, "iql"), (CUBE, "rebrac"), (DOUBLE, "fql"),
     (CUBE, "ifql"), (WALKER, "ifql")],
)  # fmt: skip
def test_an_agent_without_known_differences_says_nothing(env: str, agent: str) -> None:
    assert said(env, agent) == ""


def test_what_an_option_takes_away_is_not_said_any_more() -> None:
    greedy = said(CUBE, "dipole", "omega=0", "next_omega=0.5", reading="paper").splitlines()
    assert [line for line in greedy if "omega" in line] == [
        "omega 0.0 instead of 1.0",
        "next_omega 0.5 instead of None",
        "dipole: omega 0.5 in TD targets (released agent's default: 0; in no table of the paper)",
    ]
    assert "released code: 1024" not in said(CUBE, "cfgrl", "batch_size=1024")
    assert "actor rests" not in said(CUBE, "rebrac", "actor_coasts=false", "actor_every=1")


def test_the_online_tables_own_options_are_no_departure_of_an_online_run() -> None:
    env = "antsoccer-arena-navigate-singletask-v0"
    assert said(env, "fql", "alpha=30", online_steps=1_000_000) == ""
    assert said(env, "fql", "alpha=30") == "alpha 30.0 instead of 10.0"
