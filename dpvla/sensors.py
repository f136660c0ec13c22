"""What a policy looks at: cameras and the size of their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_CAMERAS = ("front_left", "front", "front_right")
"""Cameras that an encoder looks at where nothing else is said, in the order of a batch."""
MOST_CAMERAS = 64


@dataclass(frozen=True)
class Sensors:
    """What a policy looks at; whoever makes batches for it obeys.

    Cameras have plain names: ``front``, ``front_left``, ``left``, ``rear_left``, ``rear``, ...; which of them there
    are is up to the source of the scenes. A policy without cameras is given no image, and no camera file is opened.
    """

    cameras: tuple[str, ...] = DEFAULT_CAMERAS  # in the order of a batch
    width: int = 768  # pixels of every image
    height: int = 384

    def __post_init__(self) -> None:
        if len(self.cameras) > MOST_CAMERAS or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(self._cameras_must())
        if min(self.width, self.height) < 1:
            raise ValueError(f"images must have at least one pixel, found {self.width} x {self.height}")

    @classmethod
    def seeing(cls, cameras: tuple[str, ...], width: int, height: int) -> Sensors:
        """Of whoever needs images: at least one camera."""
        sensors = cls(cameras, width, height)
        if not cameras:
            raise ValueError(sensors._cameras_must())
        return sensors

    def _cameras_must(self) -> str:
        found = ", ".join(self.cameras[:MOST_CAMERAS]) or "none"
        return f"cameras must name at least one, at most {MOST_CAMERAS}, each once, found {found:.200}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images of one scene: (camera, 3, height, width)."""
        return len(self.cameras), 3, self.height, self.width

    def require(self, images: Tensor) -> None:
        """Raise ValueError for images of another camera count or size."""
        if images.ndim != 5 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (scene, {', '.join(map(str, self.shape))}): "
                "(scene, camera, color, height, width)"
            )
