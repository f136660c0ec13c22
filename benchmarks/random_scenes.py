"""Scenes that need no data: random pictures, and plans that follow from speed and command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dpvla.batch import DrivingBatch, Sensors, fake_batch


class RandomScenes:
    """A ``SceneSource`` of random pictures under given tokens."""

    def __init__(self, tokens: Sequence[str], sensors: Sensors) -> None:
        self.tokens = tuple(tokens)
        made = fake_batch(sensors, len(self.tokens), torch.Generator().manual_seed(0))
        self.whole = replace(made, tokens=self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> DrivingBatch:
        """The scenes at ``indices``."""
        return self.whole.select(torch.as_tensor(list(indices)))
