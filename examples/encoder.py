"""An encoder to copy: the front camera in patches, a linear map of each, and a learned token for the command.

python tools/pretrain.py --plugin examples/encoder.py --model.encoder patches --model.encoder.patch 12
python tools/evaluate.py --plugin examples/encoder.py --agent dpvla --checkpoint runs/pretrain --split navtest --out x
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpvla.batch import COMMANDS, DrivingBatch
from dpvla.config import Count
from dpvla.encoders.config import EncoderConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.image_normalization import ImageNormalization
from dpvla.encoders.registry import ENCODERS


@dataclass(frozen=True)
class PatchConfig(EncoderConfig):
    """Its options: on the command line, in the YAML file, and in a checkpoint's config.json."""

    name: str = "patches"  # which encoder
    cameras: tuple[str, ...] = ("front",)  # what it looks at, in this order
    image_width: Count = 96  # pixels of every camera's image
    image_height: Count = 48  # the data are cut and reduced to this
    patch: Count = 12  # pixels of a patch in each direction; must divide the image
    width: Count = 64  # of the tokens


class PatchEncoder(Encoder[PatchConfig]):
    """Camera images and command to tokens ``(scene, camera * patch + 1, width)``."""

    Config = PatchConfig

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        sensors, size = self.sensors, config.patch
        if sensors.width % size or sensors.height % size:
            raise ValueError(f"encoder.patch {size} does not divide images of {sensors.width} x {sensors.height}")
        self.token_width = config.width
        self.normalize = ImageNormalization()
        self.patches = nn.Conv2d(3, config.width, kernel_size=size, stride=size)
        count = len(sensors.cameras) * (sensors.width // size) * (sensors.height // size)
        self.place = nn.Parameter(0.02 * torch.randn(count, config.width))
        self.command = nn.Embedding(len(COMMANDS), config.width)

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, None]:
        """One token a patch, the last one for the command; none is padding."""
        self.sensors.require(batch.images)
        pixels = self.normalize(batch.images, self.patches.weight.dtype)  # (scene * camera, 3, height, width)
        seen = self.patches(pixels).flatten(2).transpose(1, 2).reshape(len(batch), -1, self.token_width)
        return torch.cat([seen + self.place, self.command(batch.command)[:, None]], dim=1), None


ENCODERS["patches"] = PatchEncoder
