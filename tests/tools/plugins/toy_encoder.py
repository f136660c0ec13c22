"""A plug-in: an encoder of two cameras in an order of its own, with a mask, released weights and an architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpvla.batch import DrivingBatch
from dpvla.encoders.config import EncoderConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.registry import ENCODERS


@dataclass(frozen=True)
class TwoConfig(EncoderConfig):
    """Where its weights come from."""

    SOURCES: ClassVar[tuple[str, ...]] = ("source",)

    name: str = "two"  # which encoder
    cameras: tuple[str, ...] = ("front_right", "front")  # what it looks at
    image_width: int = 32  # pixels
    image_height: int = 18  # pixels
    source: str = "released"  # of the first weights


class Two(Encoder[TwoConfig]):
    """A token a camera, and for every command but "unknown" one more."""

    Config = TwoConfig

    def __init__(self, config: TwoConfig, width: int) -> None:
        super().__init__(config)
        self.token_width = width
        self.look = nn.Linear(3 * config.image_width * config.image_height, width)
        self.listen = nn.Embedding(4, width)

    @classmethod
    def from_config(cls, config: TwoConfig) -> Two:
        if config.source != "released":
            raise ValueError(f"encoder.source: there is no {config.source}")
        return cls(config, width=24)  # what the released files say

    @classmethod
    def from_architecture(cls, config: TwoConfig, architecture: Any) -> Two:
        return cls(config, architecture["width"])

    def architecture(self) -> dict[str, int]:
        return {"width": self.token_width}

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, Tensor]:
        self.sensors.require(batch.images)
        seen = self.look(batch.images.flatten(2).to(self.look.weight.dtype) / 255)
        tokens = torch.cat([seen, self.listen(batch.command)[:, None].to(seen.dtype)], dim=1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask[:, -1] = batch.command < 3
        return tokens, mask


ENCODERS["two"] = Two
