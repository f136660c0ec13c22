"""Whole weights on every process: forward, backward, averaged gradients, clip, AdamW, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dpvla.tensors import load_tensors, not_finite, require_same
from dpvla.training import checkpoint
from dpvla.training.shares import parts
from dpvla.training.strategies.average import WeightAverage
from dpvla.training.strategies.config import DDPConfig, OptimizerConfig, StrategyConfig
from dpvla.training.strategies.saving import Kept, buffers, save_kept


class DDP:
    """One clipped AdamW step on ``module(batch)``, in as many passes as asked for, and an average of the weights."""

    Config: ClassVar[type[StrategyConfig]] = DDPConfig
    stride = 1

    def __init__(
        self, own: StrategyConfig, module: nn.Module, config: OptimizerConfig, accelerator: Accelerator
    ) -> None:
        """``module(batch)`` returns (loss, info); its trainable parameters are optimized."""
        self.own, self.settings, self.config, self.accelerator = module, own, config, accelerator
        self.module = self._spread(module)
        self.weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        """What is trained, by name; after ``_spread``, which may put others in the place of a module's parameters."""
        self.parameters = list(self.weights.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        self.average = WeightAverage(self.parameters, config.ema_decay) if config.ema_decay else None

    def step(self, batch: Any, step: int, lr: float) -> dict[str, Tensor]:
        """One update at learning rate ``lr``; randomness comes from the batch and torch's global generator."""
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        logged: dict[str, Tensor] = {}
        passes = parts(batch, self.config.accumulate)
        for number, part in enumerate(passes, 1):
            with self._gradients_shared(number == len(passes)):
                with self.accelerator.autocast():
                    loss, info = self.module(part)
                loss.backward()
            for name, value in {**info, "train/loss": loss.detach()}.items():
                logged[name] = logged[name] + value if name in logged else value
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.step(self.parameters)
        return logged | {"train/grad_norm": self._whole(norm)}

    @classmethod
    def accelerator_options(cls, config: OptimizerConfig) -> dict[str, Any]:
        """None: DDP is what accelerate does by itself."""
        return {}

    @contextmanager
    def whole_weights(self, averaged: bool = False) -> Iterator[None]:
        """The weights are whole anyway; averaged ones, where there are any, stand in for the trained ones if asked."""
        with nullcontext() if self.average is None or not averaged else self.average.standing_in(self.parameters):
            yield

    def not_finite(self) -> list[str]:
        """Names of weights, averages and moments that hold NaN or infinity, on any process."""
        held = {f"{name} ({what})": self._part(tensor) for what, name, tensor in self._held()}
        bad = set(not_finite(held))
        flags = torch.tensor([name in bad for name in held], device=self.accelerator.device, dtype=torch.float32)
        return [name for name, flag in zip(held, self.accelerator.reduce(flags).tolist()) if flag]

    def save(self, state: Path) -> None:
        """``weights``, ``optimizer`` and, where averaged, ``ema`` as safetensors, from the main process."""
        whole = ((what, name, self._whole(tensor)) for what, name, tensor in self._held())
        save_kept(state, whole, self.accelerator.is_main_process)

    def load(self, state: Path, step: int) -> None:
        """Read back what ``save`` of any strategy wrote after update ``step``, on any number of processes."""
        path = state / "weights.safetensors"
        checkpoint.load_weights(self.own, self.weights | buffers(self.own), load_tensors(path), path, self._like)
        moments = checkpoint.read_moments(state / "optimizer.safetensors", self.weights, step)
        for label, moment in moments.items():
            if moment.dim() and (like := self.weights.get(label.rsplit("|", 1)[0])) is not None:
                moments[label] = self._like(moment, like)
        checkpoint.load_optimizer(self.optimizer, list(self.weights), moments)
        if self.average is not None:
            path = state / "ema.safetensors"
            averages = load_tensors(path)
            require_same(self.weights, averages, path)
            self.average.averages = [
                self._like(averages[name], p).to(p.device, copy=True) for name, p in self.weights.items()
            ]
            self.average.updates = step

    def _held(self) -> Iterator[Kept]:
        """What a checkpoint holds, as this process has it."""
        for name, tensor in (self.weights | buffers(self.own)).items():
            yield "weights", name, tensor.detach()
        for name, tensor in checkpoint.optimizer_tensors(self.optimizer, list(self.weights)).items():
            yield "optimizer", name, tensor
        if self.average is not None:
            for name, tensor in zip(self.weights, self.average.averages):
                yield "ema", name, tensor

    # ------------------------------------------------------------------ what sharding does otherwise

    def _spread(self, module: nn.Module) -> nn.Module:
        """The module on this process's device, as it is called in training."""
        wrapped: nn.Module = self.accelerator.prepare(module)
        return wrapped

    def _gradients_shared(self, last: bool) -> AbstractContextManager[None]:
        """Around one of an update's passes: gradients are averaged over processes in the ``last`` one."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = self.module.no_sync()
        return waiting

    def _whole(self, tensor: Tensor) -> Tensor:
        """A held tensor in full; called on every process."""
        return tensor

    def _part(self, tensor: Tensor) -> Tensor:
        """This process's numbers of a held tensor."""
        return tensor

    def _like(self, tensor: Tensor, held: Tensor) -> Tensor:
        """A whole tensor as ``held`` is held; called on every process."""
        return tensor
