"""Settings of the loop, whatever is trained, and of imitation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dpvla.config import BelowOne, Count, Whole, Workers
from dpvla.precision import Precision
from dpvla.training.strategies.config import DDPConfig, OptimizerConfig
from dpvla.training.strategies.registry import AnyStrategy

WhatOfAdapters = Literal["keep", "merge", "discard"]
"""What a new round does with the adapters it finds."""


@dataclass(frozen=True)
class LoopConfig(OptimizerConfig):
    """Optimization and bookkeeping shared by every stage."""

    steps: Whole = 0  # updates in all; 0: as many as the stage's epochs make
    warmup_steps: Whole = 0  # linear warm-up
    lr_schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0
    precision: Precision = "no"  # no: float32; tf32: with a GPU's fast products; bf16: autocast, frozen weights in bf16
    seed: Whole = 0  # of everything random
    log_every: Count = 10  # steps between logged rows
    evaluate_every: Whole = 0  # steps between evaluations; 0: only after the last step
    save_every: Count = 500  # steps between checkpoints; the last step is always saved
    keep_checkpoints: Count = 2  # newest checkpoints that stay on disk
    trackers: tuple[str, ...] = ("tensorboard",)  # accelerate's trackers, beside metrics.csv
    stop_after_step: Whole = 0  # save and stop after this step as if interrupted; 0: never
    recompute: Literal["none", "encoder", "head", "both"] = "none"  # whose activations are made anew for gradients
    compile: bool = False  # the layers of encoder and head by torch.compile
    strategy: AnyStrategy = field(default_factory=DDPConfig)  # how an update is spread over processes


@dataclass(frozen=True)
class ImitationConfig:
    """Learning the recorded plans."""

    RENAMED: ClassVar[Mapping[str, str]] = {"colour_jitter": "color_jitter"}

    epochs: Count = 100  # passes over the training split (paper: 100)
    batch_size: Count = 16  # scenes in an update, over all processes (paper: 16)
    noise_draws: Count = 1  # diffusion: noise levels drawn for each scene of an update; the scene is encoded once
    color_jitter: BelowOne = 0.0  # random contrast, brightness and cast of the images; against learning the weather
    num_workers: Workers = 0  # processes that decode images ahead; 0: a thread of the training process
    validation_scenes: Count = 256  # held-out scenes used for loss and PDMS


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of update ``step`` (counted from 1)."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
