"""Agents of a user's module by the real tools: trained, resumed, evaluated, in tables; nothing else is edited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dpvla.config import ConfigError
from dpvla.registry import RegistryError
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.agent_files import load_agent, save_agent
from dpvla.state_based.agents.flow_bc import FlowBC, FlowBCConfig
from dpvla.state_based.agents.iql import IQLConfig
from dpvla.state_based.agents.registry import AGENTS, agent_class, make_agent
from dpvla.state_based.paper import reproduction
from dpvla.tensors import load_tensors
from tests.paths import ROOT
from tools import reproduce, train_state_based

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
TOY, EXAMPLE = ROOT / "tests/dpvla/state_based/toy_agent.py", ROOT / "examples/state_based_agent.py"


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names and modules that a test adds are gone after it."""
    import sys

    before = dict(AGENTS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("toy_agent", "state_based_agent"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield
    AGENTS.clear()
    AGENTS.update(before)
    for module in ("toy_agent", "state_based_agent"):
        sys.modules.pop(module, None)


def command(plugin: Path, name: str, data: Path, out: Path, *more: str) -> list[str]:
    small = "--steps 6 --online-steps 4 --width 8 --eval-episodes 2 --environments 2 --workers 0"
    often = "--options batch_size=16 --loop.log-every 2 --loop.evaluate-every 3 --loop.save-every 2"
    given = f"--plugin {plugin} --agent {name} --env {MAZE} --seeds 0 1 --data {data} --out {out} {small} {often}"
    return [*given.split(), *more]


@pytest.mark.parametrize("plugin, name", [(TOY, "toy"), (EXAMPLE, "gaussian_bc")])
def test_a_plugged_in_agent_is_trained_stopped_resumed_and_evaluated(
    plugin: Path, name: str, data: Path, tmp_path: Path, short_episodes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train_state_based.main(command(plugin, name, data, straight))
    for stop in ("3", "8"):  # once offline, once online
        with pytest.raises(SystemExit):
            train_state_based.main(command(plugin, name, data, broken, "--loop.stop-after-step", stop))
    train_state_based.main(command(plugin, name, data, broken))
    ends = [out / "checkpoints/step_00000010/trainer_state/weights.safetensors" for out in (straight, broken)]
    assert ends[0].read_bytes() == ends[1].read_bytes()

    result = json.loads((broken / "result.json").read_text())
    assert result["agent"] == name and [*result["evaluations"]] == ["3", "6", "9", "10"]
    assert result["hyperparameters"]["hidden"] == [8, 8, 8, 8] and result["hyperparameters"]["batch_size"] == 16
    assert f"no table of the paper has {name} on {MAZE}" in result["deviations_from_the_paper"]
    stages = yaml.safe_load((broken / "checkpoints/step_00000010/run.yaml").read_text())["trained_on"]
    assert [stage["stage"] for stage in stages] == ["offline", "online"]
    agent = load_agent(broken / "checkpoints/step_00000010/model")
    assert type(agent) is agent_class(name)
    weights = load_tensors(ends[1])
    assert all((value == weights[key]).all() for key, value in agent.state_dict().items())


def test_what_an_agent_has_of_its_own_is_asked_for(data: Path, tmp_path: Path, short_episodes: None) -> None:
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(f"plugin: [{TOY}]\nagent: toy\noptions: [noise=0.3, batch_size=8]\n")
    given = command(TOY, "toy", data, tmp_path / "out")[4:]
    del given[given.index("--options") : given.index("--options") + 2]
    train_state_based.main(["--config", str(recipe), *given])
    result = json.loads((tmp_path / "out/result.json").read_text())
    own = {"extra_size": 4, "noise": 0.3, "batch_size": 8, "every": 2}
    assert own.items() <= result["hyperparameters"].items()
    assert "toy: a toy on OGBench" in result["deviations_from_the_paper"]
    assert "toy/next_q" in (tmp_path / "out/metrics.csv").read_text()


def test_a_plugged_in_agent_stands_in_the_tables(
    data: Path,
    tmp_path: Path,
    short_episodes: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reproduction, "measure_updates_per_second", lambda config, accelerator: 2.0)
    protocol = tmp_path / "tiny.yaml"
    protocol.write_text("steps: 4\nwidth: 8\neval_episodes: 2\nenvironments: 2\nloop: {trackers: []}\n")
    given = f"--plugin {TOY} --protocol {protocol} --ogbench-data {data} --workers 0 --seeds 0 --out {tmp_path}/grid"
    reproduce.main(["--table", "small", "--only", "pointmaze", "toy", *given.split()])
    said = capsys.readouterr().out
    assert "| toy" in said and "(1 seed)\\* / –" in said
    reproduce.main(["--table", "small", "--only", "pointmaze", "--dry-run", *given.split()])
    assert "8 runs missing" in capsys.readouterr().out, "a table of all agents has it as well"
    reproduce.main(["--table", "7", "--only", "cube-single-play-singletask-task1", "toy", "iql", "--dry-run",
                    *given.replace("grid", "other").split()])  # fmt: skip
    header, _, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["task", "IQL", "toy"]
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["– / 88±3", "– / –"]


def test_a_name_that_stands_for_nothing_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"error: unknown agent 'toi'; nearest valid name: 'toy' \(of dipole, iql, "):
        train_state_based.main(command(TOY, "toi", data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        train_state_based.main(command(tmp_path / "none.py", "toy", data, tmp_path / "out"))
    assert "none.py does not exist" in capsys.readouterr().err
    AGENTS["wrong"] = FlowBCConfig
    with pytest.raises(RegistryError, match=r"agent 'wrong' is .*FlowBCConfig.*: no subclass of .*Agent"):
        agent_class("wrong")
    AGENTS["gone"] = "dpvla.state_based.agents.iql:Iql"
    with pytest.raises(RegistryError, match=r"agent 'gone' is said to be .*, but .* has no Iql"):
        agent_class("gone")
    with pytest.raises(ConfigError, match="agent 'flow_bc' takes a FlowBCConfig, found a IQLConfig"):
        make_agent("flow_bc", IQLConfig(), 2, 2, [0])


def test_a_checkpoint_of_a_plug_in_says_what_it_needs(tmp_path: Path) -> None:
    class Mine(FlowBC):
        pass

    config = FlowBCConfig(hidden=(4,))
    agent: Agent = Mine(config, 2, 2, [0])
    with pytest.raises(RegistryError, match="Mine is not registered: it needs a name in AGENTS"):
        save_agent(agent, tmp_path)
    AGENTS["mine"] = Mine
    save_agent(agent, tmp_path)
    assert type(load_agent(tmp_path)) is Mine
    with pytest.raises(ConfigError, match="unknown key 'omega'"):
        load_agent(tmp_path, omega=2.0)
    del AGENTS["mine"]
    with pytest.raises(RegistryError, match=r"config.json: unknown agent 'mine'.*--plugin"):
        load_agent(tmp_path)
