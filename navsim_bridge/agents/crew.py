"""Several workers that share the scenes of a split: each opens the agent for itself, on a GPU of its own if it has one.

What they plan does not depend on who takes which scenes: a policy's noise is that of the scene, and the same scenes are
planned together as by one worker alone. (The last bits of a policy's plans may depend on the kind of GPU, and on a CPU
on the number of threads, of which each of several workers has one.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dpvla.parallel import Executor, Processes, ProcessesConfig, run_jobs
from dpvla.plan import NUM_POSES
from navsim_bridge.agents.agent import Agent, Plans
from navsim_bridge.agents.plans import checked, joined
from navsim_bridge.splits.scenes import SceneRecord

SCENES_AT_ONCE = 256


@dataclass(frozen=True)
class Crew:
    """Workers that share scenes."""

    executor: Executor
    device: str  # of each; cuda: its own GPU

    @classmethod
    def alone(cls, device: str = "cpu") -> Crew:
        """This process."""
        return cls(Processes(ProcessesConfig(), 1), device)

    @property
    def is_alone(self) -> bool:
        """Whether this process does it all, on the device that it is told."""
        return isinstance(self.executor, Processes) and self.executor.workers == 1

    @property
    def gpu_each(self) -> bool:
        """Whether workers need a GPU each."""
        return self.device == "cuda" and not self.is_alone


def plan_together(
    open_agent: Callable[[], Agent],
    records: Sequence[SceneRecord],
    crew: Crew,
    *,
    seeds: Sequence[int] = (0,),
    batch_size: int = 1,
    progress: bool = True,
    reads: Sequence[Path] = (),
) -> list[Plans]:
    """Plans for each seed of a policy, in the order of the records; of another agent once.

    Args:
        open_agent: gives the agent, in each worker.
        records: the scenes.
        crew: who shares them.
        seeds: of a policy's noise.
        batch_size: the scenes that a policy plans together.
        progress: show a progress bar.
        reads: what the workers read, see `run_jobs`.
    """
    size = batch_size * -(-SCENES_AT_ONCE // batch_size)  # whole batches: no scene gets into another one
    jobs = [(records[first : first + size], tuple(seeds)) for first in range(0, len(records), size)]
    parts: list[list[Plans]] = []
    with tqdm(total=len(records), desc="scenes", unit="scene", disable=not progress) as bar:
        for plans in run_jobs(
            _plan, jobs, crew.executor, in_order=True, opener=open_agent, gpu_each=crew.gpu_each, reads=reads
        ):
            parts.append(plans)
            bar.update(len(plans[0]))
    return [joined(of_seed) for of_seed in zip(*parts)] if parts else [np.zeros((0, NUM_POSES, 3))]


def _plan(agent: Agent, records: Sequence[SceneRecord], seeds: Sequence[int]) -> list[Plans]:
    from navsim_bridge.agents.policy_agent import PolicyAgent  # with torch, which options do not need

    agents = [agent.with_seed(seed) for seed in seeds] if isinstance(agent, PolicyAgent) else [agent]
    return [checked(one(records), len(records)) for one in agents]
