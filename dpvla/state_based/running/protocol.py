"""What a run of the state-based track is: its options, its hyperparameters, and where it departs from the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from dpvla.config import ConfigError, Count, Whole
from dpvla.parallel import available_cores
from dpvla.state_based.agents.registry import AGENTS, load_recipe
from dpvla.state_based.environments.tasks import Task, canonical_name, find_task, nearest
from dpvla.state_based.networks.critics import AgentConfig
from dpvla.state_based.paper.paper_tables import in_the_paper, read_table
from dpvla.state_based.running.stage import STATE_BASED_LOOP, StateBasedLoop
from dpvla.state_based.running.update import UpdateConfig, refuse_unsupported

OFFLINE_STEPS = ONLINE_STEPS = 1_000_000
"""Updates of the paper's offline runs, and environment steps (one update each) of its online phase."""

SEEDS = 8
"""Seeds behind the paper's means."""


@dataclass(frozen=True)
class StateBasedConfig:
    """One agent on one task, for one or several seeds. Defaults are the paper's protocol.

    --config configs/state_based/protocol_cpu.yaml is a scaled-down one for machines without a GPU.
    """

    env: str  # OGBench single-task name (cube-single-play-singletask-task2-v0) or ExORL task (walker-walk)
    agent: str = "dipole"  # dipole, iql, rebrac, cfgrl, idql, ifql, fql or flow_bc
    seed: Whole = 0  # of everything random
    seeds: tuple[Whole, ...] = ()  # several seeds side by side in this process; overrides --seed
    data: str | None = None  # folder of the recorded data; none: ~/.ogbench/data, or data/exorl
    rows: Whole = 0  # use about as many recorded transitions, the first ones; 0: all
    steps: Count = OFFLINE_STEPS  # offline updates
    online_steps: Whole = 0  # environment steps afterwards, one update each (paper: 1,000,000)
    eval_episodes: Whole = 0  # episodes of an evaluation, per seed; 0: the benchmark's (OGBench 50, ExORL 10)
    environments: Count = 16  # episodes of an evaluation played at once, over all seeds; manipulation takes 160 MB each
    workers: Whole = field(default_factory=available_cores)  # processes that step environments; 0: in this one
    width: Whole = 0  # scaled down: layers as wide as this instead of the recipe's; 0: the recipe's
    options: tuple[str, ...] = ()  # other hyperparameters, e.g. --options omega=2 beta=0.5
    out: str = "runs/state_based"  # run directory; the same command goes on in it
    restart: bool = False  # discard what --out holds
    launch: UpdateConfig = field(default_factory=UpdateConfig)  # how updates are launched
    loop: StateBasedLoop = field(default_factory=lambda: replace(STATE_BASED_LOOP, steps=0))  # logging, checkpoints

    def __post_init__(self) -> None:
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must differ, found {list(self.seeds)}")
        for name in ("steps", "seed"):
            if getattr(self.loop, name):
                raise ConfigError(f"loop.{name} has no effect here; use --{name}")
        refuse_unsupported(self.loop)
        per_step = max(1, self.launch.per_step)
        names = ("log_every", "evaluate_every", "save_every", "stop_after_step")
        counts = {"steps": self.steps} | {f"loop.{name}": getattr(self.loop, name) for name in names}
        for name, count in counts.items():
            if count % per_step:
                raise ConfigError(f"{name} {count} must be a multiple of launch.per_step, {per_step} updates at once")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds that train side by side."""
        return self.seeds or (self.seed,)

    @property
    def all_steps(self) -> int:
        """Updates, offline and online."""
        return self.steps + self.online_steps


def read_task(config: StateBasedConfig) -> tuple[Task, AgentConfig]:
    """The task and the agent's hyperparameters that ``config`` asks for.

    Raises:
        ValueError, ConfigError: unknown environment, agent or hyperparameter (the message has the nearest valid name).
    """
    if config.agent not in AGENTS:
        near = nearest(config.agent, list(AGENTS))
        raise ConfigError(
            f"unknown agent '{config.agent}'; nearest valid name: '{near}' (there are {', '.join(AGENTS)})"
        )
    task = find_task(config.env)
    overrides = _overrides(config, load_recipe(config.agent, task.name))
    return task, load_recipe(config.agent, task.name, overrides, overrides_from="--options")


def _overrides(config: StateBasedConfig, recipe: AgentConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if config.width:
        fields["hidden"] = [config.width] * len(recipe.hidden)
        if hasattr(recipe, "policy_size"):
            fields["policy_size"] = max(1, recipe.policy_size * config.width // max(recipe.hidden))
    return fields | parse_options(config.options)


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``["omega=2", "hidden=[64,64]"]`` as a mapping; values are YAML.

    Raises ConfigError for what is not name=value, values that are no YAML, and a name given twice.
    """
    fields: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if not name or not value or value.startswith("="):
            raise ConfigError(f"--options takes name=value, found '{option}'")
        if name in fields:
            raise ConfigError(f"--options has '{name}' twice; give it once")
        try:
            fields[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--options: the value of '{option}' cannot be read; lists are written [64,64]") from None
    return fields


def evaluation_episodes(config: StateBasedConfig, task: Task) -> int:
    """Episodes per seed of every evaluation."""
    return config.eval_episodes or task.episodes


def deviations(
    config: StateBasedConfig,
    task: Task,
    recipe: AgentConfig,
    data: Mapping[str, Any],
    resumed: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Where a run departs from the paper's protocol and its agent from released code, in words; empty: nowhere known.

    Args:
        data: what ``OfflineData.about`` says.
        resumed: ``run.yaml``'s entries of a run that went on, with the options that changed there.
    """
    found = list(_protocol_deviations(config, task, recipe))
    if data["origin"] != "official":
        found.append(f"data: {data['origin']}")
    if data.get("success_timing") == "post":
        found.append("success timing of ogbench before 1.2.0")
    for entry in resumed:
        changed = {name: values for name, values in entry["changed"].items() if name not in ("steps", "online_steps")}
        found += [f"{name} {old} until update {entry['step']}, then {new}" for name, (old, new) in changed.items()]
    if "packages_at_start" in data:
        found.append("begun with other versions of the simulators")
    return found


def _protocol_deviations(config: StateBasedConfig, task: Task, recipe: AgentConfig) -> Iterator[str]:
    online = read_table("3").options_of(canonical_name(task), config.agent) if config.online_steps else ()
    standard = load_recipe(config.agent, task.name, parse_options(online))
    expected = [
        ("steps", config.steps, OFFLINE_STEPS),
        ("online_steps", config.online_steps, ONLINE_STEPS if config.online_steps else 0),
        ("evaluation episodes", evaluation_episodes(config, task), task.episodes),
        ("lr", config.loop.lr, STATE_BASED_LOOP.lr),
        ("lr_schedule", config.loop.lr_schedule, STATE_BASED_LOOP.lr_schedule),
        ("warmup_steps", config.loop.warmup_steps, STATE_BASED_LOOP.warmup_steps),
        ("weight_decay", config.loop.weight_decay, STATE_BASED_LOOP.weight_decay),
        ("adam_betas", config.loop.adam_betas, STATE_BASED_LOOP.adam_betas),
    ]
    for own in dataclasses.fields(standard):
        expected.append((own.name, getattr(recipe, own.name), getattr(standard, own.name)))
    for name, here, there in expected:
        if here != there:
            yield f"{name} {here} instead of {there}"
    if config.rows:
        yield f"about {config.rows} recorded rows"
    if not in_the_paper(canonical_name(task), config.agent):
        yield f"no table of the paper has {config.agent} on {task.name}"
    yield from (f"{config.agent}: {difference}" for difference in recipe.differences(task.benchmark))
