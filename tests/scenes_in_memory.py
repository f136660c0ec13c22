"""A scene source and a reward that need no files: random images, plans that follow from speed and command."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpvla.batch import DrivingBatch, Scores, fake_batch
from dpvla.sensors import Sensors


class ScenesInMemory:
    """``count`` scenes for a policy that looks at ``sensors``."""

    def __init__(self, count: int, sensors: Sensors, seed: int = 0) -> None:
        self._all = fake_batch(sensors, count, torch.Generator().manual_seed(seed))

    @property
    def tokens(self) -> Sequence[str]:
        return self._all.tokens

    def __len__(self) -> int:
        return len(self._all)

    def batch(self, indices: Sequence[int]) -> DrivingBatch:
        return self._all.select(torch.as_tensor(list(indices)))

    def plans(self) -> Tensor:
        assert self._all.plan is not None
        return self._all.plan

    def ego_status(self) -> Tensor:
        return self._all.ego_status


def prefer_left(tokens: Sequence[str], plans: Tensor) -> Scores:
    """A reward in (0, 1) that grows with the end point's lateral position."""
    return {"score": torch.sigmoid(plans[:, :, -1, 1].double())}
