"""From the batch's uint8 images to what image networks were trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageNormalization(nn.Module):
    """uint8 RGB to zero mean and unit variance of ImageNet, on the device the images are on."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """``images`` (..., 3, height, width) uint8 to (image, 3, height, width) of ``dtype``."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, found {images.dtype}")
        flat = images.flatten(0, -4).float()
        return torch.addcmul(self.shift.float(), flat, self.scale.float()).to(dtype)
