"""Each process holds a part of every weight, gradient and moment; layers are made whole while they compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from dpvla.config import ConfigError
from dpvla.models.layers import repeated_layers
from dpvla.training.strategies.config import FSDP2Config, OptimizerConfig, StrategyConfig
from dpvla.training.strategies.ddp import DDP
from dpvla.training.strategies.saving import ensure_group


class FSDP2(DDP):
    """DDP's update on sharded weights; every repeated layer of encoder and head is gathered by itself."""

    Config: ClassVar[type[StrategyConfig]] = FSDP2Config
    engine = "FSDP"
    settings: FSDP2Config

    @classmethod
    def accelerator_options(cls, config: OptimizerConfig) -> dict[str, Any]:
        """None: torch shards by itself."""
        try:
            from torch.distributed.fsdp import fully_shard  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"loop.strategy fsdp2 needs torch 2.6 or later, here is {torch.__version__}: update it, or take ddp"
            ) from None
        return {}

    @classmethod
    def check_launcher(cls, own: FSDP2Config, environment: Mapping[str, str]) -> None:
        """Raise ConfigError where the launcher's FSDP settings are others than those of the strategy."""
        for variable, mine, words in (
            ("FSDP_VERSION", "2", "fsdp_version: 2"),
            ("FSDP_OFFLOAD_PARAMS", "false", "fsdp_offload_params: false"),
            ("FSDP_ACTIVATION_CHECKPOINTING", "false", "fsdp_activation_checkpointing: false, and --loop.recompute"),
            ("FSDP_RESHARD_AFTER_FORWARD", str(own.reshard_after_forward).lower(),
             "what --loop.strategy.reshard-after-forward says"),
        ):  # fmt: skip
            if (theirs := environment.get(variable, mine).lower()) not in (mine, "", "none"):
                raise ConfigError(f"the launcher's configuration sets {variable.lower()} to {theirs}: write {words}")

    def _spread(self, module: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        device = self.accelerator.device
        ensure_group(device)
        module.to(device)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (self.accelerator.num_processes,)),
            "reshard_after_forward": self.settings.reshard_after_forward,
        }
        # Keys and values of a scene are views; nobody writes into them.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for layer in repeated_layers(module):  # inner ones first
            fully_shard(layer, **options)
            for name in getattr(layer, "FORWARD_METHODS", ()):
                register_fsdp_forward_method(layer, name)
        fully_shard(module, **options)
        # The root sets itself up when it is first called, and nothing inside it may be called before.
        module.touch = lambda: None  # type: ignore[assignment]
        register_fsdp_forward_method(module, "touch")
        module.touch()  # type: ignore[operator]
        return module

    def _gradients_shared(self, last: bool) -> AbstractContextManager[None]:
        self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    @contextmanager
    def whole_weights(self, averaged: bool = False) -> Iterator[None]:
        """Inside, every process holds all weights: there is nothing to gather, so each may compute what it likes."""
        from torch.distributed.fsdp import FSDPModule

        root = self.module
        layers = [module for module in root.modules() if isinstance(module, FSDPModule) and module is not root]
        with super().whole_weights(averaged):
            for part in (root, *layers):
                part.unshard()  # type: ignore[operator]
            for layer in layers:
                layer.set_reshard_after_forward(False, recurse=False)
            try:
                yield
            finally:
                for layer in layers:
                    layer.set_reshard_after_forward(self.settings.reshard_after_forward, recurse=False)
                for part in (root, *layers):
                    part.reshard()  # type: ignore[operator]

    def _whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def _like(self, tensor: Tensor, held: Tensor) -> Tensor:
        if not isinstance(held, DTensor):
            return tensor
        return distribute_tensor(tensor.to(held.device), held.device_mesh, held.placements)
