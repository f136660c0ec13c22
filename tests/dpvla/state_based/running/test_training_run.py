"""Whole runs of tools/train_state_based.py on a small maze: results, exact resume, the online phase, failures."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpvla.config import ConfigError
from dpvla.files import DirectoryInUseError
from dpvla.registry import RegistryError
from dpvla.state_based.agents.agent_files import load_agent
from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, generate
from dpvla.state_based.running import training_run
from dpvla.state_based.running.config import StateBasedConfig, read_task
from dpvla.state_based.running.environment_workers import WorkerDied
from dpvla.state_based.running.training_run import train_state_based
from dpvla.tensors import load_tensors
from tests.dpvla.state_based.countdown import Countdown
from tests.other_process import locked_elsewhere
from tools import train_state_based as tool

ENV = "pointmaze-medium-navigate-singletask-v0"


def tiny(data: Path, out: Path, **changes: Any) -> StateBasedConfig:
    """Twelve updates of a small DIPOLE; episodes are of the countdown environment where ``short_episodes`` is used."""
    config = StateBasedConfig(
        env=ENV,
        seeds=(0, 1),
        data=str(data),
        steps=12,
        eval_episodes=4,
        environments=4,
        workers=0,
        width=16,
        options=("flow_steps=2", "batch_size=32"),
        out=str(out),
    )
    loop = replace(config.loop, log_every=4, evaluate_every=4, save_every=4, trackers=())
    return replace(config, loop=replace(loop, **changes.pop("loop", {})), **changes)


def same_weights(a: Path, b: Path) -> None:
    files = sorted(path.relative_to(a) for path in a.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(b) for path in b.rglob("*.safetensors")) and files
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def without_times(evaluations: dict[str, Any]) -> dict[str, Any]:
    return {step: {k: v for k, v in row.items() if k != "seconds"} for step, row in evaluations.items()}


def stopped_at(config: StateBasedConfig, step: int) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
        train_state_based(replace(config, loop=replace(config.loop, stop_after_step=step)))


def test_the_tool_leaves_a_result_with_everything_needed_to_judge_it(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tmp_path / "small.yaml"
    config.write_text("steps: 6\nwidth: 16\nloop: {log_every: 2, evaluate_every: 3, save_every: 6}\n")
    tool.main(
        f"--config {config} --env {ENV} --agent iql --seed 3 --data {data} --eval-episodes 2 --environments 2 "
        f"--workers 1 --options batch_size=32 --out {out}".split()
    )
    result = json.loads((out / "result.json").read_text())
    assert (result["env"], result["agent"], result["seeds"], result["steps"]) == (ENV, "iql", [3], 6)
    assert 0 <= result["success"] <= 1 and result["updates_per_s"] > 0
    assert [*result["evaluations"]] == ["3", "6"]
    assert result["success"] == result["evaluations"]["6"]["success"] == result["per_seed"][0]["success"]
    assert len(result["per_seed"][0]["outcomes"]) == 2
    assert result["locally_generated"] is True
    assert "steps 6 instead of 1000000" in result["deviations_from_the_paper"]
    assert "data: locally generated" in result["deviations_from_the_paper"]
    about = result["provenance"]
    assert about["seed"] == 3 and {"torch", "ogbench", "mujoco"} <= about["packages"].keys() and "git_commit" in about
    assert about["data"]["success_timing"] == "pre" and "observations:" in str(about["data"]["files"])
    with (out / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["evaluation/success"]]
    assert [row["step"] for row in logged] == ["3", "6"]
    assert list((out / "tracking").rglob("events.out.tfevents*")), "tensorboard's file"


def test_a_run_stopped_and_continued_ends_as_in_one_go(data: Path, tmp_path: Path, short_episodes: None) -> None:
    straight = train_state_based(tiny(data, tmp_path / "straight"))
    config = tiny(data, tmp_path / "stopped")
    stopped_at(config, 5)
    stopped_at(config, 8)
    stopped = train_state_based(config)
    same_weights(tmp_path / "straight/checkpoints/step_00000012", tmp_path / "stopped/checkpoints/step_00000012")
    assert without_times(straight["evaluations"]) == without_times(stopped["evaluations"])
    assert [*stopped["evaluations"]] == ["4", "8", "12"]


def test_an_online_run_collects_a_row_per_update_and_resumes_exactly(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    changes = {"online_steps": 24, "loop": {"evaluate_every": 12, "save_every": 12}}
    straight = train_state_based(tiny(data, tmp_path / "straight", **changes))
    config = tiny(data, tmp_path / "stopped", **changes)
    for step in (7, 13, 19, 30):
        stopped_at(config, step)
    stopped = train_state_based(config)
    last = tmp_path / "straight/checkpoints/step_00000036"
    same_weights(last, tmp_path / "stopped/checkpoints/step_00000036")
    assert without_times(straight["evaluations"]) == without_times(stopped["evaluations"])
    assert [*straight["evaluations"]] == ["12", "24", "36"] and straight["steps"] == 36
    collected = load_tensors(last / "trainer_state/replay.safetensors")["collected"]
    assert collected.shape == (2, 23, 2 + 2 + 2 + 3), "the step under way at the end is not in it"
    left = collected[:, :, 0]
    assert ((left[:, 1:] == left[:, :-1] - 1) | (left[:, :-1] == 1)).all(), "a countdown, begun anew after 1"
    assert not torch.equal(collected[0], collected[1]), "each seed has its own environment"
    with (tmp_path / "straight/metrics.csv").open() as file:
        episodes = [row for row in csv.DictReader(file) if row["online/length"]]
    assert episodes and all(int(row["step"]) >= 12 for row in episodes)


def test_worker_processes_collect_the_same_rows(data: Path, tmp_path: Path) -> None:
    changes = {"steps": 2, "online_steps": 6, "seeds": (5,), "eval_episodes": 1, "environments": 1}
    for workers in (0, 1):
        loop = {"evaluate_every": 0, "save_every": 6, "stop_after_step": 7, "log_every": 1}
        with pytest.raises(KeyboardInterrupt):
            train_state_based(tiny(data, tmp_path / str(workers), workers=workers, loop=loop, **changes))
    same_weights(tmp_path / "0/checkpoints/step_00000007", tmp_path / "1/checkpoints/step_00000007")


def test_episodes_that_cannot_be_simulated_again_are_given_up_and_rows_kept(
    data: Path, tmp_path: Path, short_episodes: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny(data, tmp_path / "run", online_steps=24)
    stopped_at(config, 20)
    observe = Countdown._observation
    monkeypatch.setattr(Countdown, "_observation", lambda self: observe(self) + 0.5)
    train_state_based(config)
    assert "cannot be simulated again bit for bit" in capfd.readouterr().err
    rows = load_tensors(tmp_path / "run/checkpoints/step_00000036/trainer_state/replay.safetensors")["collected"]
    assert rows.shape[1] == 22 and (rows[:, :7, 0] % 1 == 0).all() and (rows[:, 7:, 0] % 1 == 0.5).all()
    follows_on = rows[:, 6, -1]
    assert (follows_on == 0).all(), "the row before the new episode must not lead into it"


def test_workers_that_die_once_are_replaced_and_twice_stop_the_run_with_all_updates_saved(
    data: Path, tmp_path: Path, short_episodes: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing: list[int] = []
    evaluate = training_run.evaluate_agent

    def fail(agent: Any, pool: Any, episodes: int, step: int, metric: Any) -> Any:
        if step in failing:
            failing.remove(step)
            raise WorkerDied("environment worker 1 of 2 ended unexpectedly (signal 9)")
        return evaluate(agent, pool, episodes, step, metric)

    monkeypatch.setattr(training_run, "evaluate_agent", fail)
    config = tiny(data, tmp_path / "run")
    failing[:] = [4, 8, 8]
    with pytest.raises(WorkerDied, match=r"\(signal 9\), twice in a row; .*step_00000009 is saved"):
        train_state_based(config)
    assert "evaluating again" in capfd.readouterr().err
    assert [*train_state_based(config)["evaluations"]] == ["4", "8", "12"], "made up for from the kept checkpoint"

    shutil.rmtree(tmp_path / "run")
    failing[:] = [12, 12]
    with pytest.raises(WorkerDied, match="step_00000012 is saved"):
        train_state_based(config)
    assert [*train_state_based(config)["evaluations"]] == ["4", "8", "12"]


def test_a_finished_run_answers_without_training_and_other_data_is_refused(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    config = tiny(data, tmp_path / "run")
    result = train_state_based(config)
    assert train_state_based(replace(config, data=str(data), workers=1)) == json.loads(json.dumps(result))
    with pytest.raises(ConfigError, match=r"holds a run with width = 16, this one has 8, which a run cannot change"):
        train_state_based(replace(config, width=8))
    agent = load_agent(tmp_path / "run/checkpoints/step_00000012/model", omega=3.0)
    assert agent.config.omega == 3.0 and agent.seeds == (0, 1)

    (tmp_path / "run/result.json").unlink()
    other = OGBenchGeneration(
        "pointmaze-medium-navigate", 2, str(tmp_path / "o"), seed=9, steps=60, workers=1, quiet=True
    )
    generate(other)
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    unfinished = tiny(moved, tmp_path / "unfinished")
    stopped_at(unfinished, 5)
    shutil.rmtree(moved)
    shutil.copytree(tmp_path / "o", moved)
    with pytest.raises(ConfigError, match="begun with data whose files was"):
        train_state_based(unfinished)


def test_unknown_names_get_the_nearest_valid_one(tmp_path: Path) -> None:
    config = StateBasedConfig(env="cube-singel-play-singletask-task2-v0")
    with pytest.raises(ValueError, match="nearest valid name: 'cube-single-play-singletask-task2-v0'"):
        read_task(config)
    with pytest.raises(ValueError, match="nearest valid name: 'walker-walk'"):
        read_task(replace(config, env="exorl-walker-wlak"))
    with pytest.raises(RegistryError, match="nearest valid name: 'rebrac'"):
        read_task(replace(config, env="walker-walk", agent="rebrack"))
    with pytest.raises(ConfigError, match="nearest valid name: 'omega'"):
        read_task(replace(config, env="walker-walk", options=("omga=1",)))
    with pytest.raises(ConfigError, match="takes name=value, found 'omega'"):
        read_task(replace(config, env="walker-walk", options=("omega",)))
    with pytest.raises(ValueError, match="use --steps"):
        replace(config, loop=replace(config.loop, steps=5))


def test_width_and_options_scale_a_recipe_down() -> None:
    config = StateBasedConfig(env="exorl-walker-walk", agent="idql", width=32, options=("samples=4",))
    task, recipe = read_task(config)
    assert (task.name, task.metric, task.episodes, task.domain) == ("walker-walk", "return", 10, "walker")
    assert set(recipe.hidden) == {32} and recipe.policy_size == 16 and recipe.samples == 4  # type: ignore[attr-defined]


def test_a_run_goes_on_with_other_bookkeeping_launch_and_place_of_its_data(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    straight = train_state_based(tiny(data, tmp_path / "straight"))
    stopped_at(tiny(data, tmp_path / "stopped"), 6)
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    loop = {"log_every": 2, "evaluate_every": 6, "save_every": 2, "keep_checkpoints": 1}
    other = tiny(moved, tmp_path / "stopped", loop=loop, environments=2, workers=1)
    other = replace(other, launch=replace(other.launch, per_step=2, threads=1))
    result = train_state_based(other)
    same_weights(tmp_path / "straight/checkpoints/step_00000012", tmp_path / "stopped/checkpoints/step_00000012")
    assert [*result["evaluations"]] == ["4", "6", "12"], "each evaluation that was made, at its step"
    assert result["success"] == straight["success"]
    assert [entry["step"] for entry in result["resumed"]] == [6] and result["resumed"][0]["changed"] == {}


def test_a_longer_run_is_as_one_that_was_long_from_the_start_and_the_old_result_is_not_its_answer(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    straight = train_state_based(tiny(data, tmp_path / "straight", steps=20))
    config = tiny(data, tmp_path / "longer")
    assert train_state_based(config)["steps"] == 12
    stopped_at(replace(config, steps=20), 16)
    result = train_state_based(replace(config, steps=20))
    assert result["steps"] == 20 and without_times(result["evaluations"]) == without_times(straight["evaluations"])
    same_weights(tmp_path / "straight/checkpoints/step_00000020", tmp_path / "longer/checkpoints/step_00000020")
    assert result["resumed"][0]["changed"] == {"steps": [12, 20]} and "begun_with" in result
    assert "steps 20 instead of 1000000" in result["deviations_from_the_paper"]
    with pytest.raises(ConfigError, match="has made 20 updates, 20 of them offline: steps cannot become 16"):
        train_state_based(replace(config, steps=16))


def test_online_steps_may_follow_a_finished_offline_run_and_grow_while_its_steps_may_not(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    config = tiny(data, tmp_path / "run")
    train_state_based(config)
    stopped_at(replace(config, online_steps=8), 16)
    collected = tmp_path / "run/checkpoints/step_00000016/run.yaml"
    stages = yaml.safe_load(collected.read_text())["trained_on"]
    assert [(stage["stage"], stage["scenes"]) for stage in stages] == [("offline", 118), ("online", 3)]
    with pytest.raises(ConfigError, match="has made 16 updates, 12 of them offline: steps cannot become 20"):
        train_state_based(replace(config, steps=20, online_steps=8))
    longer = train_state_based(replace(config, online_steps=12))
    straight = train_state_based(tiny(data, tmp_path / "straight", online_steps=12))
    assert without_times(longer["evaluations"]) == without_times(straight["evaluations"])
    same_weights(tmp_path / "straight/checkpoints/step_00000024", tmp_path / "run/checkpoints/step_00000024")


def test_a_launch_that_does_not_meet_the_updates_made_is_refused(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    config = tiny(data, tmp_path / "run")
    stopped_at(config, 6)
    with pytest.raises(ConfigError, match=r"has made 6 updates, which launch\.per_step 4 does not divide"):
        train_state_based(replace(config, launch=replace(config.launch, per_step=4)))
    with pytest.raises(ConfigError, match=r"loop\.log_every 4 must be a multiple of launch\.per_step, 3"):
        replace(config, launch=replace(config.launch, per_step=3))


def test_evaluations_of_updates_that_are_made_again_are_dropped(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    config = tiny(data, tmp_path / "run", loop={"evaluate_every": 2})
    stopped_at(config, 8)
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000008")
    result = train_state_based(replace(config, loop=replace(config.loop, evaluate_every=4)))
    assert [*result["evaluations"]] == ["2", "4", "8", "12"], "not 6, which was of other weights perhaps"


def test_weights_that_are_not_finite_are_never_saved_and_the_advised_command_works(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    config = tiny(data, tmp_path / "run", loop={"log_every": 12, "evaluate_every": 0})
    stopped_at(config, 5)
    broken = replace(config, loop=replace(config.loop, lr=1e38, save_every=2, keep_checkpoints=1))
    with pytest.raises(FloatingPointError, match=r"nothing of it was saved\. The same command .*--loop\.lr .*step_0*5"):
        train_state_based(broken)
    assert max(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == "step_00000005"
    result = train_state_based(replace(config, loop=replace(config.loop, lr=1e-4)))
    assert result["steps"] == 12
    assert "loop.lr 0.0003 until update 5, then 0.0001" in result["deviations_from_the_paper"]


def test_a_failed_start_does_not_block_the_corrected_command(
    data: Path, tmp_path: Path, short_episodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(data, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="is not in"):
        train_state_based(replace(config, data=str(tmp_path / "nowhere")))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        train_state_based(replace(config, width=8, launch=replace(config.launch, compile=True)))
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        train_state_based(replace(config, options=("batch_size=0",)))
    assert train_state_based(config)["steps"] == 12


def test_restart_discards_nothing_before_the_new_run_is_checked(
    data: Path, tmp_path: Path, short_episodes: None
) -> None:
    config = tiny(data, tmp_path / "run")
    train_state_based(config)
    with pytest.raises(FileNotFoundError):
        train_state_based(replace(config, restart=True, data=str(tmp_path / "nowhere")))
    assert (tmp_path / "run/result.json").exists()
    assert train_state_based(replace(config, restart=True, width=8))["hyperparameters"]["hidden"] == [8, 8, 8]


def test_two_runs_in_one_directory_are_one_writer(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with locked_elsewhere(out), pytest.raises(DirectoryInUseError, match=r"run is being written by process \d+"):
        train_state_based(tiny(data, out))


def test_other_simulators_are_said_on_resume_and_in_the_result(
    data: Path, tmp_path: Path, short_episodes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(data, tmp_path / "run")
    stopped_at(config, 6)
    path = tmp_path / "run/data.json"
    about = json.loads(path.read_text())
    about["packages"]["mujoco"] = "3.3.7"
    path.write_text(json.dumps(about))
    result = train_state_based(config)
    assert "was begun with" in (said := capsys.readouterr().err) and "mujoco 3.3.7" in said
    assert result["provenance"]["data"]["packages_at_start"]["mujoco"] == "3.3.7"
    assert "begun with other versions of the simulators" in result["deviations_from_the_paper"]


def test_every_seed_is_named(data: Path, tmp_path: Path, short_episodes: None) -> None:
    result = train_state_based(tiny(data, tmp_path / "run"))
    assert result["provenance"]["seed"] == [0, 1]
    assert yaml.safe_load((tmp_path / "run/run.yaml").read_text())["provenance"]["seed"] == [0, 1]
