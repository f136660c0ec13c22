"""ExORL's tasks on dm_control: walker, quadruped, cheetah (also backward) and the Jaco arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.state_based.environments.environment import Array, Environment, Step
from dpvla.state_based.environments.headless import load, package_versions
from dpvla.state_based.environments.jaco_reach import TARGETS, make_jaco

TASKS = {
    "walker": ("stand", "walk", "run"),
    "quadruped": ("walk", "run"),
    "cheetah": ("run", "run-backward"),
    "jaco": tuple(TARGETS),
}
"""Tasks of each domain; the first one's reward is what reward-free collection stores."""

CHEETAH_SPEED = 10.0
"""Speed that earns the cheetah the full reward [m/s]."""


@dataclass(frozen=True)
class TaskName:
    """The parts of a name such as ``cheetah-run-backward``."""

    domain: str
    task: str


def parse_task(name: str) -> TaskName:
    """Split an ExORL task name; raises ValueError listing the known ones."""
    domain, _, task = name.partition("-")
    if task not in TASKS.get(domain, ()):
        known = ", ".join(f"{domain}-{task}" for domain, tasks in TASKS.items() for task in tasks)
        raise ValueError(f"'{name}' is no ExORL task; known are: {known}")
    return TaskName(domain, task)


def versions() -> dict[str, str]:
    """Installed versions of what decides dm_control's physics and rewards."""
    return package_versions("dm_control", "mujoco")


class ControlEnvironment(Environment):
    """A dm_control task: flat observations, actions scaled to [-1, 1], no end but the time limit (masks are 1)."""

    metric = "return"

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.raw = make_raw(name, seed)  # dm_control's own
        actions = self.raw.action_spec()
        self._low, self._high = actions.minimum, actions.maximum
        self.action_size = int(actions.shape[0])
        self.observation_size = int(_flat(self.raw.reset().observation).shape[0])
        self.physics_size = int(self.physics_state().shape[0])
        self.max_steps = _max_steps(self.raw)

    def reset(self, seed: int | None = None) -> Array:
        if seed is not None:
            _random_state(self.raw).seed(seed)
        return _flat(self.raw.reset().observation)

    def step(self, action: NDArray[Any]) -> Step:
        scaled = self._low + (self._checked(action) + 1.0) * 0.5 * (self._high - self._low)
        step = self.raw.step(scaled)
        return Step(
            observation=_flat(step.observation),
            reward=float(step.reward),
            mask=float(step.discount),
            finished=bool(step.last()),
            success=None,
        )

    def physics_state(self) -> NDArray[np.float64]:
        """Positions, velocities and actuator states, as stored in ExORL's episode files."""
        return np.array(self.raw.physics.get_state(), dtype=np.float64)


def make_raw(name: str, seed: int = 0) -> Any:
    """dm_control's own environment of an ExORL task name, actions in their physical range."""
    parts = parse_task(name)
    if parts.domain == "jaco":
        return make_jaco(parts.task, seed)
    if name == "cheetah-run-backward":
        return _cheetah_backward(seed)
    return load("dm_control.suite").load(
        parts.domain, parts.task, task_kwargs={"random": seed}, environment_kwargs={"flat_observation": True}
    )


def _cheetah_backward(seed: int) -> Any:
    """The suite's cheetah, rewarded for the opposite direction: clip(-speed / 10 m/s, 0, 1)."""
    cheetah = load("dm_control.suite.cheetah")
    tolerance = load("dm_control.utils.rewards").tolerance

    class BackwardCheetah(cheetah.Cheetah):  # type: ignore[misc, name-defined]
        def get_reward(self, physics: Any) -> float:
            return float(
                tolerance(
                    -physics.speed(),
                    bounds=(CHEETAH_SPEED, float("inf")),
                    margin=CHEETAH_SPEED,
                    value_at_margin=0,
                    sigmoid="linear",
                )
            )

    return load("dm_control.rl.control").Environment(
        cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets()),
        BackwardCheetah(random=seed),
        time_limit=cheetah._DEFAULT_TIME_LIMIT,
        flat_observation=True,
    )


def _flat(observation: Any) -> Array:
    parts = [np.ravel(part) for part in observation.values()]
    return np.concatenate(parts).astype(np.float32)


def _random_state(env: Any) -> np.random.RandomState:
    return env.random_state if hasattr(env, "random_state") else env.task.random


def _max_steps(env: Any) -> int:
    if hasattr(env, "_step_limit"):  # the suite counts control steps, composer simulated time
        return round(env._step_limit)
    return round(env._time_limit / env.control_timestep())
