"""Hyperparameters per task and method: the files say what the paper's tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dpvla.config import ConfigError
from dpvla.registry import RegistryError
from dpvla.state_based.agents.cfgrl import CFGRLConfig
from dpvla.state_based.agents.dipole import DipoleAgentConfig
from dpvla.state_based.agents.fql import FQLConfig
from dpvla.state_based.agents.iql import IQLConfig
from dpvla.state_based.agents.recipes import changed, load_recipe, reading_of
from dpvla.state_based.agents.registry import AGENTS, agent_class

OGBENCH = ("humanoidmaze-medium-navigate", "humanoidmaze-large-navigate", "antsoccer-arena-navigate",
           "cube-single-play", "cube-double-play", "scene-play", "pointmaze-medium-navigate")  # fmt: skip
EXORL = ("walker-walk", "walker-stand", "walker-run", "quadruped-walk", "quadruped-run", "cheetah-run",
         "cheetah-run-backward", "jaco-reach-top-left", "jaco-reach-top-right")  # fmt: skip


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_has_hyperparameters_for_every_task_of_the_tables(agent: str) -> None:
    for domain in OGBENCH:
        recipe = load_recipe(agent, f"{domain}-singletask-task1-v0")
        assert isinstance(recipe, agent_class(agent).Config)
        assert recipe.batch_size == (1024 if agent == "cfgrl" else 256)
    for task in EXORL:
        assert load_recipe(agent, task).batch_size == 512


def test_dipole_has_table_6s_numbers() -> None:
    cube = load_recipe("dipole", "cube-single-play-singletask-task2-v0")
    assert isinstance(cube, DipoleAgentConfig)
    assert (cube.beta, cube.shift, cube.discount, cube.expectile, cube.samples) == (0.5, 1.0, 0.99, 0.9, 2)
    assert (cube.q_target, cube.flow_steps, cube.clip_q, cube.hidden) == ("policy", 10, False, (512, 512, 512))
    walk = load_recipe("dipole", "walker-walk")
    assert isinstance(walk, DipoleAgentConfig)
    assert (walk.beta, walk.shift, walk.expectile, walk.samples) == (3.5, -2.0, 0.95, 32)
    assert (walk.q_target, walk.flow_steps, walk.clip_q) == ("value", 32, True)
    assert load_recipe("dipole", "walker-walk", "paper") != walk
    large = load_recipe("dipole", "humanoidmaze-large-navigate-singletask-v0")
    assert isinstance(large, DipoleAgentConfig) and (large.discount, large.samples) == (0.995, 8)


PAPER = {"activation": "tanh", "omega": 1.0, "next_omega": None, "td_targets": "one", "clip_advantage": False,
         "clip_choice": False, "next_choice": "target"}  # fmt: skip


@pytest.mark.parametrize("task", [*(f"{domain}-singletask-v0" for domain in OGBENCH), *EXORL])
def test_the_readings_of_dipole_differ_where_the_text_is_silent_and_share_table_6(task: str) -> None:
    release, paper = (load_recipe("dipole", task, reading) for reading in ("release", "paper"))
    assert isinstance(release, DipoleAgentConfig) and isinstance(paper, DipoleAgentConfig)
    assert paper == replace(release, **PAPER)  # type: ignore[arg-type]
    assert (release.omega, release.next_omega, release.td_targets, release.activation) == (0.0, 0.0, "both", "gelu")
    assert release.clip_advantage and release.clip_choice and not release.target_lag


def test_only_dipole_is_read_in_two_ways() -> None:
    assert [name for name in AGENTS if reading_of(name, "paper") == "paper"] == ["dipole"]
    assert reading_of("dipole", "release") == "release" == reading_of("somebodys_own", "paper")


def test_cfgrl_follows_the_variant_of_the_released_code_that_each_benchmark_has() -> None:
    maze, walker = load_recipe("cfgrl", "cube-single-play-singletask-v0"), load_recipe("cfgrl", "walker-run")
    assert isinstance(maze, CFGRLConfig) and isinstance(walker, CFGRLConfig) and maze == CFGRLConfig()
    assert (maze.advantage_from, maze.batch_size, maze.omega, maze.discount) == ("online", 1024, 0.0, 0.99)
    assert (walker.scheme, walker.advantage_from, walker.omega, walker.flow_steps) == ("both", "target", 0.5, 32)


def test_baselines_have_the_fql_papers_numbers() -> None:
    fql = load_recipe("fql", "cube-double-play-singletask-v0")
    iql = load_recipe("iql", "cube-double-play-singletask-v0")
    assert isinstance(fql, FQLConfig) and isinstance(iql, IQLConfig)
    assert (fql.alpha, fql.clip_q, iql.alpha) == (300.0, False, 0.3)


def test_a_more_exact_name_and_the_caller_win() -> None:
    assert load_recipe("dipole", "walker-run").batch_size == 512
    other = changed(load_recipe("dipole", "walker-run"), {"beta": 9.0, "hidden": [8, 8]}, "here")
    assert isinstance(other, DipoleAgentConfig) and other.beta == 9.0 and other.hidden == (8, 8)


def test_unknown_agents_tasks_and_fields_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"unknown agent 'ppo'; nearest valid name: .*dipole, iql, .*--plugin"):
        load_recipe("ppo", "walker-run")
    with pytest.raises(ConfigError, match=r"no entry for 'antmaze-giant.*; it has humanoidmaze-medium"):
        load_recipe("dipole", "antmaze-giant-navigate-singletask-v0")
    with pytest.raises(ConfigError, match=r"^here: .*nearest valid name: 'beta'"):
        changed(load_recipe("dipole", "walker-run"), {"bta": 1.0}, "here")
    with pytest.raises(ConfigError, match="nowhere does not exist: the installation is not whole"):
        load_recipe("dipole", "walker-run", folder=tmp_path / "nowhere")


def test_cfgrls_former_guidance_is_one_more_than_omega() -> None:
    recipe = load_recipe("cfgrl", "walker-run")
    assert isinstance(recipe, CFGRLConfig) and recipe.omega == 0.5
    assert changed(recipe, {"guidance": 3}, "here") == replace(recipe, omega=2.0)
    with pytest.raises(ConfigError, match=r"here: omega must be at least -1, found -1\.5"):
        changed(recipe, {"guidance": -0.5}, "here")
