"""The one training loop: sample, update, log, evaluate, save. Every stage and track runs through ``train``.

Each step draws its randomness from (seed, step, process), so a run that was stopped goes on exactly: what is
stored is the weights, the optimizer, the average and the stage's own buffer, and no generator state.
"""

from __future__ import annotations

import difflib
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from tqdm import tqdm

from dpvla.config import BelowOne, ConfigError, Count, NotNegative, Whole, to_dict
from dpvla.training import checkpoint
from dpvla.training.order import step_seed
from dpvla.training.strategies.ddp import GradientUpdate, Update
from dpvla.training.tracking import Tracker

LOG_FILE_INTERVAL = 10.0
"""Seconds between redraws of the progress bar where it goes to a file: each is a new line there."""


@dataclass(frozen=True)
class LoopConfig:
    """Optimisation and bookkeeping shared by every stage."""

    steps: Whole = 0  # updates in all; 0: as many as the stage's epochs make
    lr: NotNegative = 1e-4  # peak learning rate of AdamW
    warmup_steps: Whole = 0  # linear warm-up
    lr_schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0
    weight_decay: NotNegative = 0.01  # of AdamW
    adam_betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # of AdamW
    clip_norm: NotNegative = 1.0  # gradient norm is clipped to this; 0: never
    ema_decay: BelowOne = 0.0  # weights are averaged with this decay for evaluation and saving; 0 turns it off
    precision: Literal["no", "bf16"] = "no"  # autocast of the model, in training and in whatever samples from it
    seed: Whole = 0  # of everything random
    log_every: Count = 10  # steps between logged rows
    evaluate_every: Whole = 0  # steps between evaluations; 0: only after the last step
    save_every: Count = 500  # steps between checkpoints; the last step is always saved
    keep_checkpoints: Count = 2  # newest checkpoints that stay on disk
    trackers: tuple[str, ...] = ("tensorboard",)  # accelerate's trackers, beside metrics.csv
    stop_after_step: Whole = 0  # save and stop after this step as if interrupted; 0: never


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
    """An Accelerator on the GPU if there is one, else on the CPU.

    Raises:
        ConfigError: the launcher asked for something that would silently not happen (other precision, accumulation,
            several processes that it does not start, engines that are not supported), or a tracker is not there.
    """
    _refuse_what_the_launcher_asked_in_vain(config)
    _refuse_missing_trackers(config.trackers)
    project = ProjectConfiguration(project_dir=str(out), logging_dir=str(Path(out) / "tracking"))
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_config=project,
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"launched as {expected} processes but accelerate runs {accelerator.num_processes}; "
            "on CPUs start with torchrun --nproc-per-node N"
        )
    return accelerator


def _refuse_what_the_launcher_asked_in_vain(config: LoopConfig) -> None:
    environment = os.environ
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision == "no":  # is what the launcher says, too, when nobody asked
        precision = _told_to_the_launcher("mixed_precision") or config.precision
    if precision != config.precision:
        raise ConfigError(
            f"the launcher asks for mixed precision {precision}, loop.precision is {config.precision}, which decides: "
            "give --loop.precision bf16 for bf16 (nothing else is supported), and the launcher the same or nothing"
        )
    for variable, name in (("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM"),
                           ("PARALLELISM_CONFIG", "a parallelism config")):  # fmt: skip
        if environment.get(f"ACCELERATE_USE_{variable}", "false").lower() in ("true", "1", "yes"):
            raise ConfigError(f"the launcher asks for {name}, which is not supported yet; launch without it (DDP)")
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or _told_to_the_launcher(
        "gradient_accumulation_steps"
    )
    if accumulation not in (None, "", "1"):
        raise ConfigError(
            f"the launcher asks for gradient_accumulation_steps {accumulation}, but gradients are not accumulated here "
            "yet: leave it out, and give the scenes of an update as batch_size"
        )
    # With --cpu and several processes `accelerate launch` starts one, after setting an address for them to meet at.
    meeting = [environment.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    if "WORLD_SIZE" not in environment and "ACCELERATE_MIXED_PRECISION" in environment and None not in meeting:
        asked = _told_to_the_launcher("num_processes")
        if asked != "1" and (asked or meeting == ["127.0.0.1", "29500"]):  # its own address, not a cluster's
            raise ConfigError(
                f"the launcher was asked for {asked or 'several'} processes but starts one: on CPUs start with "
                "torchrun --nproc-per-node N"
            )


def _told_to_the_launcher(option: str) -> str | None:
    """What the command line of `accelerate launch`, the parent process, says: it does not hand every option on."""
    try:
        words = psutil.Process().parent().cmdline()  # type: ignore[union-attr]
    except (psutil.Error, AttributeError):
        return None
    if not any("accelerate" in word for word in words):
        return None
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.lstrip("-").replace("-", "_") == option and name.startswith("--"):
            return value or (words[place + 1] if place + 1 < len(words) else None)
    return None


def _refuse_missing_trackers(trackers: Sequence[str]) -> None:
    known = [str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS]
    there = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in trackers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"loop.trackers: unknown tracker '{name}'; nearest valid name: '{near}'")
        if name not in there:
            raise ConfigError(f"loop.trackers: {name} is not installed here: pip install {name}, or leave it out")


def train(
    stage: Stage, config: LoopConfig, out: Path, accelerator: Accelerator, make_update: MakeUpdate = GradientUpdate
) -> Path:
    """Run ``stage`` to ``config.steps``, going on from the newest checkpoint in ``out``; returns the last one.

    ``make_update`` says how a step changes the weights. SIGINT and SIGTERM save a checkpoint after the current step
    and raise KeyboardInterrupt. What is not finite is never saved: FloatingPointError names it and the last checkpoint.
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
        init = {"wandb": {"name": out.name}} if "wandb" in config.trackers else {}
        accelerator.init_trackers("dpvla", config=_flat(to_dict(config)), init_kwargs=init)
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
        saves = done or stop or step % config.save_every == 0
        if step % config.log_every == 0 or saves:
            means = _means(accelerator, sums, counts)
            wrong = [name for name, value in means.items() if not math.isfinite(value)]
            wrong = wrong or (update.not_finite() if saves else [])
            if wrong:
                raise FloatingPointError(_what_to_do(wrong, step, checkpoint.latest_checkpoint(out)))
        if step % config.log_every == 0 or done or stop:
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
                if accelerator.is_main_process:
                    bar.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
            began = time.perf_counter()
        if saves and accelerator.is_main_process:
            last = save(step)
        if stop and not done:
            bar.close()
            accelerator.end_training()
            raise KeyboardInterrupt(f"stopped after step {step}; the same command goes on from there")
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    newest = checkpoint.latest_checkpoint(out)
    assert newest is not None
    return newest


def _means(accelerator: Accelerator, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, float]:
    """Means over the steps and over all processes, whose shares of a batch are equal; one device sync."""
    values = torch.stack([value.to(accelerator.device) / counts[name] for name, value in sums.items()])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    return dict(zip(sums, values.tolist()))


def _what_to_do(wrong: Sequence[str], step: int, last: Path | None) -> str:
    found = f"{wrong[0]} is not finite at step {step}" + (f", nor are {len(wrong) - 1} others" if wrong[1:] else "")
    if last is None:
        return f"{found}; nothing was saved: start again with a smaller --loop.lr"
    return f"{found}; nothing of it was saved. The same command with a smaller --loop.lr goes on from {last}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as trackers take it: one level, plain values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        plain = value if isinstance(value, (str, int, float, bool)) else str(value)
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: plain}
    return flat


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
