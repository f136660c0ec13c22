"""A run's plan: parameters, memory of a GPU by part, operations, hours and disk; and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.batch import DrivingBatch
from dpvla.config import ConfigError, one_line
from dpvla.costs.memory import fake_policy, forward_peak, update_peak, without_numbers
from dpvla.costs.options import GPUS, SCENES, PlanOptions
from dpvla.encoders.registry import encoder_class
from dpvla.files import free_bytes, write_json
from dpvla.models import DPVLA, DPVLAConfig, DrivingPolicy, SceneContext
from dpvla.models.config import LoRAConfig
from dpvla.models.flops import count_flops, on_meta
from dpvla.models.policies import policy_class
from dpvla.models.policy_files import PolicyFiles
from dpvla.random_rows import RandomRows
from dpvla.rl.config import RolloutConfig, TokensConfig
from dpvla.rl.flops import scene_flops
from dpvla.rl.kept import kept_bytes
from dpvla.tensors import empty_parameters
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.strategies.layer_options import apply_layer_options

GB = 1e9
USABLE = 0.94
"""Share of a GPU's memory that tensors may fill: the rest goes to CUDA itself and to gaps."""
IN_PARTS = {
    "zero2": ("gradients", "optimizer"),
    "zero3": ("weights", "gradients", "optimizer"),
    "fsdp2": ("weights", "gradients", "optimizer"),
}
"""What each strategy divides among the processes."""


@dataclass(frozen=True)
class Plan:
    """What a run takes. Sizes are in 10^9 bytes."""

    gpu: str
    gpus: int
    parameters: dict[str, int]  # encoder, head, adapter (one of them), total
    memory_gb_per_gpu: float
    memory_parts_gb: dict[str, float]  # weights, gradients, optimizer, buckets, activations, cache
    flops_per_update: float
    flops_per_scene_and_cycle: float | None  # of RL
    updates: int
    disk_gb: float
    disk_parts_gb: dict[str, float]
    hours: float
    mfu: float  # assumed

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        memory = ", ".join(f"{name} {size:.2f}" for name, size in self.memory_parts_gb.items() if size)
        disk = ", ".join(f"{name} {size:.1f}" for name, size in self.disk_parts_gb.items() if size)
        lines = [
            f"{self.gpus} x {self.gpu}",
            f"parameters: {sizes}",
            f"memory of a GPU: {self.memory_gb_per_gpu:.2f} GB of {GPUS[self.gpu][0]:g} ({memory})",
            f"an update: {self.flops_per_update / 1e12:.1f} TFLOP; {self.updates:,} updates",
            f"disk: {self.disk_gb:.1f} GB ({disk})",
            f"hours: {self.hours:.1f}, where {self.mfu:.0%} of {GPUS[self.gpu][1]:g} TFLOP/s are reached",
        ]
        if self.flops_per_scene_and_cycle is not None:
            lines.insert(4, f"a scene and cycle: {self.flops_per_scene_and_cycle / 1e12:.2f} TFLOP")
        return "\n".join(lines)

    def require_fit(self, gpu: str, memory_gb: float, free_disk_gb: float) -> None:
        """Raise ConfigError, with the numbers, where a GPU of ``memory_gb`` or the disk cannot hold the run."""
        if self.memory_gb_per_gpu > memory_gb:
            parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory_parts_gb.items() if size)
            raise ConfigError(
                f"this run takes {self.memory_gb_per_gpu:.1f} GB of a GPU ({parts}), {gpu} can give {memory_gb:.1f}: "
                "take smaller batches, --loop.recompute both, --loop.accumulate, or more or larger GPUs"
            )
        if self.disk_gb > free_disk_gb:
            parts = ", ".join(f"{name} {size:.1f}" for name, size in self.disk_parts_gb.items() if size)
            raise ConfigError(
                f"this run takes {self.disk_gb:.1f} GB of disk ({parts}), there are {free_disk_gb:.1f}: free some, or "
                "keep fewer checkpoints"
            )


def require_room(plan: Callable[[PlanOptions], Plan], accelerator: Accelerator, out: Path | str) -> None:
    """Refuse a run that this machine's GPU or disk cannot hold; where nothing runs on a GPU nothing is looked at.

    What cannot be planned is said, and runs: what works on values, and sizes that stand in files that are not here.
    """
    if accelerator.device.type != "cuda":
        return
    try:
        made = plan(PlanOptions(gpus=accelerator.num_processes))
    except Exception as error:  # an encoder or algorithm of a plug-in raises whatever it likes
        accelerator.print(f"whether this run fits is not known: {one_line(error)}")
        return
    about = torch.cuda.get_device_properties(accelerator.device)
    # Tokens may be there already, on another disk, too: ``open_tokens`` looks for their room.
    disk = {name: size for name, size in made.disk_parts_gb.items() if name != "tokens"}
    made = replace(made, disk_gb=sum(disk.values()), disk_parts_gb=disk)
    made.require_fit(about.name, about.total_memory / GB, free_disk_gb(out) + held_gb(out))


def report(plan: Plan, options: PlanOptions, out: Path | str) -> None:
    """Print a plan, write it where it was asked for, and raise ConfigError where GPU or disk cannot hold it."""
    print(plan)
    if options.json is not None:
        write_json(options.json, plan.to_json())
    plan.require_fit(f"a {plan.gpu}", USABLE * GPUS[plan.gpu][0], free_disk_gb(out))


def free_disk_gb(path: Path | str) -> float:
    """Room for files at ``path``, which need not exist, in GB."""
    return free_bytes(path) / GB


def held_gb(folder: Path | str) -> float:
    """Of the files in ``folder``, which need not exist: a run that goes on has a part of its disk already."""
    found = [path.stat() for path in Path(folder).rglob("*") if path.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values()) / GB


def outlined(config: DPVLAConfig) -> DrivingPolicy:
    """A policy of this config without memory for weights; neither network nor released weights are needed."""
    with empty_parameters():
        return policy_class(config)(config, encoder_class(config.encoder).outline(config.encoder))


def outlined_from(directory: Path) -> DPVLA:
    """The same of a saved DP-VLA, which RL fine-tunes."""
    saved = PolicyFiles.read(directory)
    DPVLA.require(saved.config, directory)
    with saved.describing(), empty_parameters():
        return DPVLA(saved.config, saved.encoder())


def scene_count(options: PlanOptions, split: str) -> int:
    """Scenes that are planned for; raises ConfigError where nobody says."""
    if options.scenes:
        return options.scenes
    if split in SCENES:
        return SCENES[split]
    raise ConfigError(f"--plan knows how many scenes {', '.join(SCENES)} have, not {split}: give --scenes N")


def plan_pretraining(
    policy: DrivingPolicy, imitation: ImitationConfig, loop: LoopConfig, options: PlanOptions, scenes: int
) -> Plan:
    """Of imitation pretraining with ``policy``, which is ``outlined`` and put on tensors without numbers here."""
    flops = _imitation_flops(policy, imitation.noise_draws)
    policy.precision = loop.precision
    parameters = _parameters(policy)
    here = _share(imitation.batch_size, options.gpus, loop.accumulate)
    batch = policy.encoder.fake_batch(here)
    with without_numbers():
        fake_policy(policy.train())
        _never_drop_layers(policy)
        apply_layer_options(policy, loop.recompute, False)
        peak = update_peak(policy, lambda: policy.imitation_loss(batch, draws=imitation.noise_draws)[0])
    parts = _parts(policy, loop, options.gpus, peak)
    updates = loop.steps or imitation.epochs * math.ceil(scenes / imitation.batch_size)
    weights = _bytes(policy)
    kept = (loop.keep_checkpoints + 1) * (weights + _trained_bytes(policy) * (3 + bool(loop.ema_decay)))
    return _plan(options, parameters, parts, flops * imitation.batch_size, None, updates, {"checkpoints": kept / GB})


def _never_drop_layers(policy: DrivingPolicy) -> None:
    """transformers 5.17 draws a number for every layer that might be dropped, and looks at it; here there is none."""
    for module in policy.modules():
        if hasattr(module, "layerdrop"):
            module.training = False  # of itself alone: what is in it keeps its dropout


def plan_fine_tuning(
    policy: DPVLA,
    algorithm: Algorithm,
    rollouts: RolloutConfig,
    tokens: TokensConfig,
    lora: LoRAConfig,
    loop: LoopConfig,
    options: PlanOptions,
    scenes: int,
) -> Plan:
    """Of RL fine-tuning of ``policy``, which is ``outlined`` and put on tensors without numbers here."""
    if algorithm.adapters:
        policy.add_adapters(algorithm.adapters, *lora.of(algorithm.adapters))
    with empty_parameters():
        policy.beside = algorithm.networks(policy)
    policy.freeze_encoder()
    policy.sampling = algorithm.sampling()
    parameters = _parameters(policy)
    flops = scene_flops(policy, algorithm, rollouts.group_size)
    weights = _bytes(policy)
    policy.precision = loop.precision
    if algorithm.adapters:
        policy.hold_frozen()
    here = _share(rollouts.batch_size, options.gpus, loop.accumulate)
    call = policy.encoder.fake_batch(rollouts.scenes_per_call)
    with without_numbers():
        fake_policy(policy.eval())
        group = rollouts.group_size

        def roll_out(batch: DrivingBatch) -> tuple[SceneContext, dict[str, Tensor]]:
            context = policy.encode(batch)
            with policy.autocast():
                return context, algorithm.roll_out(policy, context, group, RandomRows(range(len(batch))))

        rolling = forward_peak(policy, lambda: roll_out(call))
        with torch.no_grad():
            context, roll_outs = roll_out(policy.encoder.fake_batch(here))
    zeros = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in roll_outs.items()}
    made = algorithm.targets({"score": torch.rand(here, group, dtype=torch.float64)}, zeros)
    with without_numbers():
        targets = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in made.items()}
        behavior = policy.snapshot_head() if algorithm.needs_behavior else None
        apply_layer_options(policy, loop.recompute, False)
        batch = RolloutBatch(context, roll_outs, targets, behavior)
        updating = update_peak(policy.train(), lambda: algorithm.loss(policy, batch)[0])
    parts = _parts(policy, loop, options.gpus, max(rolling, updating))
    rolled = min(rollouts.scenes_per_cycle or scenes, scenes)
    updates = loop.steps or rollouts.cycles * rollouts.epochs_per_cycle * math.ceil(rolled / rollouts.batch_size)
    token_bytes = context.tokens.shape[1] * context.tokens.shape[2] * 2
    in_memory = rolled * token_bytes <= rollouts.context_cache_gb * 2**30
    encodings = 1.0 if tokens.directory or in_memory else 1.0 + rollouts.epochs_per_cycle
    cycle = flops.cycle(rollouts.epochs_per_cycle, encodings)
    disk = {
        "model": weights / GB,
        "checkpoints": (loop.keep_checkpoints + 1) * 4 * _trained_bytes(policy) / GB,
        "roll-outs": (loop.keep_checkpoints + 1) * rolled * sum(value[0].nbytes for value in zeros.values()) / GB,
        "tokens": scenes * token_bytes / GB if tokens.directory else 0.0,
        "roll_outs": kept_bytes(rollouts.cycles, rolled, rollouts.group_size) / GB if rollouts.keep else 0.0,
    }
    total = rollouts.cycles * rolled * cycle
    return _plan(options, parameters, parts, flops.update * rollouts.batch_size, cycle, updates, disk, total)


def _plan(
    options: PlanOptions,
    parameters: dict[str, int],
    parts: dict[str, float],
    flops: float,
    cycle: float | None,
    updates: int,
    disk: dict[str, float],
    total_flops: float | None = None,
) -> Plan:
    _, tflops = GPUS[options.gpu]
    total = flops * updates if total_flops is None else total_flops
    return Plan(
        gpu=options.gpu,
        gpus=options.gpus,
        parameters=parameters,
        memory_gb_per_gpu=sum(parts.values()),
        memory_parts_gb=parts,
        flops_per_update=flops,
        flops_per_scene_and_cycle=cycle,
        updates=updates,
        disk_gb=sum(disk.values()),
        disk_parts_gb=disk,
        hours=total / (options.gpus * tflops * 1e12 * options.mfu) / 3600,
        mfu=options.mfu,
    )


def _imitation_flops(policy: DrivingPolicy, draws: int) -> int:
    """Of learning one scene: forward and backward."""
    shapes = on_meta(policy).train()
    batch = shapes.encoder.fake_batch(1).to("meta")
    return count_flops(lambda: shapes.imitation_loss(batch, draws=draws)[0].backward())


def _parts(policy: DrivingPolicy, loop: LoopConfig, gpus: int, peak: int) -> dict[str, float]:
    """Memory of a GPU by part, in GB; ``peak``: of one process that holds everything whole."""
    weights, trained = _bytes(policy), _trained_bytes(policy)
    whole = {"weights": weights, "gradients": trained, "optimizer": 2 * trained}
    activations = max(0, peak - sum(whole.values()))
    divided = IN_PARTS.get(loop.strategy.name, ()) if gpus > 1 else ()
    parts = {name: size / (gpus if name in divided else 1) for name, size in whole.items()}
    parts["optimizer"] += bool(loop.ema_decay) * trained / (gpus if divided else 1)
    parts["buckets"] = trained if gpus > 1 and not divided else 0.0  # gradients on their way to the other processes
    parts["activations"] = activations
    parts["cache"] = 0.0  # encoded scenes lie in the CPU's memory or on disk
    return {name: size / GB for name, size in parts.items()}


def _share(batch_size: int, processes: int, passes: int) -> int:
    """Scenes that a process holds at once."""
    return math.ceil(batch_size / processes / passes)


def _parameters(policy: DrivingPolicy) -> dict[str, int]:
    adapters = sum(parameter.numel() for parameter in policy.adapter_parameters())
    encoder, head = (sum(p.numel() for p in part.parameters()) for part in (policy.encoder, policy.head))
    return {
        "encoder": encoder,
        "head": head - adapters,
        "adapter": adapters // max(1, len(policy.adapters)),
        "total": encoder + head,
    }


def _bytes(policy: DrivingPolicy) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*policy.parameters(), *policy.buffers()))


def _trained_bytes(policy: DrivingPolicy) -> int:
    return sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
