"""Options of the optimizer and of the strategies."""

from __future__ import annotations

from dataclasses import dataclass

from dpvla.config import BelowOne, Count, NotNegative, Whole


@dataclass(frozen=True)
class StrategyConfig:
    """What every strategy has; its own settings come in a subclass."""

    name: str  # in the registry of strategies


@dataclass(frozen=True)
class DDPConfig(StrategyConfig):
    """Whole weights on every process, gradients averaged: PyTorch's DistributedDataParallel, or one process alone."""

    name: str = "ddp"  # ddp, fsdp2, zero2, zero3, or one of a plug-in


@dataclass(frozen=True)
class FSDP2Config(StrategyConfig):
    """PyTorch's ``fully_shard``. Weights travel in float32, so that autocast computes what it computes under DDP."""

    name: str = "fsdp2"  # each process holds a part of weights, gradients and moments
    reshard_after_forward: bool = True  # free a layer's whole weights between forward and backward: memory for traffic


@dataclass(frozen=True)
class Zero2Config(StrategyConfig):
    """DeepSpeed's ZeRO stage 2: whole weights, gradients and moments in parts. Needs the extra ``deepspeed``."""

    name: str = "zero2"  # DeepSpeed's ZeRO stage 2


@dataclass(frozen=True)
class Zero3Config(StrategyConfig):
    """DeepSpeed's ZeRO stage 3: weights in parts, too. Needs the extra ``deepspeed``."""

    name: str = "zero3"  # DeepSpeed's ZeRO stage 3
    whole_below: Whole = 100_000  # parameters of fewer numbers stay whole on every process


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and what comes with it."""

    lr: NotNegative = 1e-4  # peak learning rate of AdamW
    weight_decay: NotNegative = 0.01  # of AdamW
    adam_betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # of AdamW
    clip_norm: NotNegative = 1.0  # gradient norm is clipped to this; 0: never
    ema_decay: BelowOne = 0.0  # weights are averaged with this decay for evaluation and saving; 0 turns it off
    accumulate: Count = 1  # passes that a process makes over its scenes of an update, to spare memory
