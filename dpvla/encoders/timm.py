"""A light scene encoder: any timm image network, a few plain transformer blocks, a learned command token."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dpvla.batch import COMMANDS
from dpvla.encoders.image_normalization import ImageNormalisation, check_images
from dpvla.layers.blocks import Block

REFUSED_OPTIONS = ("checkpoint_path", "pretrained", "cache_dir", "features_only", "out_indices", "num_classes")
"""Beginnings of options of ``timm.create_model`` that no config, and so no stranger's checkpoint, may give."""


class TimmEncoder(nn.Module):
    """Camera images and command to scene tokens ``(scene, camera * cell + 1, token_width)``.

    The feature map at ``stride`` of every camera becomes tokens with a learned embedding per camera and cell; the last
    token is the command. With ``summary_width`` every cell is also reduced to so many numbers, and one linear map of
    them all is added to every token: attention starts out almost uniform, and short runs often end before it has
    found where to look. Networks with BatchNorm keep running statistics, which averaged weights (EMA) do not share:
    they are those of the weights as trained.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool,
        image_size: tuple[int, int],
        num_cameras: int,
        stride: int,
        token_width: int,
        summary_width: int,
        mixer_blocks: int,
        mixer_heads: int,
        options: dict[str, Any] | None = None,
    ) -> None:
        """``image_size`` is (width, height); ``options`` go to ``timm.create_model``."""
        super().__init__()
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), 3)
            raise ValueError(f"timm knows no model {name!r}; nearest: {', '.join(near) or 'none'}")
        refused = sorted(key for key in options or {} if key.startswith(REFUSED_OPTIONS))
        if refused:
            raise ValueError(
                f"encoder.timm_options: {refused[0]} is not taken: it is set by the encoder, or opens files"
            )
        if token_width % mixer_heads:
            raise ValueError(f"encoder.width {token_width} is not divisible by encoder.mixer_heads {mixer_heads}")
        width, height = image_size
        self.image_size, self.num_cameras, self.token_width = image_size, num_cameras, token_width
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in (options or {}).items()}
        try:
            probe: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"encoder.timm_options do not fit timm's {name}: {error}") from None
        fitting = [i for i, reduction in enumerate(probe.feature_info.reduction()) if reduction <= stride]
        if not fitting:
            raise ValueError(f"{name} has no feature map at stride {stride} or finer: {probe.feature_info.reduction()}")
        backbone: Any = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=(fitting[-1],), **options
        )
        self.backbone = backbone
        features = backbone.feature_info.channels()[-1]
        try:
            with torch.no_grad():
                cells = tuple(backbone.eval()(torch.zeros(1, 3, height, width))[0].shape[-2:])
        except RuntimeError as error:
            raise ValueError(f"{name} takes no images of {width} x {height} pixels: {error}") from None
        backbone.train()
        self.normalise = ImageNormalisation()
        self.project = nn.Linear(features, token_width)
        self.place = nn.Parameter(torch.zeros(num_cameras, cells[0] * cells[1], token_width))
        self.command = nn.Embedding(len(COMMANDS), token_width)
        self.summary: nn.Sequential | None = None
        if summary_width:
            all_cells = num_cameras * cells[0] * cells[1] * summary_width
            self.summary = nn.Sequential(
                nn.Linear(token_width, summary_width), nn.Flatten(), nn.Linear(all_cells, token_width)
            )
        self.mixer = nn.ModuleList(
            Block(("self", "mlp"), False, token_width, mixer_heads, token_width, 2) for _ in range(mixer_blocks)
        )
        self.norm = nn.LayerNorm(token_width)
        # As large as the features: with the usual 0.02 short runs hardly learn where in the picture something is.
        nn.init.normal_(self.place, std=0.5)
        nn.init.normal_(self.command.weight, std=0.02)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, command: Tensor) -> tuple[Tensor, None]:
        """``images`` (scene, camera, 3, height, width) uint8, ``command`` (scene,) -> tokens and no mask."""
        check_images(images, self.num_cameras, self.image_size[1], self.image_size[0])
        scenes = len(images)
        pixels = self.normalise(images, self.project.weight.dtype).contiguous(memory_format=torch.channels_last)
        features = self.backbone(pixels)[0]
        tokens = self.project(features.flatten(2).transpose(1, 2))
        tokens = tokens.view(scenes, self.num_cameras, -1, self.token_width) + self.place
        tokens = tokens.flatten(1, 2)
        if self.summary is not None:
            tokens = tokens + self.summary(tokens)[:, None]
        tokens = torch.cat([tokens, self.command(command)[:, None].to(tokens.dtype)], dim=1)
        for block in self.mixer:
            tokens = block(tokens[None, :, None])[0, :, 0]
        return self.norm(tokens), None

    def architecture(self) -> None:
        """Nothing beyond the configuration is needed to build the network again."""
        return None
