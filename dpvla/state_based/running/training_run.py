"""A run from its options to ``result.json``: data, agent, the one loop offline and online, evaluations."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.config import ConfigError, to_dict
from dpvla.files import one_writer, write_json
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.agent_files import load_agent, read_hyperparameters
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.registry import make_agent
from dpvla.state_based.data.load import load_data
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.running.config import StateBasedConfig, evaluation_episodes, read_task
from dpvla.state_based.running.environment_workers import EnvironmentPool, WorkerDied
from dpvla.state_based.running.evaluation import AgentEvaluation, environments_at_once, evaluate_agent
from dpvla.state_based.running.online import OnlineCollector, OnlineStage
from dpvla.state_based.running.results import (
    Evaluations,
    acting_file,
    check_data,
    note_data,
    read_acting,
    read_result,
    summarize,
    write_result,
)
from dpvla.state_based.running.stage import AgentStage
from dpvla.state_based.running.tasks import Task
from dpvla.state_based.running.update import check_launch, make_update, refuse_several_processes
from dpvla.training import run_directory
from dpvla.training.checkpoint import checkpoint_step, checkpoints, latest_checkpoint, resolve_checkpoint
from dpvla.training.config import LoopConfig
from dpvla.training.launch import make_accelerator
from dpvla.training.loop import train
from dpvla.training.run_directory import Run, TrainedOn, open_run

FREE = (
    *run_directory.FREE, "data", "environments", "launch.per_step", "launch.cuda_graph", "launch.tf32",
    "launch.threads", "launch.compile",
)  # fmt: skip
"""Options that change what is computed by float rounding at most; recorded data may move, but not change."""

NOTED = (*run_directory.NOTED, "steps", "online_steps")
"""Options of which a run may go on with other values; ``run.yaml`` and ``result.json`` say when they changed."""


def train_state_based(config: StateBasedConfig, until: float = math.inf) -> dict[str, Any]:
    """Train as ``config`` says, going on where an earlier call stopped; returns the content of ``result.json``.

    Nothing of ``out`` is written or discarded before options, data and networks are there and checked.

    Args:
        until: when to save and stop as at a signal, by ``time.monotonic()``; an evaluation that would take longer (as
            long as the longest before) is not begun, and made by the next call.

    Raises:
        ValueError, ConfigError, FileNotFoundError: unknown names, missing data, an ``out`` that holds another run.
        DirectoryInUseError: another process is training there.
        WorkerDied: environments cannot be stepped; what was trained is saved, the same call goes on.
        KeyboardInterrupt: stopped by a signal; saved as well.
    """
    read_task(config)
    seeds = config.all_seeds
    loop = replace(config.loop, steps=config.all_steps, seed=seeds[0])
    accelerator = make_accelerator(loop, config.out)
    refuse_several_processes(accelerator)
    check_launch(config.launch, accelerator.device)
    with open_run(config.out, config, config.restart, accelerator, FREE, NOTED) as run:
        config = run.config
        task, recipe = read_task(config)
        if run.last is not None:
            if (done := _finished(run.path, config, task)) is not None:
                return done
            recipe = _as_begun(run.last, recipe)
        _refuse_moved_phases(run, config)
        data = load_data(task.name, config.data, config.rows or None)
        about = data.about if run.last is None else check_data(run.path, data.about)
        agent = make_agent(config.agent, recipe, data.train.observation_dim, data.train.action_dim, seeds).to(
            accelerator.device
        )
        replay = Replay(data.train, seeds, config.online_steps, accelerator.device)
        trained_on = TrainedOn("offline", about["dataset"], len(data.train), ())
        run.begin(seeds if len(seeds) > 1 else seeds[0], [trained_on], config.all_steps, about)
        note_data(run.path, about, begins=run.last is None)
        return _train(config, task, recipe, loop, agent, replay, about, run, until)


def _as_begun(last: Path, recipe: AgentConfig) -> AgentConfig:
    """The hyperparameters that a run's last checkpoint was trained with; ``recipe`` is what a new run has."""
    begun = read_hyperparameters(CheckpointLayout(last).model)
    now = to_dict(recipe)
    for name, value in to_dict(begun).items():
        if value != now[name]:
            print(f"{name} stays {value!r}, as this run began; a new one has {now[name]!r}", file=sys.stderr)
    return begun


def _finished(out: Path, config: StateBasedConfig, task: Task) -> dict[str, Any] | None:
    """``result.json`` when it is about as many updates as ``config`` asks for."""
    done, asked = read_result(out, task, config.agent), (config.steps, config.online_steps)
    return done if done is not None and (done["offline_steps"], done["online_steps"]) == asked else None


def _refuse_moved_phases(run: Run, config: StateBasedConfig) -> None:
    """The offline phase may become longer or shorter only while the run is in it, or has just ended it."""
    before, _ = run.changed.get("steps", (config.steps, config.steps))
    if before != config.steps and run.step > min(before, config.steps):
        raise ConfigError(
            f"{run.path} has made {run.step} updates, {min(before, run.step)} of them offline: steps cannot become "
            f"{config.steps}; choose another --out, or discard that run with --restart"
        )
    if run.step < config.steps and run.step % config.launch.per_step:
        raise ConfigError(
            f"{run.path} has made {run.step} updates, which launch.per_step {config.launch.per_step} does not divide: "
            "go on with one that does"
        )


def _train(
    config: StateBasedConfig,
    task: Task,
    recipe: AgentConfig,
    loop: LoopConfig,
    agent: Agent,
    replay: Replay,
    about: Mapping[str, Any],
    run: Run,
    until: float,
) -> dict[str, Any]:
    accelerator, out = run.accelerator, run.path

    def describe(directory: Path) -> None:
        collected = [TrainedOn("online", task.name, replay.collected, ())] if replay.collected else []
        run.describe(directory, collected)

    with ExitStack() as stack:
        failures: list[WorkerDied] = []
        evaluator = _Evaluator(config, task, agent, Evaluations(out, task.metric, run.step), stack, failures, until)
        evaluator.catch_up(out)
        collector = None
        if config.online_steps:
            pool = stack.enter_context(EnvironmentPool(task.name, len(config.all_seeds), config.workers))
            collector = OnlineCollector(agent, replay, pool, config.steps, lambda error: _stop(error, failures))
        given: dict[str, Any] = {"agent": agent, "replay": replay, "describe": describe, "evaluate": evaluator}
        try:
            last = latest_checkpoint(out)
            if last is None or checkpoint_step(last) < config.steps or collector is None:
                stage = AgentStage(**given, stride=config.launch.per_step)
                train(
                    stage, replace(loop, steps=config.steps), out, accelerator, make_update(config.launch), until=until
                )
            if collector is not None and not failures:
                launch = replace(config.launch, per_step=1)  # an environment step before every update
                train(OnlineStage(collector, **given), loop, out, accelerator, make_update(launch), until=until)
        except KeyboardInterrupt:
            _raise_first(failures, out)
            raise
        _raise_first(failures, out)
        evaluator.catch_up(out)
        return write_result(out, config, task, recipe, about, evaluator.evaluations, agent.device)


def evaluate_acting(config: StateBasedConfig, acting: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate a finished run's agent with other hyperparameters of acting, e.g. ``{"samples": 1}``, and keep that.

    Returns the last evaluation's summary: mean, std and a row for each seed. The episodes start as the run's own did.
    """
    task, _ = read_task(config)
    out = Path(config.out)
    if (found := read_acting(out, acting, config.all_steps, task.metric)) is not None:
        return found
    agent = load_agent(CheckpointLayout(resolve_checkpoint(out)).model, **acting)
    agent.to(make_accelerator(replace(config.loop, trackers=()), out).device)
    episodes = evaluation_episodes(config, task)
    count = environments_at_once(config.environments, len(config.all_seeds), episodes)
    with one_writer(out), EnvironmentPool(task.name, count, config.workers) as pool:
        summary = summarize(evaluate_agent(agent, pool, episodes, config.all_steps, task.metric))
        summary = {"step": config.all_steps, **summary}
        write_json(acting_file(out, acting), summary)
    return summary


class _Evaluator:
    """Evaluates an agent in the run's environments and keeps the results."""

    def __init__(
        self,
        config: StateBasedConfig,
        task: Task,
        agent: Agent,
        evaluations: Evaluations,
        stack: ExitStack,
        failures: list[WorkerDied],
        until: float,
    ) -> None:
        self.config, self.task, self.agent, self.evaluations = config, task, agent, evaluations
        self._episodes = evaluation_episodes(config, task)
        count = environments_at_once(config.environments, len(config.all_seeds), self._episodes)
        self._pool = stack.enter_context(EnvironmentPool(task.name, count, config.workers))
        self._failures, self._until = failures, until

    def __call__(self, step: int) -> Mapping[str, float]:
        """Evaluate the agent as it is after ``step`` updates. Workers that die are replaced once."""
        if self._is_late() and (step == self.config.all_steps or step % self.config.loop.save_every == 0):
            return {}  # `catch_up` makes it of the checkpoint
        try:
            return self.evaluations.add(self._evaluated(self.agent, step))
        except WorkerDied as error:
            _stop(error, self._failures)
            return {}

    def catch_up(self, out: Path) -> None:
        """Make the evaluations that are due at a checkpoint of ``out`` and were not made because the run was cut."""
        for directory in checkpoints(out):
            step = checkpoint_step(directory)
            if step not in self.evaluations and self._due(step):
                if self._is_late():
                    raise KeyboardInterrupt(f"no time is left to evaluate {directory}; the same command goes on there")
                print(f"evaluating {directory}", file=sys.stderr, flush=True)
                agent = load_agent(CheckpointLayout(directory).model).to(self.agent.device)
                self.evaluations.add(self._evaluated(agent, step))

    def _is_late(self) -> bool:
        """Whether an evaluation as long as the longest so far would end too late."""
        longest = max((float(found["seconds"]) for found in self.evaluations.by_step.values()), default=0.0)
        return time.monotonic() + longest > self._until

    def _due(self, step: int) -> bool:
        every = self.config.loop.evaluate_every
        return step in (self.config.steps, self.config.all_steps) or bool(every and step % every == 0)

    def _evaluated(self, agent: Agent, step: int) -> AgentEvaluation:
        try:
            return evaluate_agent(agent, self._pool, self._episodes, step, self.task.metric)
        except WorkerDied as error:
            print(f"{error}; evaluating again", file=sys.stderr, flush=True)
            return evaluate_agent(agent, self._pool, self._episodes, step, self.task.metric)


def _stop(error: WorkerDied, failures: list[WorkerDied]) -> None:
    """Have the loop save and stop, as a termination signal does; ``error`` is raised afterwards."""
    if threading.current_thread() is not threading.main_thread():
        raise error  # there the loop does not listen to signals
    failures.append(error)
    signal.raise_signal(signal.SIGTERM)


def _raise_first(failures: list[WorkerDied], out: Path) -> None:
    if failures:
        last = latest_checkpoint(out)
        raise WorkerDied(f"{failures[0]}, twice in a row; {last} is saved, the same command goes on from there")
