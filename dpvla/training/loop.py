"""The one training loop: sample, update, log, evaluate, save. Every stage and track runs through ``train``.

Each step draws its randomness from (seed, step, process), so a run that was stopped goes on exactly: what is
stored is the weights, the optimizer, the average and the stage's own buffer, and no generator state.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from dpvla.training import checkpoint
from dpvla.training.order import step_seed
from dpvla.training.tracking import Tracker
from dpvla.training.update import GradientUpdate, Update

LOG_FILE_INTERVAL = 10.0
"""Seconds between redraws of the progress bar where it goes to a file: each is a new line there."""


@dataclass(frozen=True)
class LoopConfig:
    """Optimisation and bookkeeping shared by every stage."""

    steps: int = 0  # updates in all; 0: as many as the stage's epochs make
    lr: float = 1e-4  # peak learning rate of AdamW
    warmup_steps: int = 0  # linear warm-up
    lr_schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0
    weight_decay: float = 0.01  # of AdamW
    adam_betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    clip_norm: float = 1.0  # gradient norm is clipped to this; 0: never
    ema_decay: float = 0.0  # weights are averaged with this decay for evaluation and saving; 0 turns it off
    precision: Literal["no", "bf16"] = "no"  # autocast of the model
    seed: int = 0  # of everything random
    log_every: int = 10  # steps between logged rows
    evaluate_every: int = 0  # steps between evaluations; 0: only after the last step
    save_every: int = 500  # steps between checkpoints; the last step is always saved
    keep_checkpoints: int = 2  # newest checkpoints that stay on disk
    trackers: tuple[str, ...] = ("tensorboard",)  # accelerate's trackers, beside metrics.csv
    stop_after_step: int = 0  # save and stop after this step as if interrupted; 0: never


class Stage(Protocol):
    """What one kind of training gives the loop."""

    module: nn.Module  # forward(batch) -> (loss, {name: scalar tensor}); its trainable parameters are optimised

    def batches(self, first_step: int, log: Callable[[int, Mapping[str, float]], None]) -> Iterator[Any]:
        """Batches of steps ``first_step``, ``first_step + 1``, ...; each depends on its step alone."""

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Numbers on held-out scenes."""

    def save(self, directory: Path) -> None:
        """Write what users load (``model/``, ``adapters/``, ``run.yaml``) and what ``restore`` needs."""

    def restore(self, directory: Path) -> None:
        """Read back what ``save`` wrote beside the weights."""


MakeUpdate = Callable[[nn.Module, LoopConfig, Accelerator], Update]


def make_accelerator(config: LoopConfig, out: Path | str) -> Accelerator:
    """An Accelerator on the GPU if there is one, else on the CPU; refuses a launch it would silently run alone."""
    on_cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=str(out),
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise RuntimeError(
            f"launched as {expected} processes but accelerate runs {accelerator.num_processes}; "
            "on CPUs start with torchrun --nproc-per-node N"
        )
    return accelerator


def train(
    stage: Stage, config: LoopConfig, out: Path, accelerator: Accelerator, make_update: MakeUpdate = GradientUpdate
) -> Path:
    """Run ``stage`` to ``config.steps``, going on from the newest checkpoint in ``out``; returns the last one.

    ``make_update`` says how a step changes the weights. SIGINT and SIGTERM save a checkpoint after the current step
    and raise KeyboardInterrupt.
    """
    with Stopper(accelerator, config) as stopper:
        return _train(stage, config, out, accelerator, make_update(stage.module, config, accelerator), stopper)


def _train(
    stage: Stage, config: LoopConfig, out: Path, accelerator: Accelerator, update: Update, stopper: Stopper
) -> Path:
    _check_stride(config, update.stride)

    def save(step: int) -> Path:
        def write(directory: Path) -> None:
            update.save(directory / "trainer_state")
            checkpoint.write_meta(directory / "trainer_state" / "loop.json", {"step": step})
            with update.averaged():
                stage.save(directory)

        return checkpoint.write_checkpoint(out, step, write, config.keep_checkpoints)

    first, last = 0, checkpoint.latest_checkpoint(out)
    if last is not None:
        first = checkpoint.checkpoint_step(last)
        update.load(last / "trainer_state", first)
        stage.restore(last)
        accelerator.print(f"going on from step {first} of {config.steps} in {out}")
    if last is not None and first >= config.steps:
        return last
    if accelerator.is_main_process and config.trackers:
        accelerator.init_trackers("tracking")
    tracker = Tracker(accelerator, out, first)
    bar = tqdm(
        total=config.steps,
        initial=first,
        unit="step",
        disable=not accelerator.is_main_process,
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else LOG_FILE_INTERVAL,
    )
    batches = stage.batches(first, tracker.log)
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    summed, waited, began = 0, 0.0, time.perf_counter()

    for step in range(first + update.stride, config.steps + 1, update.stride):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before

        torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
        for name, value in update.step(batch, step, learning_rate(config, step)).items():
            sums[name] = sums[name] + value.detach().float() if name in sums else value.detach().float()
            counts[name] += 1
        summed += 1

        done, stop = step == config.steps, stopper.asked(step)
        if step % config.log_every == 0 or done or stop:
            means = {name: float(value) / counts[name] for name, value in sums.items()}
            if not all(map(math.isfinite, means.values())):
                raise FloatingPointError(
                    f"loss or gradient is not finite around step {step}: {means}; the last checkpoint is "
                    f"{checkpoint.latest_checkpoint(out)}, go on from it with a smaller loop.lr"
                )
            elapsed = time.perf_counter() - began
            speed = {"speed/steps_per_s": summed * update.stride / elapsed, "speed/data_wait": waited / elapsed}
            tracker.log(step, means | speed | {"train/lr": learning_rate(config, step)})
            bar.set_postfix_str(f"loss {means['train/loss']:.4f}, data wait {waited / elapsed:.0%}", refresh=False)
            sums, counts, summed, waited, began = {}, Counter(), 0, 0.0, time.perf_counter()
        bar.update(update.stride)
        if done or (config.evaluate_every and step % config.evaluate_every == 0):
            stage.module.eval()
            with update.averaged():
                values = dict(stage.evaluate(step))
            if values:
                tracker.log(step, values)
                bar.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
            began = time.perf_counter()
        if (done or stop or step % config.save_every == 0) and accelerator.is_main_process:
            last = save(step)
        if stop and not done:
            bar.close()
            accelerator.end_training()
            raise KeyboardInterrupt(f"stopped after step {step}; the same command goes on from there")
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return checkpoint.resolve_checkpoint(out)


def _check_stride(config: LoopConfig, stride: int) -> None:
    for name in ("steps", "log_every", "evaluate_every", "save_every", "stop_after_step"):
        if getattr(config, name) % stride:
            raise ValueError(
                f"loop.{name} = {getattr(config, name)} must be a multiple of {stride}, the updates per step"
            )


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of update ``step`` (counted from 1)."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Stopper:
    """Turns SIGINT and SIGTERM into 'save after this step, then stop', agreed between processes at logged steps.

    A second signal stops at once; one that follows within a second is taken for the same (`timeout` signals twice).
    """

    def __init__(self, accelerator: Accelerator, config: LoopConfig) -> None:
        self._accelerator, self._config = accelerator, config
        self._signalled, self._first = False, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():  # elsewhere the host program handles signals
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt
        if not self._signalled:
            self._signalled, self._first = True, time.monotonic()

    def asked(self, step: int) -> bool:
        """Whether to stop after ``step``."""
        if step == self._config.stop_after_step:
            return True
        if self._accelerator.num_processes == 1:
            return self._signalled
        if step % self._config.log_every:
            return False
        flag = torch.tensor([float(self._signalled)], device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum").item() > 0)
