"""The scenes that plans are scored in, by token: metric scenes from a cache, or the recording alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.splits.scenes import SceneRecord


class ScoredScenes(Protocol):
    """Where a reward has its scenes from; ``metric_cache.MetricCache`` is one."""

    @property
    def tokens(self) -> Sequence[str]:
        """Names of all scenes."""

    def require(self, tokens: Sequence[str]) -> None:
        """Raise ValueError naming the first of ``tokens`` that is not there."""

    def load(self, tokens: Sequence[str]) -> Sequence[Any]:
        """The scenes of ``tokens``, in their order, as ``Metric.pack`` takes them."""


class RecordedScenes:
    """`ScoredScenes` of a metric that looks at plan and recording alone."""

    def __init__(self, records: Iterable[SceneRecord]) -> None:
        self._records = {record.token: record for record in records}

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of all scenes."""
        return tuple(self._records)

    def require(self, tokens: Sequence[str]) -> None:
        """Raise ValueError naming the first of ``tokens`` that is not there."""
        missing = [token for token in tokens if token not in self._records]
        if missing:
            raise ValueError(f"{len(missing)} of {len(tokens)} scenes are not among those opened, first {missing[0]}")

    def load(self, tokens: Sequence[str]) -> list[SceneRecord]:
        """The records of ``tokens``, in their order."""
        self.require(tokens)
        return [self._records[token] for token in tokens]


@dataclass(frozen=True)
class RecordedPlans:
    """What the recorded drivers did, packed for scoring; scene axis first."""

    tokens: tuple[str, ...]
    plans: Tensor  # (scene, 8, 3) float64, ego frame

    @classmethod
    def of(cls, records: Sequence[SceneRecord]) -> RecordedPlans:
        """Pack records; ValueError where one has fewer than 8 future frames."""
        return cls(tuple(r.token for r in records), torch.from_numpy(np.stack([r.plan() for r in records])))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        """Device of the plans."""
        return self.plans.device

    def to(self, device: torch.device | str) -> RecordedPlans:
        """The same scenes on another device."""
        return dataclasses.replace(self, plans=self.plans.to(device))

    def select(self, index: NDArray[np.int64]) -> RecordedPlans:
        """The scenes at ``index`` (may repeat)."""
        rows = torch.from_numpy(index).to(self.device)
        return RecordedPlans(tuple(self.tokens[row] for row in index.tolist()), self.plans[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[RecordedPlans]) -> RecordedPlans:
        """The scenes of all parts, in order."""
        return cls(tuple(token for part in parts for token in part.tokens), torch.cat([part.plans for part in parts]))


def refuse_text(tokens: object) -> None:
    """Raise TypeError for one text, which would be taken letter by letter."""
    if isinstance(tokens, str | bytes):
        raise TypeError(f"tokens must be a sequence of texts, found one: {tokens!r:.80}; put it in a list")
