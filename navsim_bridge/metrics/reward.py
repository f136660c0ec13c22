"""A metric as the reward of fine-tuning: a callable from scene tokens and plans to sub-scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.registry import ContractError
from navsim_bridge.metrics.metric import Metric, Packed, Terms
from navsim_bridge.metrics.scenes import ScoredScenes, refuse_text
from navsim_bridge.pdm.chunks import join
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.score import check_plans

_SAMPLE = 16
_AT_ONCE = 256 << 20
"""Bytes of packed scenes that are put together at once: a scene counts as often as a call names it."""


class MetricReward:
    """Scores plans, each as if it were alone in its scene: no candidate changes another's score.

    Columns that hang on other frames (EPDMS's two-frame comfort) are left out, and ``score`` is made without them, as
    the devkit does where there is no such frame.

    All scenes are packed once and stay in memory on ``device`` when they fit ``keep_bytes``. Else they stay in the
    CPU's memory as packed for the call that first asked for them, until ``keep_bytes`` are full; further ones are
    packed for each call.
    """

    def __init__(
        self,
        metric: Metric[Any],
        scenes: ScoredScenes,
        device: torch.device | str = "cpu",
        tokens: Iterable[str] | None = None,
        keep_bytes: int = 8 << 30,
    ) -> None:
        """``scenes``: those of the metric, such as a ``MetricCache`` of its scene rules.

        ``tokens``: the scenes that will be asked for, all of them by default; a missing one is an error, and none.
        """
        refuse_text(tokens)
        self.metric, self.scenes = metric, scenes
        self.device, self.keep_bytes = torch.device(device), keep_bytes
        self.tokens = tuple(scenes.tokens) if tokens is None else tuple(dict.fromkeys(tokens))
        scenes.require(self.tokens)
        choice.check(self.device)  # not after hours of training
        if not self.tokens:
            raise ValueError("there are no scenes to score: tokens is empty")
        self._rows = {token: row for row, token in enumerate(self.tokens)}
        self._packed: Packed | None = None
        self._decided = False
        self._pieces: list[Packed] = []
        self._places: dict[str, tuple[int, int]] = {}  # token -> piece and row
        self._piece_bytes = 0

    def terms(self, tokens: Iterable[str], plans: Tensor | NDArray[Any]) -> Terms:
        """What the metric finds. ``plans``: (scene, candidate, 8, 3), ego rear-axle frame.

        Raises:
            ValueError: a token whose scene is not there; plans of another shape, or not finite.
            TypeError: ``tokens`` is one text, or ``plans`` neither a tensor nor an array of numbers.
        """
        refuse_text(tokens)
        tokens = tuple(tokens)
        most = max(1, _AT_ONCE // self._scene_bytes)
        if len(tokens) <= most:
            return self.metric.judge(self._scenes_of(tokens), plans)
        plans = check_plans(_Named(tokens, self.device), plans, self.metric.interval)
        starts = range(0, len(tokens), most)
        return join([self.metric.judge(self._scenes_of(tokens[i : i + most]), plans[i : i + most]) for i in starts], 0)

    def __call__(self, tokens: Iterable[str], plans: Tensor | NDArray[Any]) -> dict[str, Tensor]:
        """Sub-scores by name, ``score`` the reward: (scene, candidate) each, float64, on ``device``; as ``terms``.

        Raises ContractError, too: what the metric gives is not what its contract says, or a score is not finite.
        """
        refuse_text(tokens)
        tokens = tuple(tokens)
        values = self.metric.columns_of(self.terms(tokens, plans), len(tokens), plans.shape[1])
        if bad := (~values["score"].isfinite()).any(-1).nonzero().flatten().tolist():
            raise ContractError(
                f"metric {self.metric.config.name}: {len(bad)} scenes got a score that is not finite, first "
                f"{tokens[bad[0]]}"
            )
        return {column.name: values[column.name] for column in self.metric.columns if not column.optional}

    def _scenes_of(self, tokens: Sequence[str]) -> Packed:
        if not self._decided:
            self._decided = True
            if self._scene_bytes * len(self.tokens) <= self.keep_bytes:
                self._packed = self.metric.pack(self.scenes.load(self.tokens)).to(self.device)
        if self._packed is not None and all(token in self._rows for token in tokens):
            rows = np.array([self._rows[token] for token in tokens], dtype=np.int64)
            return self._packed.select(rows)  # type: ignore[no-any-return]
        return self._from_pieces(tokens).to(self.device)  # type: ignore[no-any-return]

    def _from_pieces(self, tokens: Sequence[str]) -> Packed:
        """The scenes of one call out of those packed for earlier ones, which those packed now may join."""
        missing = [token for token in dict.fromkeys(tokens) if token not in self._places]
        fresh: Any = self.metric.pack(self.scenes.load(missing)) if missing else None
        new = {token: (len(self._pieces), row) for row, token in enumerate(missing)}
        parts = []
        for piece, run in itertools.groupby(
            (new.get(token) or self._places[token] for token in tokens), lambda at: at[0]
        ):
            packed = self._pieces[piece] if piece < len(self._pieces) else fresh
            parts.append(packed.select(np.array([row for _, row in run])))
        if fresh is not None and hasattr(fresh, "concatenate"):
            size = packed_bytes(fresh)
            if self._piece_bytes + size <= self.keep_bytes:
                self._pieces.append(fresh)
                self._places |= new
                self._piece_bytes += size
        return parts[0] if len(parts) == 1 else type(parts[0]).concatenate(parts)  # type: ignore[no-any-return]

    @cached_property
    def _scene_bytes(self) -> int:
        """Of a scene among all, packed: they are padded to the largest, so the largest of a sample counts."""
        step = max(1, len(self.tokens) // _SAMPLE)
        sample = self.metric.pack(self.scenes.load(self.tokens[::step]))
        return max(1, packed_bytes(sample) // len(sample))


@dataclass(frozen=True)
class _Named:
    """Scenes of which only that much is known."""

    tokens: tuple[str, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.tokens)


def packed_bytes(packed: Any) -> int:
    """Bytes of the tensors of packed scenes."""
    if isinstance(packed, Tensor):
        return packed.numel() * packed.element_size()
    if not dataclasses.is_dataclass(packed):
        return 0
    return sum(packed_bytes(getattr(packed, field.name)) for field in dataclasses.fields(packed))
