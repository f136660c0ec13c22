"""Speed of the state-based simulators: stepping, relabelling ExORL states, making OGBench episodes.

    OMP_NUM_THREADS=1 MUJOCO_GL=disable python benchmarks/state_based_data_speed.py --json speed.json

Rates per CPU second of one process, the best of `--repeats`. Relabelling is measured beside a full reset to each state,
as ExORL's own code does it, and compared with it bit by bit.
"""

from __future__ import annotations

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from dpvla.state_based.data.exorl.rewards import rewards_of
from dpvla.state_based.data.ogbench.episodes import make_episode
from dpvla.state_based.environments.control_suite import ControlEnvironment
from dpvla.state_based.environments.make import make_environment

TASKS = ("walker-stand", "walker-run", "quadruped-run", "cheetah-run", "cheetah-run-backward", "jaco-reach-top-left")
WORLDS = ("cube-single-play", "cube-double-play", "scene-play", "pointmaze-medium-navigate")


def rate(count: int, repeats: int, run: Callable[[], object]) -> float:
    """``count`` per CPU second of the fastest ``run``."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return count / min(seconds)


def walk(env: Any, steps: int) -> list[Any]:
    """Random actions; the physics states after each where the environment has them."""
    rng = np.random.default_rng(0)
    env.reset(0)
    states = []
    for _ in range(steps):
        step = env.step(rng.uniform(-1, 1, env.action_size))
        if isinstance(env, ControlEnvironment):
            states.append(env.physics_state())
        if step.finished:
            env.reset()
    return states


def full_reset(env: Any, states: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rewards by resetting the simulator to each state and computing everything."""
    rewards = []
    for state in states:
        with env.physics.reset_context():
            env.physics.set_state(state)
        rewards.append(env.task.get_reward(env.physics))
    return np.array(rewards, np.float32)


@reporting_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, default=240, help="steps, states or rows of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="", help="where to write the numbers")
    options = parser.parse_args()
    rows, repeats = options.rows, options.repeats
    table: dict[str, dict[str, float]] = {}
    for name in TASKS:
        env = ControlEnvironment(name)
        states = np.array(walk(env, rows))
        if not (rewards_of(env.raw, states) == full_reset(env.raw, states)).all():
            raise ValueError(f"{name}: relabelling differs from full resets")
        table[name] = {
            "relabeled states": rate(rows, repeats, lambda: rewards_of(env.raw, states)),  # noqa: B023
            "by full resets": rate(rows, repeats, lambda: full_reset(env.raw, states)),  # noqa: B023
            "steps": rate(rows, repeats, lambda: walk(env, rows)),  # noqa: B023
        }
        print(name, {key: round(value) for key, value in table[name].items()})
    for name in WORLDS:
        world = make_environment(f"{name}-singletask-v0")
        make_episode(name, 2, 0)  # builds the model
        table[name] = {
            "made rows": rate(rows, repeats, lambda: make_episode(name, rows, 0)),  # noqa: B023
            "steps": rate(rows, repeats, lambda: walk(world, rows)),  # noqa: B023
        }
        print(name, {key: round(value) for key, value in table[name].items()})
    if options.json:
        write_json(options.json, {"per_cpu_second": table, "provenance": made_by()})


if __name__ == "__main__":
    main()
