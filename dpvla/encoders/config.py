"""What encoders are chosen and configured by: read without loading any network, as all of ``config``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from dpvla.config import Count, Whole
from dpvla.sensors import DEFAULT_CAMERAS, Sensors

RELEASED = "florence-community/Florence-2-large"
TINY, LARGE = "tiny", "large"
"""Sources that are no files: random weights in miniature, and in the released large model's architecture."""


@dataclass(frozen=True)
class EncoderConfig:
    """What all encoders have; each adds its own keys in a subclass."""

    SOURCES: ClassVar[tuple[str, ...]] = ()
    """Keys that only say where the first weights came from: a saved model may be loaded whatever they are."""

    name: str  # which encoder
    cameras: tuple[str, ...] = DEFAULT_CAMERAS  # what it looks at, in this order
    image_width: Count = 768  # pixels of every camera's image
    image_height: Count = 384  # the data are cut and reduced to this

    def __post_init__(self) -> None:
        _ = self.sensors  # which checks them

    @property
    def sensors(self) -> Sensors:
        """Cameras and size together; raises ValueError where they cannot be."""
        return Sensors(self.cameras, self.image_width, self.image_height)


@dataclass(frozen=True)
class FlorenceConfig(EncoderConfig):
    """Florence-2 without its text decoder; multiples of 384 pixels keep it out of window padding."""

    SOURCES: ClassVar[tuple[str, ...]] = ("source", "revision")

    name: str = "florence"  # which encoder
    source: str = RELEASED  # of the weights: hub id, directory, or random ones: tiny, or large for measurements
    revision: str | None = None  # hub revision; the released large model is pinned when this is empty
    views_in_text_encoder: Literal["all", "front"] = "all"  # whose tokens the text encoder reads


@dataclass(frozen=True)
class TimmConfig(EncoderConfig):
    """An image network of timm, and what is made of its feature map."""

    SOURCES: ClassVar[tuple[str, ...]] = ("pretrained",)

    name: str = "timm"  # which encoder
    network: str = "resnet18"  # any image network that timm knows
    pretrained: bool = True  # start from its released weights
    stride: Count = 16  # feature map to take, in pixels per cell
    width: Count = 96  # of the tokens
    summary_width: Whole = 0  # all cells, reduced to so many numbers each, also reach every token; 0: they do not
    mixer_blocks: Whole = 1  # transformer blocks over all cameras' tokens
    mixer_heads: Count = 4  # their attention heads
    options: dict[str, Any] = field(default_factory=dict)  # more arguments of timm.create_model
