"""Scenes that need no data: random pictures, and plans that follow from speed and command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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


def write_jpeg(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """A JPEG of ``size`` (width, height) that takes as many bytes as a photograph's: soft shapes and some grain."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, 256, (max(size[1] // 32, 2), max(size[0] // 32, 2), 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(shapes).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(0, 8, soft.shape)
    Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return path
