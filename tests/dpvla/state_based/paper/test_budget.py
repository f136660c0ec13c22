"""A reproduction in pieces: it saves and stops in time, and the next call goes on."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpvla.config import ConfigError
from dpvla.state_based.paper import budget
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.running.config import StateBasedConfig
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.training_run import train_state_based
from dpvla.tensors import load_tensors
from tools import reproduce

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


def config_of(data: Path, out: Path) -> StateBasedConfig:
    """Three updates of two seeds, an evaluation after two and at the end."""
    loop = replace(STATE_BASED_LOOP, steps=0, log_every=1, evaluate_every=2, save_every=2, trackers=())
    return StateBasedConfig(MAZE, "flow_bc", seeds=(0, 1), data=str(data), steps=3, width=8, eval_episodes=2,
                            environments=2, workers=0, options=("batch_size=8",), out=str(out), loop=loop,
                            launch=UpdateConfig(threads=1))  # fmt: skip


def test_a_run_without_time_makes_an_update_a_call_and_leaves_evaluations_to_one_that_has_it(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    straight = train_state_based(config_of(data, tmp_path / "straight"))
    pieces = config_of(data, tmp_path / "pieces")
    for said in ("stopped after step 1", "stopped after step 2"):
        with pytest.raises(KeyboardInterrupt, match=said):
            train_state_based(pieces, until=0.0)
    with pytest.raises(KeyboardInterrupt, match=r"no time is left to evaluate .*step_00000002"):
        train_state_based(pieces, until=0.0)
    result = train_state_based(pieces)
    outcomes = [
        {step: [row["outcomes"] for row in found["per_seed"]] for step, found in run["evaluations"].items()}
        for run in (straight, result)
    ]
    assert outcomes[0] == outcomes[1] and [*outcomes[1]] == ["2", "3"]
    weights = [load_tensors(tmp_path / run / "checkpoints/step_00000003/trainer_state/weights.safetensors")
               for run in ("straight", "pieces")]  # fmt: skip
    assert all((value == weights[1][name]).all() for name, value in weights[0].items())


def test_a_budget_runs_from_the_start_of_the_process() -> None:
    assert budget.end_of(0.0) == math.inf
    started = time.monotonic() + 60_000.0 - budget.RESERVE - budget.end_of(1000.0)
    assert started > 0, "this process has lived for a while"
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        budget.require_time(time.monotonic() - 1)
    budget.require_time(time.monotonic() + 1000)


def test_data_that_is_missing_is_made_and_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def slowly(config: Any) -> None:
        asked.append(config)
        time.sleep(60)

    monkeypatch.setattr(budget, "generate", slowly)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="the budget is spent"):
        budget.make_missing_data(["antsoccer-arena-navigate", "cube-single-play"], str(tmp_path), 30, 0, began + 0.05)
    assert [(config.env, config.episodes, config.workers) for config in asked] == [("cube-single-play", 30, 1)]
    (tmp_path / "cube-single-play-v0.npz").touch()
    budget.make_missing_data(["cube-single-play"], str(tmp_path), 30, 0, math.inf)
    assert len(asked) == 1, "what is there is left alone"


def test_the_tool_makes_what_is_missing_only_while_there_is_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "end_of", lambda minutes: 0.0)
    (tmp_path / "tiny.yaml").write_text("steps: 4\nwidth: 8\n")
    given = f"--table small --only pointmaze flow_bc --seeds 0..2 --budget-minutes 15 --workers 0 --out {tmp_path}/grid"
    with pytest.raises(SystemExit) as stopped:
        reproduce.main([*given.split(), "--ogbench-data", str(data), "--protocol", str(tmp_path / "tiny.yaml")])
    said = capsys.readouterr()
    assert stopped.value.code == 130 and "the budget is spent; the same command goes on" in said.err
    assert "flow_bc/seeds_0-1-2" in said.out and "1 calls or more" in said.out
    assert (tmp_path / "grid/table_small.md").exists() and not (tmp_path / "grid" / MAZE).exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"budget_minutes": 0.5}, "budget_minutes must be at least 1, or 0 for no limit"),
        ({"make_data": 3}, "make_data needs --ogbench-data"),
        ({"figure": "beta"}, "give one of --table and --figure"),
        ({"table": None}, "give one of --table and --figure"),
        (
            {"table": None, "figure": "gamma"},
            r"figure must be one of beta, .*driving\), found 'gamma'",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(ReproduceConfig("small"), **changes)
