"""The batch a driving policy is trained on and asked with. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from dpvla.device import to_device
from dpvla.plan import HISTORY_POSES, NUM_POSES, POSE_INTERVAL
from dpvla.random_rows import RandomRows
from dpvla.sensors import Sensors

COMMANDS = ("left", "straight", "right", "unknown")
"""Driving commands in NAVSIM's one-hot order."""


@dataclass(frozen=True)
class DrivingBatch:
    """Scenes as the policy sees them; batch axis first.

    Frames: plans and history are (x [m], y [m], heading [rad]) of the rear axle in the ego frame at
    t = 0 (x forward, y left).
    """

    tokens: tuple[str, ...]  # (scene,)
    images: Tensor  # (scene, camera, 3, height, width) uint8; cameras as in the policy's Sensors
    command: Tensor  # (scene,) int64, index into COMMANDS
    ego_status: Tensor  # (scene, 4) float32: velocity x, y [m/s], acceleration x, y [m/s^2]
    history: Tensor  # (scene, 3, 3) float32: past poses at -1.5, -1.0, -0.5 s
    plan: Tensor | None = None  # (scene, 8, 3) float32: what the recorded driver did, when known
    random: RandomRows | None = None  # in training, each scene's own random numbers
    weight: float = 1.0  # in training: of this mean over scenes in the mean over processes, see training.shares

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> DrivingBatch:
        """Copy of the batch with every tensor on ``device``; what comes to the CPU is there when it is given."""
        later = torch.device(device).type != "cpu"  # a copy from a GPU would be read before it is made
        moved = {name: tensor.to(device, non_blocking=later) for name, tensor in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def pin_memory(self) -> DrivingBatch:
        """Copy in page-locked memory, from which a GPU copies while the CPU goes on."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})  # type: ignore[arg-type]

    def select(self, index: Tensor) -> DrivingBatch:
        """The scenes at ``index`` (int64 tensor on the CPU), in that order."""
        places = to_device(index, self.images.device)
        chosen = {name: tensor[places] for name, tensor in self._tensors().items()}
        rows = index.tolist()
        random = None if self.random is None else self.random.select(rows)
        return replace(self, tokens=tuple(self.tokens[i] for i in rows), random=random, **chosen)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


def fake_batch(sensors: Sensors, scenes: int, generator: torch.Generator | None = None) -> DrivingBatch:
    """Scenes that need no files: random images, and plans that follow from speed and command.

    Args:
        generator: of the random numbers; torch's own where it is None.
    """
    speed = 10 * torch.rand(scenes, generator=generator)
    command = torch.randint(0, len(COMMANDS), (scenes,), generator=generator)
    time = POSE_INTERVAL * torch.arange(1, NUM_POSES + 1)
    past = POSE_INTERVAL * torch.arange(-HISTORY_POSES, 0)
    turn = torch.tensor([0.05, 0.0, -0.05, 0.0])[command, None] * time  # heading, in the order of COMMANDS
    along = speed[:, None] * time
    zero = torch.zeros(scenes)
    behind = speed[:, None] * past
    return DrivingBatch(
        tokens=tuple(f"scene{index:04d}" for index in range(scenes)),
        images=torch.randint(0, 256, (scenes, *sensors.shape), generator=generator, dtype=torch.uint8),
        command=command,
        ego_status=torch.stack([speed, zero, zero, zero], dim=-1),
        history=torch.stack([behind, torch.zeros_like(behind), torch.zeros_like(behind)], dim=-1),
        plan=torch.stack([along * turn.cos(), along * turn.sin(), turn], dim=-1),
    )


class SceneSource(Protocol):
    """Scenes a policy can be trained on; ``navsim_bridge.data.dataset`` reads them from NAVSIM's files."""

    @property
    def tokens(self) -> Sequence[str]:
        """Names of the scenes, in order."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> DrivingBatch:
        """The scenes at ``indices``, images decoded."""


Scores = Mapping[str, Tensor]
"""Sub-scores by name, each (scene, candidate); ``score`` is the reward: any finite number, more is better."""

RewardFunction = Callable[[Sequence[str], Tensor], Scores]
"""Scores plans ``(scene, candidate, 8, 3)`` of the named scenes."""
