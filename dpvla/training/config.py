"""Settings of the loop, whatever is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dpvla.config import Count, Whole
from dpvla.training.strategies.registry import AnyStrategy
from dpvla.training.strategies.strategy import DDPConfig, OptimizerConfig


@dataclass(frozen=True)
class LoopConfig(OptimizerConfig):
    """Optimization and bookkeeping shared by every stage."""

    steps: Whole = 0  # updates in all; 0: as many as the stage's epochs make
    warmup_steps: Whole = 0  # linear warm-up
    lr_schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0
    precision: Literal["no", "bf16"] = "no"  # autocast of the model, in training and in whatever samples from it
    seed: Whole = 0  # of everything random
    log_every: Count = 10  # steps between logged rows
    evaluate_every: Whole = 0  # steps between evaluations; 0: only after the last step
    save_every: Count = 500  # steps between checkpoints; the last step is always saved
    keep_checkpoints: Count = 2  # newest checkpoints that stay on disk
    trackers: tuple[str, ...] = ("tensorboard",)  # accelerate's trackers, beside metrics.csv
    stop_after_step: Whole = 0  # save and stop after this step as if interrupted; 0: never
    strategy: AnyStrategy = field(default_factory=DDPConfig)  # how an update is spread over processes


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of update ``step`` (counted from 1)."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
