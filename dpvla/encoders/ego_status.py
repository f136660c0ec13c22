"""What the car knows of itself, without a camera: velocity, acceleration and command."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.batch import COMMANDS, DrivingBatch
from dpvla.encoders.config import EgoStatusConfig
from dpvla.encoders.encoder import Encoder

STATUS = 4 + len(COMMANDS)


def status_of(batch: DrivingBatch) -> Tensor:
    """(scene, 8) float32 velocity x, y [m/s], acceleration x, y [m/s^2], and the command one-hot, as they are."""
    command = F.one_hot(batch.command, len(COMMANDS))
    return torch.cat([batch.ego_status.float(), command.float()], dim=-1)


class EgoStatusEncoder(Encoder[EgoStatusConfig]):
    """``status_of`` through linear layers with ReLUs to one token ``(scene, 1, width)``.

    With the head ``regression``, without decoder layers, it is the devkit's ``EgoStatusMLPAgent``.
    """

    Config = EgoStatusConfig

    def __init__(self, config: EgoStatusConfig) -> None:
        super().__init__(config)
        self.token_width = config.width
        widths = [STATUS, *[config.width] * config.layers]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*layers)

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, None]:
        """The one token; images are not looked at."""
        seen: Tensor = self.layers(status_of(batch))
        return seen[:, None], None
