"""The PDM score as the reward of fine-tuning: a callable from scene tokens and plans to sub-scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.metric_cache.cache import MetricCache, refuse_text
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import PDMScores, score_plans

SUB_SCORES = (
    "no_at_fault_collisions", "drivable_area_compliance", "ego_progress", "time_to_collision_within_bound", "comfort",
    "driving_direction_compliance", "score",
)  # fmt: skip
"""Names and order of the devkit's columns."""
_SAMPLE = 16


class PDMReward:
    """Scores plans against the scenes of a metric cache, one reference-and-candidate pair at a time.

    All scenes are packed once and stay in memory on ``device`` when they fit ``keep_bytes``; else those of each
    call are packed for the call.
    """

    def __init__(
        self,
        cache: MetricCache | Path | str,
        device: torch.device | str = "cpu",
        tokens: Iterable[str] | None = None,
        keep_bytes: int = 8 << 30,
    ) -> None:
        """``cache``: an open one, or its folder.

        ``tokens``: the scenes that will be asked for, all of the cache by default; a missing one is an error, and none.
        """
        refuse_text(tokens)
        self.cache = MetricCache(cache) if isinstance(cache, (str, Path)) else cache
        self.device, self.keep_bytes = torch.device(device), keep_bytes
        self.tokens = self.cache.tokens if tokens is None else tuple(dict.fromkeys(tokens))
        self.cache.require_metric("pdms")
        self.cache.require(self.tokens)
        if not self.tokens:
            raise ValueError("there are no scenes to score: tokens is empty")
        self._rows = {token: row for row, token in enumerate(self.tokens)}
        self._packed: SceneBatch | None = None
        self._decided = False

    def scores(self, tokens: Iterable[str], plans: Tensor | NDArray[Any]) -> PDMScores:
        """Scores with what explains them. ``plans``: (scene, candidate, 8, 3), ego rear-axle frame.

        Raises:
            CacheError: a token that the cache does not hold.
            ValueError: plans of another shape, or not finite.
            TypeError: ``tokens`` is one text, or ``plans`` neither a tensor nor an array of numbers.
        """
        refuse_text(tokens)
        return score_plans(self._scenes(tuple(tokens)), plans)

    def __call__(self, tokens: Iterable[str], plans: Tensor | NDArray[Any]) -> dict[str, Tensor]:
        """Sub-scores by the devkit's name, ``score`` among them: (scene, candidate) each, float64, on ``device``."""
        scores = self.scores(tokens, plans)
        return {name: getattr(scores, name) for name in SUB_SCORES}

    def _scenes(self, tokens: Sequence[str]) -> SceneBatch:
        if not self._decided:
            self._decided = True
            if self._estimated_bytes() <= self.keep_bytes:
                self._packed = SceneBatch.from_scenes(self.cache.load(self.tokens)).to(self.device)
        if self._packed is not None and all(token in self._rows for token in tokens):
            return self._packed.select(np.array([self._rows[token] for token in tokens], dtype=np.int64))
        return SceneBatch.from_scenes(self.cache.load(tokens)).to(self.device)

    def _estimated_bytes(self) -> int:
        """Of all scenes packed together: they are padded to the largest, so the largest of a sample counts."""
        step = max(1, len(self.tokens) // _SAMPLE)
        sample = self.cache.load(self.tokens[::step])
        packed = SceneBatch.from_scenes(sample)
        return packed_bytes(packed) * len(self.tokens) // len(sample) if sample else 0


def packed_bytes(batch: SceneBatch) -> int:
    """Bytes of the tensors of a batch."""
    tensors = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
