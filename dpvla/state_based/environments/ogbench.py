"""OGBench's single-task environments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dpvla.state_based.environments.environment import Array, Environment, Step
from dpvla.state_based.environments.headless import load, naming_simulator, package_versions
from dpvla.state_based.environments.shared_models import ModelPart, another, has_own_model, part_of

_NAME = re.compile(r"(?P<world>[a-z0-9-]+)-(?P<type>[a-z]+)-singletask(?P<task>-task[1-5])?-v0")


@dataclass(frozen=True)
class OGBenchName:
    """The parts of a single-task name such as ``cube-single-play-singletask-task2-v0``."""

    full: str
    world: str  # cube-single
    type: str  # play, navigate, ...
    task: str  # -task2, or nothing for the default task

    @property
    def environment(self) -> str:
        """Id that the package registers."""
        return f"{self.world}-singletask{self.task}-v0"

    @property
    def dataset(self) -> str:
        """Stem of the data files: the tasks of a world share them."""
        return f"{self.world}-{self.type}-v0"


def parse_name(name: str) -> OGBenchName:
    """Split a single-task name; raises ValueError showing the expected form."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"'{name}' is not a single-task OGBench name; expected e.g. cube-single-play-singletask-v0 (default task) "
            "or cube-single-play-singletask-task2-v0"
        )
    return OGBenchName(name, match["world"], match["type"], match["task"] or "")


def versions() -> dict[str, str]:
    """Installed versions of what decides OGBench's physics and rewards."""
    return package_versions("ogbench", "gymnasium", "mujoco", "dm_control")


class OGBenchEnvironment(Environment):
    """A single-task environment of the installed ``ogbench`` package.

    Since ogbench 1.2.0 the reward, the end of the task and the success belong to the state an action was taken in
    ("pre"), as in the relabeled data; before, to the state it led to ("post"). `success_timing` says which.

    Manipulation environments of one task share their compiled models within a process, so one process must not step
    them in several threads.
    """

    metric = "success"

    def __init__(self, name: str, seed: int = 0) -> None:
        parse_name(name)
        self.name = name
        self._global = np.random.RandomState(seed)
        alike = _MANIPULATION.get(name)
        self._part: ModelPart | None = None
        self.raw: Any  # gymnasium's own
        with self._global_randomness():
            if alike is not None and alike._part is not None:
                self.raw, self._part = another(alike.raw), alike._part.beside()
            else:
                self.raw = make_raw(name)
                self._part = part_of(self.raw) if has_own_model(self.raw) else None
            self._enter_model()
            self.raw.reset(seed=seed)
        if self._part is not None:
            _MANIPULATION[name] = self
        self.observation_size = int(self.raw.observation_space.shape[0])
        self.action_size = int(self.raw.action_space.shape[0])
        self.max_steps = int(self.raw.spec.max_episode_steps)
        # Lending the global generator takes longer than a step in a maze; teleports alone ask it in a step.
        self._draws_in_steps = getattr(self.raw.unwrapped, "_teleport_info", None) is not None

    def reset(self, seed: int | None = None) -> Array:
        if seed is not None:
            self._global.seed(seed)
        self._enter_model()
        with self._global_randomness():
            observation, _ = self.raw.reset(seed=seed)
        return observation.astype(np.float32)

    def step(self, action: NDArray[Any]) -> Step:
        action = self._checked(action)
        self._enter_model()
        with self._global_randomness() if self._draws_in_steps else nullcontext():
            observation, reward, terminated, truncated, info = self.raw.step(action)
        return Step(
            observation=observation.astype(np.float32),
            reward=float(reward),
            mask=1.0 - float(terminated),
            finished=bool(terminated or truncated),
            success=float(info["success"]),
        )

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that tell a state beyond what is observed, by the names that recorded data has them under."""
        self._enter_model()
        with self._global_randomness():
            self.raw.reset(seed=0)
            told = self.raw.step(np.zeros(self.action_size, np.float32))[-1]
        names = ("qpos", "qvel", "button_states")
        return {name: np.shape(told[name]) for name in names if name in told}

    def _enter_model(self) -> None:
        if self._part is not None:
            self._part.enter()

    @contextmanager
    def _global_randomness(self) -> Iterator[None]:
        """Mazes draw start and goal noise from numpy's global generator: lend it this environment's own stream."""
        outside = np.random.get_state()
        np.random.set_state(self._global.get_state())
        try:
            yield
        finally:
            self._global.set_state(np.random.get_state())
            np.random.set_state(outside)


_MANIPULATION: WeakValueDictionary[str, OGBenchEnvironment] = WeakValueDictionary()
"""An environment of each task that lives in this process, for others to share its models."""


def make_raw(name: str) -> Any:
    """The package's own gymnasium environment of a single-task name.

    Raises:
        ValueError: the installed package does not know it.
    """
    refuse_unknown(parse_name(name))
    with naming_simulator(name):
        return load("ogbench").make_env_and_datasets(name, env_only=True)


def refuse_unknown(name: OGBenchName) -> None:
    """Raise ValueError when the installed package has no such world or task."""
    load("ogbench")  # registers its environments
    gymnasium = load("gymnasium")
    try:
        gymnasium.spec(name.environment)
    except gymnasium.error.Error as error:
        raise ValueError(f"ogbench {versions()['ogbench']} has no environment for '{name.full}': {error}") from None


def success_timing(env: Any) -> str:
    """'pre' or 'post': which state of (s, a, s') rewards and success belong to (always 'post' before ogbench 1.2)."""
    return str(getattr(env.unwrapped, "_success_timing", "post"))
