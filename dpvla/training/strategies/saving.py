"""The files of a strategy's state: the same whatever the strategy and the number of processes.

``weights.safetensors`` holds trained parameters and persistent buffers by name, ``optimizer.safetensors`` the moments
as ``name|exp_avg``, ``name|exp_avg_sq`` and ``name|step``, ``ema.safetensors`` the averaged parameters; all are whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dpvla.tensors import save_tensors, state_of

Kept = tuple[str, str, Tensor]
"""File, name in it, tensor."""


def save_kept(state: Path, kept: Iterator[Kept], writes: bool) -> None:
    """Write what ``kept`` gives, from the one process that ``writes``; the others take part in making it whole."""
    files: dict[str, dict[str, Tensor]] = {}
    for file, name, tensor in kept:
        if writes:
            files.setdefault(file, {})[name] = tensor.cpu()
    for file, tensors in files.items():
        save_tensors(state / f"{file}.safetensors", tensors)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers of a module by name."""
    return {name: tensor for name, tensor in state_of(module).items() if not isinstance(tensor, nn.Parameter)}


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights are whole inside ``whole_weights`` alone, and freed after it."""
    sharded = any(type(part).__name__.startswith("FSDP") for part in module.modules())
    return sharded or any(hasattr(parameter, "ds_id") for parameter in module.parameters())  # DeepSpeed's


def ensure_group(device: torch.device) -> None:
    """A process group to shard over, also for a process that no launcher started: a group of one."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
