"""What sampling costs beside the network: the solver's table of steps, and diffusers' scheduler, side by side.

``python benchmarks/solver_speed.py [--json FILE]``: CPU ms a call on one thread, the best of many.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dpvla import files
from dpvla.cli import reporting_errors
from dpvla.diffusion import DPMSolver, VPLinearSchedule
from dpvla.diffusion.samplers.dpm import diffusers_scheduler

SHAPES = ((1, 1, 8, 4), (64, 12, 8, 4))
"""(scene, candidate, pose, channel): one plan, and a call of roll-outs."""


@reporting_errors
def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of the solver (default: 10)")
    parser.add_argument("--json", help="write the table here, too")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps must be at least 2, found {arguments.steps}")
    if arguments.json:
        try:
            files.check_file(arguments.json)
        except OSError as error:
            parser.error(f"--json: {error}")
    torch.set_num_threads(1)
    schedule = VPLinearSchedule()
    solver = DPMSolver(schedule, arguments.steps)
    rows = []
    for shape in SHAPES:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        table = best_ms(partial(solver.sample, _network, noise))
        theirs = best_ms(partial(through_diffusers, solver, noise))
        rows.append({"shape": shape, "diffusers_ms": theirs, "table_ms": table, "ratio": theirs / table})
        print(f"{shape}: {theirs:.2f} ms through diffusers, {table:.2f} ms by the table, ratio {theirs / table:.1f}")
    if arguments.json:
        files.write_json(arguments.json, {"steps": arguments.steps, "rows": rows})


def _network(x: Tensor, t: Tensor) -> Tensor:
    """One that costs nothing."""
    return x


def through_diffusers(solver: DPMSolver, noise: Tensor) -> Tensor:
    """The solver's work done by the scheduler itself, which has to be prepared for every call."""
    scheduler, x = diffusers_scheduler(solver.schedule, solver.num_steps), noise
    for index in scheduler.timesteps:
        x = scheduler.step(_network(x, index), index, x, return_dict=False)[0]
    return x


def best_ms(call: Callable[[], object], times: int = 30) -> float:
    """CPU milliseconds of the fastest of some calls."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return 1e3 * min(found)


if __name__ == "__main__":
    main()
