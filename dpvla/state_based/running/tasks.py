"""The tasks of the two benchmarks by name, and how each benchmark measures."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from dpvla.state_based.data.ogbench.episodes import SOURCES
from dpvla.state_based.environments.control_suite import TASKS
from dpvla.state_based.environments.environment import TaskMetric
from dpvla.state_based.environments.ogbench import parse_name, refuse_unknown

PREFIX = "exorl-"
"""May stand before an ExORL task's name: exorl-walker-walk is walker-walk."""

DEFAULT_TASKS = {
    "humanoidmaze-medium-navigate": 1,
    "humanoidmaze-large-navigate": 1,
    "antsoccer-arena-navigate": 4,
    "cube-single-play": 2,
    "cube-double-play": 2,
    "scene-play": 2,
}
"""The paper's OGBench domains, and the task that a name without -task<n> stands for."""

DATA_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
"""How OGBench's data was collected, as its names say."""

EXORL = tuple(f"{domain}-{task}" for domain, tasks in TASKS.items() for task in tasks)
OGBENCH = tuple(
    f"{dataset}-singletask{task}-v0"
    for dataset in dict.fromkeys([*DEFAULT_TASKS, *SOURCES])
    for task in ("", "-task1", "-task2", "-task3", "-task4", "-task5")
)


@dataclass(frozen=True)
class Task:
    """A task, and its benchmark's measure."""

    name: str  # as `make_environment` and `load_data` take it
    benchmark: Literal["OGBench", "ExORL"]
    metric: TaskMetric
    episodes: int  # per evaluation: 50 (FQL's protocol), 10 (ExORL's and CFGRL's); the paper does not say

    @property
    def domain(self) -> str:
        """What shares data and mostly hyperparameters: ``cube-single-play``, ``walker``."""
        return parse_name(self.name).dataset[:-3] if self.benchmark == "OGBench" else self.name.partition("-")[0]


def find_task(name: str) -> Task:
    """The task of an OGBench single-task name or an ExORL name (with or without ``exorl-``).

    Raises:
        ValueError: there is none; says the nearest name.
    """
    bare = name.removeprefix(PREFIX)
    if bare in EXORL:
        return Task(bare, "ExORL", "return", 10)
    task = Task(name, "OGBench", "success", 50)
    if name in OGBENCH:
        return task
    near = nearest(bare, [*OGBENCH, *EXORL])
    try:
        parts = parse_name(name)
        refuse_unknown(parts)  # the package has more worlds than the paper uses
    except ValueError:
        parts = None
    if parts is None or parts.type not in DATA_TYPES:
        raise ValueError(f"unknown environment '{name}'; nearest valid name: '{near}'")
    return task


def canonical_name(task: Task) -> str:
    """The name with its task number: ``cube-single-play-singletask-v0`` stands for its domain's default task."""
    number = DEFAULT_TASKS.get(task.domain)
    return task.name.replace("-singletask-v0", f"-singletask-task{number}-v0") if number else task.name


def nearest(name: str, known: list[str]) -> str:
    """The known name that looks most like ``name``."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
