"""How fast an agent learns on this machine, tried for a moment on random rows: no data and no simulator needed."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from accelerate import Accelerator

from dpvla.state_based.agents.registry import make_agent
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.running.config import StateBasedConfig, read_task
from dpvla.state_based.running.update import make_update

SIZES = {
    "humanoidmaze-medium-navigate": (69, 21),
    "humanoidmaze-large-navigate": (69, 21),
    "antsoccer-arena-navigate": (42, 8),
    "cube-single-play": (28, 5),
    "cube-double-play": (37, 5),
    "scene-play": (40, 5),
    "pointmaze-medium-navigate": (2, 2),
    "walker": (24, 6),
    "quadruped": (78, 12),
    "cheetah": (17, 6),
    "jaco": (42, 9),
}
"""Observation and action sizes by domain."""

ROWS, UNTIMED = 4096, 3


def measure_updates_per_second(config: StateBasedConfig, accelerator: Accelerator, seconds: float = 2.0) -> float:
    """Offline updates per second of ``config``'s agent, all its seeds in one update, over about ``seconds``.

    Without ``launch.compile``, which would take longer than the measurement.
    """
    task, recipe = read_task(config)
    observation, action = SIZES[task.domain]
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> torch.Tensor:
        return torch.rand(ROWS, size, generator=generator) * 2 - 1

    flat = torch.ones(ROWS)
    rows = Transitions(draw(observation), draw(action), -flat, draw(observation), flat, torch.zeros(ROWS))
    agent = make_agent(config.agent, recipe, observation, action, config.all_seeds).to(accelerator.device)
    update = make_update(replace(config.launch, compile=False))(agent, config.loop, accelerator)
    replay = Replay(rows, config.all_seeds, device=accelerator.device)
    done, began = 0, 0.0
    while done <= UNTIMED or time.perf_counter() - began < seconds:
        if done == UNTIMED:
            began = time.perf_counter()
        done += 1
        values = update.step(replay, done * update.stride, config.loop.lr)
        float(values["train/loss"])  # waits for the device
    return (done - UNTIMED) * update.stride / (time.perf_counter() - began)
