"""A strategy to copy: plain SGD on one process, without an average of the weights.

python tools/pretrain.py --plugin examples/strategy.py --loop.ema-decay 0 --loop.strategy sgd \\
    --loop.strategy.momentum 0.9
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.config import BelowOne, ConfigError
from dpvla.tensors import load_tensors, not_finite, save_tensors
from dpvla.training.strategies.config import OptimizerConfig, StrategyConfig
from dpvla.training.strategies.registry import STRATEGIES


@dataclass(frozen=True)
class SGDConfig(StrategyConfig):
    """Its settings: options of the command line and keys of the YAML file."""

    name: str = "sgd"  # of the strategy
    momentum: BelowOne = 0.0  # of the gradient


class SGD:
    """``w -= lr (gradient + momentum ...)``; its state is what a checkpoint holds in ``trainer_state/``."""

    Config = SGDConfig
    stride = 1

    @classmethod
    def accelerator_options(cls, config: OptimizerConfig) -> dict[str, Any]:
        """Nothing that accelerate should know; what does not fit is refused before anything is written."""
        if config.ema_decay:
            raise ConfigError("the strategy sgd averages no weights: give --loop.ema-decay 0")
        return {}

    def __init__(self, own: SGDConfig, module: nn.Module, config: OptimizerConfig, accelerator: Accelerator) -> None:
        if accelerator.num_processes > 1:
            raise ConfigError("the strategy sgd runs on one process: launch one, or leave it out")
        self.module, self.config, self.accelerator = module, config, accelerator
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.momentum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.keep = own.momentum

    def step(self, batch: Any, step: int, lr: float) -> dict[str, Tensor]:
        """One update; what is logged holds ``train/loss``."""
        self.module.train()
        with self.accelerator.autocast():
            loss, info = self.module(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm or math.inf)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    parameter.sub_(lr * self.momentum[name].mul_(self.keep).add_(parameter.grad))
                    parameter.grad = None
        return info | {"train/loss": loss.detach(), "train/grad_norm": norm}

    def whole_weights(self, averaged: bool = False) -> AbstractContextManager[None]:
        """They are whole on the one process."""
        return nullcontext()

    def not_finite(self) -> list[str]:
        """What must not be saved."""
        return not_finite(self.parameters) + not_finite(self.momentum)

    def save(self, state: Path) -> None:
        """Weights and momentum; the loop calls this on every process."""
        save_tensors(state / "weights.safetensors", self.parameters)
        save_tensors(state / "momentum.safetensors", self.momentum)

    def load(self, state: Path, step: int) -> None:
        """Read back what ``save`` wrote."""
        for name, own in (("weights", self.parameters), ("momentum", self.momentum)):
            found = load_tensors(state / f"{name}.safetensors")
            with torch.no_grad():
                for key, tensor in own.items():
                    tensor.copy_(found[key])


STRATEGIES["sgd"] = SGD
