"""What a run of the state-based track is: its options, and the hyperparameters they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from dpvla.config import ConfigError, Count, Whole, Workers
from dpvla.files import FileError, parse_yaml, short
from dpvla.parallel import available_cores
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.recipes import Reading, changed, load_recipe
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, StateBasedLoop, UpdateConfig, refuse_unsupported
from dpvla.state_based.running.paper_tables import OFFLINE_STEPS
from dpvla.state_based.running.tasks import Task, find_task


@dataclass(frozen=True)
class StateBasedConfig:
    """One agent on one task, for one or several seeds. Defaults are the paper's protocol.

    --config configs/state_based/protocol_cpu.yaml is a scaled-down one for machines without a GPU.
    """

    FORMERLY: ClassVar[Mapping[str, Any]] = {"reading": "paper"}

    env: str  # OGBench single-task name (cube-single-play-singletask-task2-v0) or ExORL task (walker-walk)
    agent: str = "dipole"  # who learns: dipole, one of its baselines, or one of a plug-in; a wrong name lists them all
    reading: Reading = "release"  # of dipole: release, the authors' agent; paper, its text alone (docs)
    seed: Whole = 0  # of everything random
    seeds: tuple[Whole, ...] = ()  # several seeds side by side in this process; overrides --seed
    data: str | None = None  # folder of the recorded data; none: ~/.ogbench/data, or data/exorl
    rows: Whole = 0  # use about as many recorded transitions, the first ones; 0: all
    steps: Count = OFFLINE_STEPS  # offline updates
    online_steps: Whole = 0  # environment steps afterwards, one update each (paper: 1,000,000)
    eval_episodes: Whole = 0  # episodes of an evaluation, per seed; 0: the benchmark's (OGBench 50, ExORL 10)
    environments: Count = 16  # episodes of an evaluation played at once, over all seeds
    workers: Workers = field(default_factory=available_cores)  # processes that step environments; 0: in this one
    width: Whole = 0  # scaled down: layers as wide as this instead of the recipe's; 0: the recipe's
    options: tuple[str, ...] = ()  # other hyperparameters, e.g. --options omega=2 beta=0.5
    out: str = "runs/state_based"  # run directory; the same command goes on in it
    restart: bool = False  # discard what --out holds
    plugin: tuple[str, ...] = ()  # modules of yours that add agents: their names, or .py files
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
        ValueError: unknown environment, agent or hyperparameter (the message has the nearest valid name).
    """
    task = find_task(config.env)
    recipe = load_recipe(config.agent, task.name, config.reading)
    if config.width:
        recipe = recipe.with_width(config.width)
    return task, changed(recipe, parse_options(config.options), "--options")


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``["omega=2", "hidden=[64,64]"]`` as a mapping; values are YAML.

    Raises ConfigError for what is not name=value, values that are no YAML, and a name given twice.
    """
    fields: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if not name or not value or value.startswith("="):
            raise ConfigError(f"--options takes name=value, found {short(option)}")
        if name in fields:
            raise ConfigError(f"--options has {short(name)} twice; give it once")
        try:
            fields[name] = parse_yaml(value, name)
        except FileError:
            raise ConfigError(
                f"--options: the value of {short(option)} cannot be read; lists are written [64,64]"
            ) from None
    return fields


def evaluation_episodes(config: StateBasedConfig, task: Task) -> int:
    """Episodes per seed of every evaluation."""
    return config.eval_episodes or task.episodes
