"""The batch a driving policy is trained on and asked with. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

COMMANDS = ("left", "straight", "right", "unknown")
"""Driving commands in NAVSIM's one-hot order."""

NUM_POSES = 8
"""Poses of a plan: every 0.5 s, the first at 0.5 s, the last at 4 s."""


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
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def select(self, index: Tensor) -> DrivingBatch:
        """The scenes at ``index`` (int64 tensor), in that order."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {k: v[index] for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, tokens=tuple(self.tokens[i] for i in index.tolist()), **chosen)
