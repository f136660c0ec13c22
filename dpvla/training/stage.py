"""The contract of a training stage: what one kind of training gives the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

Track = Callable[[int, Mapping[str, float]], None]
"""Notes named numbers at a step."""

WholeWeights = Callable[[], AbstractContextManager[None]]
"""Inside, the module's weights are complete, as trained so far: for whatever is computed outside its ``forward``."""


class Stage(Protocol):
    """What one kind of training gives the loop."""

    module: nn.Module  # forward(batch) -> (loss, {name: scalar tensor}); its trainable parameters are optimized

    def batches(self, first_step: int, track: Track, whole_weights: WholeWeights) -> Iterator[Any]:
        """Batches of steps ``first_step``, ``first_step + 1``, ...; each depends on its step alone."""

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Numbers on held-out scenes; called with whole, averaged weights."""

    def save(self, directory: Path) -> None:
        """Write what users load (``model/``, ``adapters/``, ``run.yaml``) and what ``restore`` needs.

        Called on the main process, with whole, averaged weights.
        """

    def restore(self, directory: Path) -> None:
        """Read back what ``save`` wrote beside the weights; called on every process, with whole weights."""
