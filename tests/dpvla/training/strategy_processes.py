"""Run by `test_strategies.py`: every strategy on one process and on two, which go on from one another's files.

Torch is imported once; the processes of a group are forked from here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dpvla.algorithms.dipole import ADAPTERS, Dipole, DipoleConfig
from dpvla.batch import DrivingBatch
from dpvla.config import from_dict
from dpvla.encoders.config import EncoderConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.registry import ENCODERS
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.head import HeadConfig
from dpvla.rl.stage import RolloutConfig, RolloutStage
from dpvla.training.config import LoopConfig
from dpvla.training.imitation import ImitationConfig, ImitationStage
from dpvla.training.loop import train
from dpvla.training.stage import Stage
from dpvla.training.strategies.registry import make_strategy, strategy_class
from tests.scenes_in_memory import ScenesInMemory, prefer_left
from tests.written_runs import write_run

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero2": {"name": "zero2"},
    "zero3": {"name": "zero3", "whole_below": 100},
}


@dataclass(frozen=True)
class SmallConfig(EncoderConfig):
    """Of the encoder below."""

    name: str = "small"  # of the encoder


class Small(Encoder[SmallConfig]):
    """Two layers on the mean color of each camera: few parameters, since each is a message between processes."""

    Config = SmallConfig

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        self.token_width = 16
        self.color = torch.nn.Linear(3, 16)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))

    def repeated_layers(self) -> list[torch.nn.Module]:
        return list(self.layers)

    def forward(self, batch: DrivingBatch) -> tuple[torch.Tensor, None]:
        tokens = self.color(batch.images.float().mean(dim=(-2, -1)) / 255)
        for layer in self.layers:
            tokens = tokens + layer(tokens).tanh()
        return tokens, None


ENCODERS["small"] = Small
CONFIG = DPVLAConfig(
    encoder=SmallConfig(image_width=16, image_height=8),
    head=HeadConfig(width=32, heads=2, blocks=("1 modulated self mlp", "1 plain self fused-cross mlp")),
)
LOOP = LoopConfig(lr=3e-3, warmup_steps=2, ema_decay=0.9, seed=7, log_every=1, save_every=100, trackers=())
SCENES, BATCH = 11, 4  # an epoch's last update has 3 scenes


def describe(directory: Path, cycles: int | None = None) -> None:
    write_run(directory, LOOP, 7, ())


def loop(strategy: str, **options: Any) -> LoopConfig:
    made = strategy_class(from_dict(LoopConfig, {"strategy": STRATEGIES[strategy]}, "test").strategy)
    return replace(LOOP, strategy=made.Config(**STRATEGIES[strategy]), **options)


def policy() -> DPVLA:
    torch.manual_seed(0)
    made = DPVLA.from_config(CONFIG)
    source = ScenesInMemory(SCENES, CONFIG.encoder.sensors)
    made.plan_coding.fit(source.plans(), source.ego_status())
    for parameter in made.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def imitation(accelerator: Accelerator) -> ImitationStage:
    source = ScenesInMemory(SCENES, CONFIG.encoder.sensors)
    config = ImitationConfig(epochs=1, batch_size=BATCH, noise_draws=2, color_jitter=0.2)
    return ImitationStage(policy(), source, config, accelerator, 7, describe, source, prefer_left)


def dipole(accelerator: Accelerator, model: Path | None = None, **options: Any) -> RolloutStage:
    made = policy()
    made.precision = "bf16" if accelerator.mixed_precision == "bf16" else "no"
    made.add_adapters(ADAPTERS, 4, 4)
    algorithm = Dipole(DipoleConfig(anchor="behavior"))
    config = RolloutConfig(group_size=4, cycles=1, epochs_per_cycle=2, scenes_per_cycle=7, batch_size=4, **options)
    source = ScenesInMemory(SCENES, CONFIG.encoder.sensors)
    return RolloutStage(made, algorithm, source, prefer_left, config, accelerator, 7, model, describe)


MAKE: dict[str, Callable[[Accelerator], Stage]] = {"imitation": imitation, "dipole": dipole}


class Processes:
    """What every process of a group runs through, and what the first one found."""

    def __init__(self, out: Path, precision: str = "no") -> None:
        self.out = out
        AcceleratorState._reset_state(True)
        self.accelerator = Accelerator(cpu=True, mixed_precision=precision)
        self.accelerator.end_training = lambda: None  # it would close the process group, which the next run needs
        self.count = self.accelerator.num_processes
        self.found: dict[str, Any] = {}

    def run(self, stage: str, name: str, directory: Path, **options: Any) -> Path:
        made = MAKE[stage](self.accelerator)
        return train(made, loop(name, **{"steps": made.steps, **options}), directory, self.accelerator)  # type: ignore[attr-defined]

    def train_all(self) -> None:
        """Every strategy trains and saves, and once more in two passes an update."""
        for name in names:
            for stage in MAKE:
                self.run(stage, name, self.out / f"{stage}-{name}-{self.count}")
            if self.count == 2:
                self.run("imitation", name, self.out / f"passes-{name}-2", accumulate=2)

        for stage in MAKE:
            with suppress(KeyboardInterrupt):
                self.run(stage, "ddp", self.out / f"stopped-{stage}-{self.count}", stop_after_step=2)

    def go_on_from_all(self) -> None:
        """Every strategy reads what each wrote, and makes one update more."""
        for name in names:
            stage = imitation(self.accelerator)
            config = loop(name, steps=stage.steps + 1)
            strategy = make_strategy(stage.module, config, self.accelerator)
            batch = next(stage.batches(stage.steps, lambda *_: None, strategy.whole_weights))
            for path in sorted(self.out.glob("imitation-*/checkpoints/step_*")):
                batch = replace(batch, random=batch.random.select(range(len(batch))))  # type: ignore[union-attr]
                strategy.load(path / "trainer_state", stage.steps)
                logged = strategy.step(batch, stage.steps + 1, 1e-3)
                both = self.accelerator.reduce(logged["train/loss"], reduction="mean")
                with strategy.whole_weights(averaged=True):
                    weights = float(sum(p.double().abs().sum() for p in stage.policy.parameters()))
                found = [float(both), float(logged["train/grad_norm"]), weights]
                self.found[f"{path.parent.parent.name} > {name}-{self.count}"] = found
        for stage_name in MAKE:
            self.run(stage_name, "ddp", self.out / f"stopped-{stage_name}-{3 - self.count}")  # the other group's

    def update_in_bf16(self) -> None:
        """Frozen weights in bf16 beside adapters in float32, every batch encoded anew."""
        seen = torch.is_autocast_enabled
        # As on a GPU, for whose autocast DeepSpeed asks.
        torch.is_autocast_enabled = lambda device="cpu": seen(device)  # type: ignore[assignment, misc]
        for name in names:
            stage = dipole(self.accelerator, self.out, context_cache_gb=0.0)
            strategy = make_strategy(stage.module, loop(name), self.accelerator)
            batches = stage.batches(0, lambda *_: None, strategy.whole_weights)
            logged = [strategy.step(next(batches), step, 1e-3) for step in (1, 2)]
            self.found[name] = [float(step[key]) for step in logged for key in ("train/loss", "train/grad_norm")]


def member(rank: int, count: int, out: Path, what: str) -> None:
    if count > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{out}/{what}", rank=rank, world_size=count)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, but the group is there already
        os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    try:
        group = Processes(out, "bf16" if what == "update_in_bf16" else "no")
        assert group.count == count
        getattr(group, what)()
        if rank == 0:
            (out / f"{what}-{count}.json").write_text(json.dumps(group.found))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def fork(count: int, out: Path, what: str) -> None:
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=member, args=(rank, count, out, what)) for rank in range(count)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    if any(process.exitcode for process in members):
        sys.exit(f"{what} of {count} processes failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[2:]
    if "zero2" in names:
        import deepspeed.ops

        # What it would build for processes that share memory takes a minute; gloo alone does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for what in ("train_all", "go_on_from_all", "update_in_bf16"):
        for count in (2, 1):
            fork(count, out, what)
