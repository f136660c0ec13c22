"""Random changes of the camera images that leave the driving task as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from dpvla.random_rows import uniform


def jitter_colors(images: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Random contrast, brightness and color cast, the same for all cameras of a scene.

    Args:
        images: (scene, camera, 3, height, width) uint8.
        strength: each channel is scaled around mid-gray by a factor of 1 ± strength, a half of it shared by the three
            channels, and shifted by up to ± strength / 2 of full scale. 0 returns the images as they are.
        generator: of the random numbers, ``RandomRows`` for each scene's own; torch's global one where it is None.
    """
    if not 0 <= strength < 1:
        raise ValueError(f"color jitter must lie in [0, 1), found {strength}")
    if strength == 0:
        return images

    def draw(channels: int) -> Tensor:
        return 2 * uniform((len(images), 1, channels, 1, 1), generator, images.device) - 1

    gain = 1 + strength * (draw(1) + draw(3)) / 2
    shift = 255 * strength * (draw(1) + draw(3)) / 4
    return ((images.float() - 127.5) * gain + 127.5 + shift).round().clamp_(0, 255).to(torch.uint8)
