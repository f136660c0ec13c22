"""The one training loop: sample, update, log, evaluate, save. Every stage and track runs through ``train``.

Each step draws its randomness from (seed, step, process), so a run that was stopped goes on exactly: what is
stored is the weights, the optimizer, the average and the stage's own buffer, and no generator state.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.config import to_dict
from dpvla.registry import ContractError
from dpvla.training import checkpoint
from dpvla.training.best import Judge
from dpvla.training.config import LoopConfig, learning_rate
from dpvla.training.order import step_seed
from dpvla.training.stage import Stage
from dpvla.training.stopping import Stopper
from dpvla.training.strategies.registry import make_strategy
from dpvla.training.strategies.strategy import Strategy
from dpvla.training.tracking import Tracker

LOG_FILE_INTERVAL = 10.0
"""Seconds between redraws of the progress bar where it goes to a file: each is a new line there."""

MakeStrategy = Callable[[nn.Module, LoopConfig, Accelerator], Strategy]


def train(
    stage: Stage,
    config: LoopConfig,
    out: Path,
    accelerator: Accelerator,
    make: MakeStrategy = make_strategy,
    judge: Judge | None = None,
    until: float = math.inf,
) -> Path:
    """Run ``stage`` to ``config.steps``, going on from the newest checkpoint in ``out``; returns the last one.

    ``make`` gives what changes the weights; by default it is ``config.strategy``. SIGINT and SIGTERM save a checkpoint
    after the current step and raise KeyboardInterrupt, and so does time that is up: ``until``, by ``time.monotonic()``.
    What is not finite is never saved: FloatingPointError names it and the last checkpoint.

    ``judge`` looks at evaluations, of which there is one more before the first update. The best of them is saved and
    marked, and FallenError ends the run, after all is saved, when they fall too far below it.
    """
    with Stopper(accelerator, config, until) as stopper, ExitStack() as ending:
        return _train(stage, config, out, accelerator, make(stage.module, config, accelerator), stopper, ending, judge)


def _train(
    stage: Stage,
    config: LoopConfig,
    out: Path,
    accelerator: Accelerator,
    strategy: Strategy,
    stopper: Stopper,
    ending: ExitStack,
    judge: Judge | None,
) -> Path:
    _check_stride(config, getattr(strategy, "stride", None))

    def save(step: int, best: bool) -> Path:
        now = checkpoint.LoopState(
            step=step, rows=tracker.flushed(), logged=_sums(accelerator, sums), counts=dict(counts), manifest=True
        )
        if judge is not None:
            now["judged"] = judge.state()
        with checkpoint.writing(out, step, config.keep_checkpoints, accelerator, best) as directory:
            layout = CheckpointLayout(directory)
            strategy.save(layout.trainer_state)
            with strategy.whole_weights(averaged=True):
                if accelerator.is_main_process:
                    checkpoint.write_state(layout.loop, now)
                    stage.save(directory)
        return checkpoint.place(out, step)

    def evaluate(step: int) -> bool:
        """Whether it is the best of those that are judged."""
        stage.module.eval()
        with strategy.whole_weights(averaged=True):
            values = dict(stage.evaluate(step))
        if values:
            tracker.log(step, values)
            if accelerator.is_main_process:
                shown = values if judge is None else judge.shown(values)
                bar.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        return judge is not None and judge.note(step, values)

    first, last, state = 0, checkpoint.latest_checkpoint(out), checkpoint.LoopState(step=0)
    if last is not None:
        state = checkpoint.read_state(last)
        first = state["step"]
        strategy.load(CheckpointLayout(last).trainer_state, first)
        with strategy.whole_weights():
            stage.restore(last)
        if judge is not None and (changed := judge.restore(state.get("judged"), out)):
            accelerator.print(changed)
        if accelerator.is_main_process:  # a run may have been killed before it did so
            if judge is not None:
                checkpoint.mark_best(out, judge.best_step)
            checkpoint.prune(out, config.keep_checkpoints, last)
        accelerator.print(f"going on from step {first} of {config.steps} in {out}")
        if judge is not None:
            judge.refuse_fall(out)
    if last is not None and first >= config.steps:
        return last
    if accelerator.is_main_process and config.trackers:
        init = {"wandb": {"name": out.name}} if "wandb" in config.trackers else {}
        accelerator.init_trackers("dpvla", config=_flat(to_dict(config)), init_kwargs=init)
    tracker = Tracker(accelerator, out, first, state.get("rows"))
    bar = ending.enter_context(
        tqdm(
            total=config.steps,
            initial=first,
            unit="step",
            disable=not accelerator.is_main_process,
            smoothing=0.05,
            mininterval=0.1 if sys.stderr.isatty() else LOG_FILE_INTERVAL,
        )
    )
    batches = stage.batches(first, tracker.log, strategy.whole_weights)
    device = accelerator.device
    sums = {name: torch.tensor(value, device=device) for name, value in state.get("logged", {}).items()}
    counts = Counter(state.get("counts", {}))
    if judge is not None and last is None:
        evaluate(0)
    summed, waited, began = 0, 0.0, time.perf_counter()

    for step in range(first + strategy.stride, config.steps + 1, strategy.stride):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before

        torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
        for name, value in check_logged(strategy.step(batch, step, learning_rate(config, step))).items():
            sums[name] = sums[name] + value.detach().float() if name in sums else value.detach().float()
            counts[name] += 1
        summed += 1

        done, stop = step == config.steps, stopper.asked(step)
        saves = done or stop or step % config.save_every == 0
        evaluates = done or bool(config.evaluate_every and step % config.evaluate_every == 0)
        if step % config.log_every == 0 or saves or evaluates:
            means = _means(accelerator, sums, counts)
            wrong = [name for name, value in means.items() if not math.isfinite(value)]
            wrong = wrong or (strategy.not_finite() if saves or evaluates else [])
            if wrong:
                raise FloatingPointError(_what_to_do(wrong, step, checkpoint.latest_checkpoint(out)))
        if step % config.log_every == 0 or done:
            elapsed = time.perf_counter() - began
            speed = {"speed/steps_per_s": summed * strategy.stride / elapsed, "speed/data_wait": waited / elapsed}
            tracker.log(step, means | speed | {"train/lr": learning_rate(config, step)})
            bar.set_postfix_str(f"loss {means['train/loss']:.4f}, data wait {waited / elapsed:.0%}", refresh=False)
            sums, counts, summed, waited, began = {}, Counter(), 0, 0.0, time.perf_counter()
        bar.update(strategy.stride)
        best = False
        if evaluates:
            best = evaluate(step)
            began = time.perf_counter()
        if saves or best or (judge is not None and judge.has_fallen):
            last = save(step, best)
        if judge is not None and judge.has_fallen:
            bar.close()
            accelerator.end_training()
            judge.refuse_fall(out)
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


def _sums(accelerator: Accelerator, sums: Mapping[str, Tensor]) -> dict[str, float]:
    """What is summed since the last logged row, as every process takes it up again: the mean over processes."""
    return _means(accelerator, sums, dict.fromkeys(sums, 1)) if sums else {}


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


def check_logged(given: Any) -> Mapping[str, Tensor]:
    """What a strategy's ``step`` gives; raises ContractError where that is not tensors of one number, or no loss."""
    if not isinstance(given, Mapping) or "train/loss" not in given:
        raise ContractError("loop.strategy: step gave no train/loss: it gives a dict of what to log, which holds it")
    wrong = next((name for name, value in given.items() if not isinstance(value, Tensor) or value.dim()), None)
    if wrong is not None:
        raise ContractError(f"loop.strategy: step logs {wrong!r} as something else than a tensor of one number")
    return given


def _check_stride(config: LoopConfig, stride: Any) -> None:
    if not isinstance(stride, int) or stride < 1:
        raise ContractError(f"loop.strategy: stride must be how many updates a step makes, found {stride!r}")
    for name in ("steps", "log_every", "evaluate_every", "save_every", "stop_after_step"):
        if getattr(config, name) % stride:
            raise ValueError(
                f"loop.{name} = {getattr(config, name)} must be a multiple of {stride}, the updates per step"
            )
