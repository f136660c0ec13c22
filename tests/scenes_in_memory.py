"""A scene source and a reward that need no files: random images, plans that follow from speed and command."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpvla.batch import DrivingBatch, Scores


class ScenesInMemory:
    """``count`` scenes for a policy with images of ``image_size`` (width, height)."""

    def __init__(self, count: int, image_size: tuple[int, int], seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        speed = 10 * torch.rand(count, generator=draw)
        command = torch.randint(0, 3, (count,), generator=draw)
        time = 0.5 * torch.arange(1, 9)
        turn = (1 - command)[:, None] * 0.05 * time
        along = speed[:, None] * time
        shape = (count, 3, 3, image_size[1], image_size[0])
        self._all = DrivingBatch(
            tokens=tuple(f"scene{i:04d}" for i in range(count)),
            images=torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),
            command=command,
            ego_status=torch.stack([speed, 0 * speed, 0 * speed, 0 * speed], dim=-1),
            history=torch.zeros(count, 3, 3),
            plan=torch.stack([along * turn.cos(), along * turn.sin(), turn], dim=-1),
        )

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
