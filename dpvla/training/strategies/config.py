"""Options of the optimizer and of the strategies."""

from __future__ import annotations

from dataclasses import dataclass

from dpvla.config import BelowOne, NotNegative


@dataclass(frozen=True)
class StrategyConfig:
    """What every strategy has; its own settings come in a subclass."""

    name: str  # in the registry of strategies


@dataclass(frozen=True)
class DDPConfig(StrategyConfig):
    """Whole weights on every process, gradients averaged: PyTorch's DistributedDataParallel, or one process alone."""

    name: str = "ddp"  # ddp, or one of a plug-in


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and what comes with it."""

    lr: NotNegative = 1e-4  # peak learning rate of AdamW
    weight_decay: NotNegative = 0.01  # of AdamW
    adam_betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # of AdamW
    clip_norm: NotNegative = 1.0  # gradient norm is clipped to this; 0: never
    ema_decay: BelowOne = 0.0  # weights are averaged with this decay for evaluation and saving; 0 turns it off
