"""DeepSpeed's ZeRO: moments and gradients in parts on the processes (2), weights as well (3)."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.config import ConfigError
from dpvla.tensors import load_tensors, not_finite, require_same
from dpvla.training import checkpoint
from dpvla.training.shares import parts
from dpvla.training.strategies.average import WeightAverage
from dpvla.training.strategies.config import OptimizerConfig, StrategyConfig, Zero2Config, Zero3Config
from dpvla.training.strategies.saving import Kept, buffers, ensure_group, save_kept

HELD = -1
"""Stands among the layers for whose sake DeepSpeed keeps a weight whole."""


class Zero2:
    """DDP's update by DeepSpeed's engine, in float32 or under autocast, with torch's AdamW and the same files."""

    Config: ClassVar[type[StrategyConfig]] = Zero2Config
    engine = "DEEPSPEED"
    zero_stage: ClassVar[int] = 2
    stride = 1

    def __init__(
        self, own: StrategyConfig, module: nn.Module, config: OptimizerConfig, accelerator: Accelerator
    ) -> None:
        """``module(batch)`` returns (loss, info); its trainable parameters are optimized."""
        import deepspeed

        ensure_group(accelerator.device)
        os.environ.setdefault("LOCAL_RANK", str(accelerator.local_process_index))  # which it asks for, launched or not
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False)
        self.own, self.settings, self.config, self.accelerator = module.to(accelerator.device), own, config, accelerator
        # Inside: DeepSpeed turns off the autocast of a GPU that it finds around the engine.
        module.forward = _autocast(accelerator, module.forward)  # type: ignore[method-assign]
        self.weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=config.lr, betas=config.adam_betas, weight_decay=config.weight_decay
        )
        self.module, self.optimizer, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self._options(), dist_init_required=False
        )
        self.average = WeightAverage(self._parts(), config.ema_decay) if config.ema_decay else None

    def step(self, batch: Any, step: int, lr: float) -> dict[str, Tensor]:
        """One update at learning rate ``lr``; randomness comes from the batch and torch's global generator."""
        self.module.train()
        self._set_rate(lr)
        logged: dict[str, Tensor] = {}
        for part in parts(batch, self.config.accumulate):
            loss, info = self.module(part)
            self.module.backward(loss * self.config.accumulate)  # which the engine divides by it
            self.module.step()  # learns after the last one
            for name, value in {**info, "train/loss": loss.detach()}.items():
                logged[name] = logged[name] + value if name in logged else value
        if self.average is not None:
            self.average.step(self._parts())
        norm = torch.as_tensor(self.module.get_global_grad_norm(), device=self.accelerator.device)
        return logged | {"train/grad_norm": norm}

    @classmethod
    def accelerator_options(cls, config: OptimizerConfig) -> dict[str, Any]:
        """None: the engine is DeepSpeed's own, not the one in accelerate."""
        if importlib.util.find_spec("deepspeed") is None:
            name = f"zero{cls.zero_stage}"
            raise ConfigError(
                f"loop.strategy {name} needs DeepSpeed, which is not installed: pip install 'dpvla[deepspeed]', or "
                "take fsdp2 or ddp"
            )
        return {}

    @classmethod
    def check_launcher(cls, own: StrategyConfig, environment: Mapping[str, str]) -> None:
        """Raise ConfigError where the launcher's DeepSpeed settings are others than those of the strategy."""
        if (file := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")).lower() not in ("", "none"):
            raise ConfigError(f"the launcher names the DeepSpeed configuration {file}, which is not read: leave it out")
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(cls.zero_stage))
        if stage != str(cls.zero_stage):
            raise ConfigError(
                f"the launcher asks for ZeRO stage {stage}, loop.strategy is {own.name}: make them the same"
            )
        for what in ("OPTIMIZER", "PARAM"):
            if (where := environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none")) not in ("", "none"):
                raise ConfigError(f"the launcher asks for offload to {where}, which is not supported: write none")

    @contextmanager
    def whole_weights(self, averaged: bool = False) -> Iterator[None]:
        """The weights are whole anyway; averaged ones, where there are any, stand in for the trained ones if asked."""
        with ExitStack() as stack:
            if self.average is not None and averaged:
                stack.enter_context(self.average.standing_in(self._parts()))
            yield

    def not_finite(self) -> list[str]:
        """Names of weights, averages and moments that hold NaN or infinity."""
        return [f"{name} ({what})" for what, name, tensor in self._held() if not_finite({name: tensor})]

    def save(self, state: Path) -> None:
        """``weights``, ``optimizer`` and, where averaged, ``ema`` as safetensors, from the main process."""
        save_kept(state, self._held(), self.accelerator.is_main_process)

    def load(self, state: Path, step: int) -> None:
        """Read back what ``save`` of any strategy wrote after update ``step``, on any number of processes."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        device = self.accelerator.device
        path = state / "weights.safetensors"
        tensors = load_tensors(path)
        with self.whole_weights():
            require_same(self.weights | buffers(self.own), tensors, path)
            moments = checkpoint.read_moments(state / "optimizer.safetensors", self.weights, step)
        self._make_moments()
        for name, buffer in buffers(self.own).items():
            buffer.copy_(tensors[name])
        for name, parameter in self.weights.items():
            # The optimizer has a copy of its own, and so has the module: the next forward needs the latter.
            value = tensors[name].to(device, torch.float32)
            self._set(parameter, value)
            safe_set_full_fp32_param(parameter, value)
            for key in checkpoint.MOMENTS:
                if (moment := moments.get(f"{name}|{key}")) is not None:
                    safe_set_full_optimizer_state(parameter, moment.to(device), key)
        for kept in self._moments_of_parts():
            kept["step"] = torch.tensor(float(step), device=kept["step"].device)
        if self.average is not None:
            path = state / "ema.safetensors"
            averages = load_tensors(path)
            with self.whole_weights():
                require_same(self.weights, averages, path)
            self.average.averages = [self._part_of(averages[name].to(device), p) for name, p in self.weights.items()]
            self.average.updates = step

    def _held(self) -> Iterator[Kept]:
        """What a checkpoint holds, each whole on every process."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self.weights.items():
            yield "weights", name, safe_get_full_fp32_param(parameter)
        for name, buffer in buffers(self.own).items():
            yield "weights", name, buffer
        if kept := self._moments_of_parts():
            for name, parameter in self.weights.items():
                yield "optimizer", f"{name}|step", kept[0]["step"].clone()
                for key in checkpoint.MOMENTS:
                    yield "optimizer", f"{name}|{key}", safe_get_full_optimizer_state(parameter, key)
        if self.average is not None:
            for (name, parameter), part in zip(self.weights.items(), self.average.averages):
                yield "ema", name, self._whole(part, parameter)

    def _moments_of_parts(self) -> list[dict[str, Any]]:
        """The optimizer's state as it lies on this process; empty before the first update."""
        return [state for state in self.optimizer.optimizer.state.values() if "step" in state]

    def _make_moments(self) -> None:
        """Zero moments, which DeepSpeed makes at the first update only: this one has no gradient and no rate."""
        self._set_rate(0.0)
        for _ in range(self.config.accumulate):
            with self.whole_weights():
                self.module.backward(torch.stack([(p * 0).sum() for p in self.weights.values()]).sum())
            self.module.step()

    def _set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _options(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,  # batches are made here: it is told nothing of their size
            "gradient_accumulation_steps": self.config.accumulate,
            "gradient_clipping": self.config.clip_norm,
            "zero_allow_untested_optimizer": True,  # torch's AdamW
            "zero_optimization": {"stage": self.zero_stage},
            "steps_per_print": 1 << 60,
        }

    # ------------------------------------------------------------------ what stage 3 does otherwise

    def _parts(self) -> list[Tensor]:
        """What this process holds of every trained weight."""
        return [parameter.detach() for parameter in self.weights.values()]

    def _part_of(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """This process's part of a tensor that is divided like ``parameter``."""
        return whole.clone()

    def _whole(self, part: Tensor, parameter: nn.Parameter) -> Tensor:
        """A tensor that is divided like ``parameter`` from its parts; called on every process."""
        return part

    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a weight of the module; called on every process."""
        parameter.data.copy_(value)


class Zero3(Zero2):
    """The same with every weight in parts, gathered where it is used."""

    Config: ClassVar[type[StrategyConfig]] = Zero3Config
    zero_stage: ClassVar[int] = 3
    settings: Zero3Config

    @contextmanager
    def whole_weights(self, averaged: bool = False) -> Iterator[None]:
        """Inside, every process holds all weights: there is nothing to gather, so each may compute what it likes."""
        import deepspeed

        weights = list(self.weights.values())
        averages: list[Tensor] = []
        if self.average is not None and averaged:
            averages = [self._whole(part, p) for part, p in zip(self.average.averages, weights)]
        everything: list[Any] = list(self.own.parameters())
        with deepspeed.zero.GatheredParameters(everything):
            own = [parameter.data for parameter in weights] if averages else []
            before = [tensor.clone() for tensor in own]  # small ones stay whole, and are not made again
            for tensor, average in zip(own, averages):
                tensor.copy_(average)
            # A layer's forward would free its weights when it is done, and gather them again from the trained parts.
            for parameter in everything:
                parameter.ds_active_sub_modules.add(HELD)
            try:
                yield
            finally:
                for parameter in everything:
                    parameter.ds_active_sub_modules.discard(HELD)
                for tensor, value in zip(own, before):
                    tensor.copy_(value)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        options["zero_optimization"]["stage3_param_persistence_threshold"] = self.settings.whole_below
        return options

    def _parts(self) -> list[Tensor]:
        return [parameter.ds_tensor.detach() for parameter in self.weights.values()]  # type: ignore[attr-defined]

    def _part_of(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = whole.new_zeros(size * self.accelerator.num_processes)
        padded[: whole.numel()] = whole.flatten()
        return padded[size * self.accelerator.process_index :][:size].clone()

    def _whole(self, part: Tensor, parameter: nn.Parameter) -> Tensor:
        gathered = part.new_empty(part.numel() * self.accelerator.num_processes)
        torch.distributed.all_gather_into_tensor(gathered, part.contiguous())
        return gathered[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]

    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)


def _autocast(accelerator: Accelerator, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments, **named)

    return run
