"""Options of the loop and of the updates on this track."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpvla.config import Count, Whole, Workers
from dpvla.training.config import LoopConfig


@dataclass(frozen=True)
class StateBasedLoop(LoopConfig):
    """The loop's options as this track has them: what it does not have says so."""

    steps: Whole = 0  # not here: use --steps and --online-steps
    seed: Whole = 0  # not here: use --seed or --seeds
    clip_norm: float = 0.0  # not on this track: stays 0
    ema_decay: float = 0.0  # not on this track: stays 0
    precision: Literal["no", "bf16"] = "no"  # not on this track: stays no (--launch.tf32 is for GPUs)
    accumulate: Count = 1  # not on this track: stays 1
    recompute: Literal["none", "encoder", "head", "both"] = "none"  # not on this track: stays none
    compile: bool = False  # not here: use --launch.compile


STATE_BASED_LOOP = StateBasedLoop(
    steps=1_000_000,
    lr=3e-4,
    weight_decay=0.0,
    log_every=5_000,
    evaluate_every=100_000,
    save_every=100_000,
)
"""The loop's options on this track (paper: Adam 3e-4, no decay, no clipping, 1M updates)."""


@dataclass(frozen=True)
class UpdateConfig:
    """How updates are launched; what is learned does not depend on it, beyond the rounding of floats."""

    per_step: Count = 1  # updates in one step of the loop, and in one CUDA graph; steps count updates all the same
    cuda_graph: bool = True  # capture them where there is a GPU
    tf32: bool = True  # TensorFloat-32 matmuls on a GPU, as JAX has them by default
    threads: Workers = 0  # CPU threads; 0: the cores this process really has, at most 8
    compile: bool = False  # torch.compile the losses; pays for small layers on a CPU, needs a C++ compiler and a minute


def refuse_unsupported(config: LoopConfig) -> None:
    """Raise ValueError when ``config`` asks for what this track does not have."""
    for name, value in (
        ("clip_norm", 0.0), ("ema_decay", 0.0), ("precision", "no"),
        ("accumulate", 1), ("recompute", "none"), ("compile", False),
    ):  # fmt: skip
        if getattr(config, name) != value:
            raise ValueError(f"loop.{name} must be {value} on the state-based track, found {getattr(config, name)}")
