"""The batch a driving policy is trained on and asked with. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

COMMANDS = ("left", "straight", "right", "unknown")
"""Driving commands in NAVSIM's one-hot order."""


@dataclass(frozen=True)
class DrivingBatch:
    """Scenes as the policy sees them; batch axis first.

    Frames: plans and history are (x [m], y [m], heading [rad]) of the rear axle in the ego frame at
    t = 0 (x forward, y left).
    """

    tokens: tuple[str, ...]  # (scene,)
    images: Tensor  # (scene, camera, 3, height, width) uint8; cameras front-left, front, front-right
    command: Tensor  # (scene,) int64, index into COMMANDS
    ego_status: Tensor  # (scene, 4) float32: velocity x, y [m/s], acceleration x, y [m/s^2]
    history: Tensor  # (scene, 3, 3) float32: past poses at -1.5, -1.0, -0.5 s
    plan: Tensor | None = None  # (scene, 8, 3) float32: what the recorded driver did, when known

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> DrivingBatch:
        """Copy of the batch with every tensor on ``device``."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def select(self, index: Tensor) -> DrivingBatch:
        """The scenes at ``index`` (int64 tensor), in that order."""
        chosen = {name: tensor[index] for name, tensor in self._tensors().items()}
        return replace(self, tokens=tuple(self.tokens[i] for i in index.tolist()), **chosen)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


class SceneSource(Protocol):
    """Scenes a policy can be trained on; ``navsim_bridge.data.dataset`` reads them from NAVSIM's files."""

    @property
    def tokens(self) -> Sequence[str]:
        """Names of the scenes, in order."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> DrivingBatch:
        """The scenes at ``indices``, images decoded."""


Scores = Mapping[str, Tensor]
"""Sub-scores by name, each (scene, candidate) in [0, 1]; ``score`` is the reward."""

RewardFunction = Callable[[Sequence[str], Tensor], Scores]
"""Scores plans ``(scene, candidate, 8, 3)`` of the named scenes."""
