"""Hyperparameters are checked, by name and value, before a run does anything."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from dpvla.config import ConfigError, Range, from_dict, to_dict
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.dipole import DipoleAgentConfig
from dpvla.state_based.agents.registry import AGENTS, agent_class
from dpvla.state_based.data.exorl.collection import collect_episodes
from dpvla.state_based.data.exorl.collection_config import ExORLCollection
from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, generate
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.running.config import StateBasedConfig, read_task
from dpvla.state_based.running.loop_config import UpdateConfig
from tests.dpvla.state_based.agent_of import agent_of
from tools import train_state_based as tool

ENV = "cube-single-play-singletask-v0"


@pytest.mark.parametrize(
    "agent, option, message",
    [
        ("dipole", "omega=banana", "omega must be a number, found 'banana'"),
        ("dipole", "batch_size=-4", "batch_size must be at least 1, found -4"),
        ("dipole", "samples=0", "samples must be at least 1"),
        ("dipole", "samples=2.5", "samples must be a whole number"),
        ("dipole", "flow_steps=0", "flow_steps must be at least 1"),
        ("dipole", "beta=-1", "beta must be at least 0"),
        ("dipole", "hidden=[]", "hidden must name the sizes of at least one layer"),
        ("dipole", "hidden=[64,0]", "hidden must be at least 1"),
        ("dipole", "hidden=64", "hidden must be a list"),
        ("dipole", "hidden=[64", r"value of 'hidden=\[64' cannot be read; lists are written"),
        ("dipole", "discount=2", "discount must be at least 0 and at most 1"),
        ("dipole", "target_rate=nan", "target_rate must be a number"),
        ("dipole", "expectile=1", "expectile must be above 0 and below 1"),
        ("dipole", "activation=selu", "activation must be one of tanh, gelu"),
        ("dipole", "clip_q=3", "clip_q must be true or false"),
        ("dipole", "omega=--restart", "omega must be a number, found '--restart'"),
        ("dipole", "omga=1", "unknown key 'omga'; nearest valid name: 'omega'"),
        ("dipole", "omega==2", "takes name=value, found 'omega==2'"),
        ("dipole", "=2", "takes name=value, found '=2'"),
        ("cfgrl", "time_size=3", "time_size must be even"),
        ("cfgrl", "null_share=1.5", "null_share must be at least 0 and at most 1"),
        ("idql", "dropout=1", "dropout must be at least 0 and below 1"),
        ("rebrac", "actor_every=0", "actor_every must be at least 1"),
        ("fql", "alpha=-1", "alpha must be at least 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(agent: str, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^--options.*" + message):
        read_task(StateBasedConfig(env=ENV, agent=agent, options=(option,)))


def test_a_name_given_twice_is_refused_and_numbers_may_be_written_with_exponents() -> None:
    with pytest.raises(ConfigError, match="has 'omega' twice"):
        read_task(StateBasedConfig(env=ENV, options=("omega=1", "beta=2", "omega=3")))
    _, recipe = read_task(StateBasedConfig(env=ENV, options=("target_rate=1e-3", "omega=2")))
    assert (recipe.target_rate, type(recipe.omega)) == (0.001, float)  # type: ignore[attr-defined]


def _numbers(config_class: type) -> list[str]:
    hints = get_type_hints(config_class, include_extras=True)
    hints = {name: get_args(hint)[0] if get_origin(hint) is tuple else hint for name, hint in hints.items()}
    kinds = {name: get_args(hint)[0] if get_origin(hint) is Annotated else hint for name, hint in hints.items()}
    return [field.name for field in fields(config_class) if kinds[field.name] in (int, float)]


@pytest.mark.parametrize(
    "config_class", [*(agent_class(name).Config for name in AGENTS), UpdateConfig, StateBasedConfig, ReproduceConfig,
                     OGBenchGeneration, ExORLCollection]
)  # fmt: skip
def test_every_number_of_every_config_refuses_texts_nan_and_has_bounds(config_class: type[Any]) -> None:
    needed = {"env": ENV} if config_class is StateBasedConfig else {"table": "7"}
    config = config_class(**needed) if config_class in (StateBasedConfig, ReproduceConfig) else config_class()
    hints = get_type_hints(config_class, include_extras=True)
    unbounded = {"shift", "threshold"}
    for name in _numbers(config_class):
        several = get_origin(hints[name]) is tuple
        hint = get_args(hints[name])[0] if several else hints[name]
        assert name in unbounded or any(isinstance(part, Range) for part in get_args(hint)), name
        for value in ("banana", float("nan"), True, *(() if name in unbounded else (-2,))):
            with pytest.raises(ConfigError, match=rf"^here: {name} must be"):
                from_dict(config_class, to_dict(config) | {name: [value] if several else value}, "here")


def test_configs_made_in_python_are_checked_where_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DipoleAgentConfig: batch_size must be at least 1, found -4"):
        agent_of(DipoleAgentConfig(batch_size=-4), 2, 2, [0])
    with pytest.raises(ConfigError, match="episodes must be at least 0"):
        generate(OGBenchGeneration("pointmaze-medium-navigate", episodes=-1, out=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="hidden must be at least 1"):
        collect_episodes(ExORLCollection(hidden=0, out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="hidden must name"):
        AgentConfig(hidden=())
    assert not (tmp_path / "out").exists()


def test_what_the_track_does_not_have_is_refused_when_the_config_is_made() -> None:
    config = StateBasedConfig(env=ENV)
    changes: dict[str, Any] = {"clip_norm": 1.0, "ema_decay": 0.9, "precision": "bf16"}
    for name in changes:
        with pytest.raises(ValueError, match=f"loop.{name} must be"):
            replace(config, loop=replace(config.loop, **{name: changes[name]}))


def test_a_bad_option_leaves_out_as_it_was(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "run"
    maze = "pointmaze-medium-navigate-singletask-v0"
    with pytest.raises(SystemExit, match="error: --options: omega must be a number"):
        tool.main(["--env", maze, "--data", str(data), "--out", str(out), "--options", "omega=banana"])
    assert not out.exists()


def test_the_help_says_which_options_of_the_loop_are_not_this_tools(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("not here: use --steps", "not here: use --seed", "not on this track: stays 0"):
        assert words in said
