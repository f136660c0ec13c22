"""Runs updates of the official FQL code's agents on request; started by state_based_speed.py, in a Python with JAX.

    python fql_jax_worker.py REPO AGENT OBSERVATION ACTION BATCH [--one-core]

Each line of standard input is a number of updates; the answer is the seconds they took (CPU seconds of this process
with --one-core, else wall seconds). 0 ends it. Batches are drawn by the repository's own data set class, as its main
script does. Nothing of that repository is part of this one.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    """Serve until a 0 or the end of the input."""
    repo, name = sys.argv[1:3]
    observation, action, batch_size = map(int, sys.argv[3:6])
    one_core = "--one-core" in sys.argv
    if one_core:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    sys.path.insert(0, repo)
    import jax

    module: Any = importlib.import_module(f"agents.{name}")
    agent_class = next(value for key, value in vars(module).items() if key.endswith("Agent"))
    random, rows = np.random.default_rng(0), 100_000
    data = importlib.import_module("utils.datasets").Dataset.create(
        observations=random.standard_normal((rows, observation)).astype(np.float32),
        actions=random.uniform(-1, 1, (rows, action)).astype(np.float32),
        rewards=-random.uniform(size=rows).astype(np.float32),
        next_observations=random.standard_normal((rows, observation)).astype(np.float32),
        masks=np.ones(rows, np.float32),
        terminals=np.zeros(rows, np.float32),
    )
    first = data.sample(1)
    agent = agent_class.create(0, first["observations"], first["actions"], module.get_config())
    clock = time.process_time if one_core else time.perf_counter
    for line in sys.stdin:
        updates = int(line)
        if updates == 0:
            break
        begin = clock()
        for _ in range(updates):
            agent, info = agent.update(data.sample(batch_size))
        jax.block_until_ready((agent, info))
        print(clock() - begin, flush=True)


if __name__ == "__main__":
    main()
