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
        (CUBE, "dipole", ["omega 1 in acting and TD targets", "by the mean of the two Qs"]),
        (DOUBLE, "dipole", ["omega 1 in acting and TD targets", "smaller target Q"]),
        (WALKER, "dipole", ["omega 1 in acting ("]),
        (CUBE, "rebrac", ["between its updates the actor rests"]),
        ("scene-play-singletask-v0", "rebrac", ["actor rests", "no critic penalty behind an episode's last row"]),
        (WALKER, "rebrac", ["actor rests", "no critic penalty", "penalties are ours"]),
        (CUBE, "cfgrl", ["w, 1.5", "batches of 256", "by the target Q", "no table of the paper has cfgrl on cube"]),
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


@pytest.mark.parametrize("env, agent", [(CUBE, "iql"), (DOUBLE, "fql"), (CUBE, "ifql"), (WALKER, "ifql")])
def test_an_agent_without_known_differences_says_nothing(env: str, agent: str) -> None:
    assert said(env, agent) == ""


def test_what_an_option_takes_away_is_not_said_any_more() -> None:
    assert [line for line in said(CUBE, "dipole", "omega=0").splitlines() if "omega" in line] == [
        "omega 0.0 instead of 1.0"
    ]
    assert "released code: 1024" not in said(CUBE, "cfgrl", "batch_size=1024")
    assert "actor rests" not in said(CUBE, "rebrac", "actor_every=1")


def test_the_online_tables_own_options_are_no_departure_of_an_online_run() -> None:
    env = "antsoccer-arena-navigate-singletask-v0"
    assert said(env, "fql", "alpha=30", online_steps=1_000_000) == ""
    assert said(env, "fql", "alpha=30") == "alpha 30.0 instead of 10.0"
