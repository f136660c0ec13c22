"""Whole weights on every process: forward, backward, averaged gradients, clip, AdamW, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dpvla.tensors import load_tensors, not_finite, require_same, save_tensors
from dpvla.training import checkpoint
from dpvla.training.strategies.config import DDPConfig, OptimizerConfig, StrategyConfig


class DDP:
    """One clipped AdamW step on ``module(batch)`` through accelerate, and an average of the weights if asked for."""

    Config = DDPConfig
    stride = 1

    def __init__(
        self, own: StrategyConfig, module: nn.Module, config: OptimizerConfig, accelerator: Accelerator
    ) -> None:
        """``module(batch)`` returns (loss, info); its trainable parameters are optimized."""
        self.own, self.config, self.accelerator = module, config, accelerator
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.ema = EMAModel(self.parameters, decay=config.ema_decay) if config.ema_decay else None

    def step(self, batch: Any, step: int, lr: float) -> dict[str, Tensor]:
        """One update at learning rate ``lr``; randomness comes from torch's global generator."""
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.accelerator.autocast():
            loss, info = self.module(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.parameters)
        return info | {"train/loss": loss.detach(), "train/grad_norm": torch.as_tensor(norm)}

    @classmethod
    def accelerator_options(cls, config: OptimizerConfig) -> dict[str, Any]:
        """None: DDP is what accelerate does by itself."""
        return {}

    @contextmanager
    def whole_weights(self, averaged: bool = False) -> Iterator[None]:
        """The weights are whole anyway; averaged ones, where there are any, stand in for the trained ones if asked."""
        if self.ema is None or not averaged:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def not_finite(self) -> list[str]:
        """Names of weights, averages and moments that hold NaN or infinity."""
        return [f"{name} ({what})" for what, tensors in self._kept().items() for name in not_finite(tensors)]

    def save(self, state: Path) -> None:
        """``weights``, ``optimizer`` and, where averaged, ``ema`` as safetensors, from the main process."""
        if not self.accelerator.is_main_process:
            return
        for name, tensors in self._kept().items():
            save_tensors(state / f"{name}.safetensors", tensors)

    def load(self, state: Path, step: int) -> None:
        """Read back what ``save`` wrote after update ``step``."""
        path = state / "weights.safetensors"
        checkpoint.load_weights(self.own, self._weights(), load_tensors(path), path)
        moments = load_tensors(state / "optimizer.safetensors")
        checkpoint.load_optimizer(self.optimizer.optimizer, self.names, moments)
        if self.ema is not None:
            path = state / "ema.safetensors"
            shadow = load_tensors(path)
            require_same(dict(zip(self.names, self.parameters)), shadow, path)
            self.ema.shadow_params = [shadow[name].to(p.device) for name, p in zip(self.names, self.parameters)]
            self.ema.optimization_step = step

    def _weights(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.parameters)) | buffers(self.own)

    def _kept(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by the name of its file."""
        kept = {
            "weights": self._weights(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer.optimizer, self.names),
        }
        if self.ema is not None:
            kept["ema"] = dict(zip(self.names, self.ema.shadow_params))
        return kept


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers of a module by name."""
    kept = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}
