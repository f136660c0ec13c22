"""The contract of a strategy, and how one is added.

A strategy holds the optimizer and says how an update is spread over devices and processes, and how its state is saved.
To add one, write a file with a frozen ``Config`` (a subclass of ``StrategyConfig`` that sets ``name``) and a class with
the methods of ``NamedStrategy``, and give it a name: ``STRATEGIES["mine"] = "dpvla.training.strategies.mine:Mine"`` in
``registry.py``, or ``STRATEGIES["mine"] = Mine`` in a module of your own that ``--plugin my_module`` names. It is made
as ``Mine(config, module, optimizer, accelerator)``; ``ddp.py`` shows a whole one, ``examples/strategy.py`` a small one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dpvla.training.strategies.config import StrategyConfig


class Strategy(Protocol):
    """What the loop asks of an optimizer and the weights it moves. Every method is called on every process."""

    stride: int  # updates made by one call of ``step``

    def step(self, batch: Any, step: int, lr: float) -> dict[str, Tensor]:
        """Learn from ``batch``, ending at update number ``step``; scalars to log, ``train/loss`` among them."""

    def whole_weights(self, averaged: bool = False) -> AbstractContextManager[None]:
        """Inside, the module's weights are complete on every process: for roll-outs, evaluation and saving.

        ``averaged``: the averaged ones, where there are any, which are what is evaluated and saved.
        """

    def not_finite(self) -> list[str]:
        """Names of what ``save`` would write that holds NaN or infinity."""

    def save(self, state: Path) -> None:
        """Write weights and optimizer into the directory ``state``, each process its part."""

    def load(self, state: Path, step: int) -> None:
        """Read back what ``save`` wrote after update ``step``; the number of processes may have changed."""


class NamedStrategy(Strategy, Protocol):
    """A strategy that a config chooses by name."""

    Config: ClassVar[type[StrategyConfig]]

    @classmethod
    def accelerator_options(cls, config: Any) -> dict[str, Any]:
        """More arguments of ``accelerate.Accelerator``, such as a plug-in of its, before anything is written.

        ``config`` is the whole ``LoopConfig``; raises ConfigError where it asks for what this strategy does not do.
        """
