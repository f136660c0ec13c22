"""Episodes as OGBench's data scripts drive them: scripted play with cubes and the scene, noisy walks in point mazes.

The oracles come with the ``ogbench`` package; the driving loop and its settings are those of the scripts that made
the official data (play: plan noise 0.1 smoothed by 0.5, a new target whenever the plan is done; navigate: action
noise 0.5, a new goal whenever one is reached).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.state_based.environments.headless import load, naming_simulator

Rows = dict[str, NDArray[Any]]
DTYPES = {"observations": np.float32, "actions": np.float32, "terminals": np.bool_, "qpos": np.float32,
          "qvel": np.float32, "button_states": np.int64}  # fmt: skip
"""What the official files store, one row per step; qpos, qvel and button_states are those the action was taken in."""

PLAN_NOISE, PLAN_NOISE_SMOOTHING = 0.1, 0.5
NAVIGATE_NOISE = 0.5
VISIBLE_Y = (-0.3, 0.29)
"""A scene episode is redone when the cube leaves this range sideways [m]: goal pictures could not show it ..."""
DRAWER_Z = (0.06, 0.08)
"""... unless it lies in the drawer on the left, which is at this height [m]."""


@dataclass(frozen=True)
class Source:
    """One kind of data that can be made here."""

    world: str  # environment id without -v0
    rows: int  # rows of an episode in the official data
    episodes: int  # training episodes of the official data
    drive: Callable[[Any, int], Rows]  # (environment, rows) -> one episode

    def environment(self) -> Any:
        """The package's environment, one a process; every episode ends after ``rows`` steps."""
        return _environment(self.world, self.drive is play)


def make_episode(name: str, rows: int, seed: int) -> Rows:
    """One episode of ``rows`` steps; equal seeds give equal bytes, whatever was driven before in this process."""
    source = SOURCES[name]
    env = source.environment()
    with _seeded(seed):
        env.reset(seed=seed)
        return source.drive(env, rows)


def play(env: Any, rows: int) -> Rows:
    """Scripted manipulation without a fixed goal."""
    oracles = _oracles(env)
    while True:
        episode = _play_once(env, oracles, rows)
        if "drawer" not in oracles or _cube_stays_visible(episode["qpos"]):
            return episode


def navigate(env: Any, rows: int) -> Rows:
    """Walk a point from goal to goal along the shortest way, with strong noise."""
    maze = env.unwrapped
    free, corners = _cells(maze.maze_map)
    start, goal = (cells[np.random.randint(len(cells))] for cells in (free, corners))
    observation, _ = env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})
    record = _Record()
    for step in range(rows):
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        direction = subgoal - maze.get_xy()
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        action = np.clip(direction + np.random.normal(0, NAVIGATE_NOISE, direction.shape), -1, 1)
        next_observation, _, _, _, info = env.step(action)
        if info["success"]:
            maze.set_goal(corners[np.random.randint(len(corners))])
        record.add(observation, action, step == rows - 1, info)
        observation = next_observation
    return record.rows()


SOURCES = {
    "cube-single-play": Source("cube-single", 1001, 1000, play),
    "cube-double-play": Source("cube-double", 1001, 1000, play),
    "scene-play": Source("scene", 1001, 1000, play),
    "pointmaze-medium-navigate": Source("pointmaze-medium", 1001, 1000, navigate),
    "pointmaze-large-navigate": Source("pointmaze-large", 1001, 1000, navigate),
    "pointmaze-giant-navigate": Source("pointmaze-giant", 2001, 500, navigate),
}
"""By data set name without -v0."""


class _Record:
    def __init__(self) -> None:
        self._rows: dict[str, list[Any]] = {}

    def add(self, observation: Any, action: Any, last: bool, info: dict[str, Any]) -> None:
        row = {"observations": observation, "actions": action, "terminals": last}
        row |= {key: info[f"prev_{key}"] for key in ("qpos", "qvel", "button_states") if f"prev_{key}" in info}
        for key, value in row.items():
            self._rows.setdefault(key, []).append(value)

    def rows(self) -> Rows:
        return {key: np.array(values, dtype=DTYPES[key]) for key, values in self._rows.items()}


def _play_once(env: Any, oracles: dict[str, Any], rows: int) -> Rows:
    observation, info = env.reset()
    stacking = _stacking_probability(env.spec.id)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    record = _Record()
    for step in range(rows):
        action = np.clip(np.asarray(oracle.select_action(observation, info)), -1, 1)
        next_observation, _, _, _, info = env.step(action)
        if oracle.done:
            # The recorded observation stays the one from the step: a new target changes nothing that is observed.
            seen, told = env.unwrapped.set_new_target(p_stack=stacking)
            oracle = oracles[told["privileged/target_task"]]
            oracle.reset(seen, told)
        record.add(observation, action, step == rows - 1, info)
        observation = next_observation
    return record.rows()


def _stacking_probability(world: str) -> float:
    """Chance that a cube's next place is on another cube, drawn once an episode."""
    if world.startswith("cube-single"):
        return 0.0
    return float(np.random.uniform(0.0, 0.25)) if world.startswith("cube-double") else 0.5


def _oracles(env: Any) -> dict[str, Any]:
    kinds = ("cube", "button", "drawer", "window") if env.spec.id.startswith("scene") else ("cube",)
    plans = "ogbench.manipspace.oracles.plan"
    return {
        kind: getattr(load(f"{plans}.{kind}_plan"), f"{kind.capitalize()}PlanOracle")(
            env=env, noise=PLAN_NOISE, noise_smoothing=PLAN_NOISE_SMOOTHING
        )
        for kind in kinds
    }


def _cube_stays_visible(qpos: NDArray[Any]) -> bool:
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= DRAWER_Z[0]) & (z <= DRAWER_Z[1])
    return bool(((y < VISIBLE_Y[1]) & ((y > VISIBLE_Y[0]) | in_drawer)).all())


def _cells(maze_map: NDArray[Any]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Free cells, and those of them that are no straight corridor (corners, crossings, dead ends): the goals."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]

    def corridor(i: int, j: int) -> bool:
        up, down, left, right = maze_map[i - 1, j], maze_map[i + 1, j], maze_map[i, j - 1], maze_map[i, j + 1]
        return (up, down, left, right) in ((0, 0, 1, 1), (1, 1, 0, 0))

    return free, [cell for cell in free if not corridor(*cell)]


@lru_cache(maxsize=1)
def _environment(world: str, manipulation: bool) -> Any:
    load("ogbench")
    options = {"mode": "data_collection"} if manipulation else {}
    # The loop above counts the steps; the limit only has to lie beyond it.
    with naming_simulator(world):
        return load("gymnasium").make(f"{world}-v0", terminate_at_goal=False, max_episode_steps=10**9, **options)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The oracles and mazes draw from numpy's global generator; leave it as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
