"""Environments of an evaluation in one worker process: seconds and memory until all are made, milliseconds of a step.

    python benchmarks/environment_speed.py --env cube-single-play-singletask-task2-v0 --environments 12

Seconds are CPU seconds of the worker: other jobs of the machine make wall time useless.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

import numpy as np
import psutil

from dpvla.cli import reporting_errors
from dpvla.state_based.environments.environment import Step
from dpvla.state_based.environments.make import make_environment
from dpvla.state_based.running.environment_workers import EnvironmentPool


@reporting_errors
def main(argv: list[str] | None = None) -> None:
    """Measure and print one line."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="cube-single-play-singletask-task2-v0", help="name of the task")
    parser.add_argument("--environments", type=int, default=12, help="as many at once")
    parser.add_argument("--steps", type=int, default=60, help="of each of them")
    options = parser.parse_args(argv)
    size, draw = make_environment(options.env).action_size, np.random.default_rng(0)
    with EnvironmentPool(options.env, options.environments, workers=1) as pool:
        pool.send({slot: slot for slot in range(options.environments)})
        pool.receive()
        (worker,) = [child for child in psutil.Process().children() if child.memory_info().rss > 2**26]
        made, memory = _cpu_seconds(worker), worker.memory_info().rss
        for _ in range(options.steps):
            pool.send({slot: draw.uniform(-1, 1, size).astype(np.float32) for slot in range(options.environments)})
            assert all(isinstance(answer, Step) for answer in pool.receive().values())
        step = 1e3 * (_cpu_seconds(worker) - made) / options.steps / options.environments
    print(f"{options.env}, {options.environments} at once: made in {made:.1f} CPU s, {memory / 1e6:.0f} MB; a step "
          f"takes {step:.2f} CPU ms")  # fmt: skip


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
