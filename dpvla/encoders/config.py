"""What encoders are chosen and configured by: read without loading any network, as all of ``config``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from dpvla.config import BelowOne, Count, Keys, Layers, Positive, Range, Size, check, refuse_size
from dpvla.sensors import DEFAULT_CAMERAS, Sensors

RELEASED = "florence-community/Florence-2-large"
TINY, LARGE = "tiny", "large"
"""Sources that are no files: random weights in miniature, and in the released large model's architecture."""


@dataclass(frozen=True)
class AnyEncoderConfig:
    """What all encoders have, those without cameras as well."""

    SOURCES: ClassVar[tuple[str, ...]] = ()
    """Keys that only say where the first weights came from: a saved model may be loaded whatever they are."""

    name: str  # which encoder

    @property
    def sensors(self) -> Sensors:
        """What it looks at: nothing."""
        return Sensors(())


@dataclass(frozen=True)
class EncoderConfig(AnyEncoderConfig):
    """What encoders that look at cameras have; each adds its own keys in a subclass."""

    cameras: tuple[str, ...] = DEFAULT_CAMERAS  # what it looks at, in this order
    image_width: Size = 768  # pixels of every camera's image
    image_height: Size = 384  # the data are cut and reduced to this

    def __post_init__(self) -> None:
        _ = self.sensors  # which checks them

    @property
    def sensors(self) -> Sensors:
        """Cameras and size together; raises ValueError where they cannot be."""
        return Sensors.seeing(self.cameras, self.image_width, self.image_height)


@dataclass(frozen=True)
class FlorenceConfig(EncoderConfig):
    """Florence-2 without its text decoder; multiples of 384 pixels keep it out of window padding."""

    SOURCES: ClassVar[tuple[str, ...]] = ("source", "revision")

    name: str = "florence"  # which encoder
    source: str = RELEASED  # of the weights: hub id, directory, or random ones: tiny, or large for measurements
    revision: str | None = None  # hub revision; the released large model is pinned when this is empty
    views_in_text_encoder: Literal["all", "front"] = "all"  # whose tokens the text encoder reads


_SizeOr0 = Annotated[int, Range(least=0, most=2**14)]
_SIZES = Size | tuple[Size, ...]
_SMALL = Annotated[int, Range(least=1, most=1024)] | tuple[Annotated[int, Range(least=1, most=1024)], ...]
_LAYERS = Layers | tuple[Layers, ...]
_RATIOS = Annotated[Positive, Range(most=64)] | tuple[Annotated[Positive, Range(most=64)], ...]
TIMM_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("drop_rate", "drop_path_rate", "drop_block_rate", "attn_drop_rate", "proj_drop_rate"), BelowOne),
    **dict.fromkeys(("pos_drop_rate", "patch_drop_rate"), BelowOne),
    **dict.fromkeys(("depth", "depths", "layers"), _LAYERS),
    **dict.fromkeys(("dims", "embed_dim", "embed_dims", "channels", "stem_width", "base_width", "width"), _SIZES),
    **dict.fromkeys(("img_size",), Size | tuple[Size, Size]),
    **dict.fromkeys(("patch_size", "window_size", "output_stride", "num_heads", "cardinality", "growth_rate"), _SMALL),
    **dict.fromkeys(("mlp_ratio", "mlp_ratios", "expand_ratio"), _RATIOS),
    **dict.fromkeys(("init_values", "ls_init_value"), Positive | None),
    **dict.fromkeys(("qkv_bias", "qk_norm", "class_token", "pre_norm", "conv_mlp", "avg_down"), bool),
    **dict.fromkeys(("dynamic_img_size", "dynamic_img_pad", "strict_img_size"), bool),
    "reg_tokens": Layers,
    "act_layer": Literal["relu", "relu6", "leaky_relu", "silu", "swish", "gelu", "gelu_tanh", "mish", "hard_swish"],
    "norm_layer": Literal["batchnorm2d", "groupnorm", "groupnorm1", "layernorm", "layernorm2d", "rmsnorm"],
}
"""Options of ``timm.create_model`` that a config, and so a stranger's checkpoint, may give: rates, sizes and names of
layers. Others open files, load code or decide what the encoder itself does."""


@dataclass(frozen=True)
class TimmConfig(EncoderConfig):
    """An image network of timm, and what is made of its feature map."""

    SOURCES: ClassVar[tuple[str, ...]] = ("pretrained",)

    name: str = "timm"  # which encoder
    network: str = "resnet18"  # any image network that timm knows
    pretrained: bool = True  # start from its released weights
    stride: Count = 16  # feature map to take, in pixels per cell
    width: Size = 96  # of the tokens
    summary_width: _SizeOr0 = 0  # all cells, reduced to so many numbers each, also reach every token; 0: they do not
    mixer_blocks: Layers = 1  # transformer blocks over all cameras' tokens
    mixer_heads: Size = 4  # their attention heads
    options: Annotated[dict[str, Any], Keys(TIMM_OPTIONS)] = field(default_factory=dict)  # of the network: depth, ...

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "encoder")
        if self.width % self.mixer_heads:
            raise ValueError(f"width {self.width} is not divisible by mixer_heads, {self.mixer_heads}")


@dataclass(frozen=True)
class EgoStatusConfig(AnyEncoderConfig):
    """Velocity, acceleration and command alone; the defaults are NAVSIM's ego-status MLP."""

    name: str = "ego_status"  # which encoder
    width: Size = 512  # of its hidden layers and of its one token
    layers: Annotated[int, Range(least=1, most=512)] = 3  # linear layers, each followed by a ReLU

    def __post_init__(self) -> None:
        check(self, "encoder")
        refuse_size(self.layers * self.width**2, "encoder")


@dataclass(frozen=True)
class LatentTransfuserConfig(EncoderConfig):
    """Cameras side by side and a learned bird's-eye view; the defaults are NAVSIM's Latent TransFuser.

    Three images of 480 x 256, of which the outer ones lose 104 columns left and right, make one of 1024 x 256, as the
    devkit cuts it out of 1920 x 1080.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ("pretrained",)

    name: str = "latent_transfuser"  # which encoder
    image_width: Size = 480  # pixels of every camera's image
    image_height: Size = 256  # the data are cut and reduced to this
    crop: _SizeOr0 = 104  # columns that the outer cameras' images lose on either side
    network: str = "resnet34"  # of the images: a timm network whose features come from four stages
    pretrained: bool = True  # start from its released weights
    bev_network: str = "resnet34"  # of the bird's-eye view, from nothing
    bev_size: Annotated[Size, Range(least=32, most=1024)] = 256  # pixels of the learned view, which is a square
    fusion_layers: Layers = 2  # transformer layers that exchange both views' features after each of the four stages
    fusion_heads: Size = 4  # their attention heads
    dropout: BelowOne = 0.1  # in these layers
    width: Size = 256  # of the tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "encoder")
        if 2 * self.crop >= self.image_width:
            raise ValueError(f"crop {self.crop} leaves nothing of images {self.image_width} pixels wide")
