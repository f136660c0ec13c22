"""The strategies by name; a plug-in adds its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from dpvla.config import OneOf
from dpvla.registry import Registry, look_up
from dpvla.training.strategies.config import StrategyConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from dpvla.training.strategies.strategy import NamedStrategy, Strategy

STRATEGIES = Registry(
    "dpvla.training.strategies.strategy:NamedStrategy",
    {
        "ddp": "dpvla.training.strategies.config:DDPConfig",
        "fsdp2": "dpvla.training.strategies.config:FSDP2Config",
        "zero2": "dpvla.training.strategies.config:Zero2Config",
        "zero3": "dpvla.training.strategies.config:Zero3Config",
    },
    ddp="dpvla.training.strategies.ddp:DDP",
    fsdp2="dpvla.training.strategies.fsdp2:FSDP2",
    zero2="dpvla.training.strategies.zero:Zero2",
    zero3="dpvla.training.strategies.zero:Zero3",
)

AnyStrategy = Annotated[StrategyConfig, OneOf(STRATEGIES, "strategy")]
"""Type of a config field that chooses a strategy by its ``name``."""


def strategy_class(config: StrategyConfig) -> type[NamedStrategy]:
    """The class that a config names."""
    found: type[NamedStrategy] = look_up(STRATEGIES, config.name, "strategy")
    return found


def make_strategy(module: nn.Module, config: Any, accelerator: Accelerator) -> Strategy:
    """The strategy of a ``LoopConfig`` for a module."""
    from dpvla.training.strategies.layer_options import apply_layer_options

    apply_layer_options(module, config.recompute, config.compile)
    make: Any = strategy_class(config.strategy)
    made: Strategy = make(config.strategy, module, config, accelerator)
    return made
