"""A light scene encoder: any timm image network, a few plain transformer blocks, a learned command token."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dpvla.batch import COMMANDS, DrivingBatch
from dpvla.config import refuse_size
from dpvla.encoders.config import TimmConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.image_normalization import ImageNormalization
from dpvla.files import short
from dpvla.layers.blocks import Block


class TimmEncoder(Encoder[TimmConfig]):
    """Camera images and command to scene tokens ``(scene, camera * cell + 1, width)``.

    The feature map at ``stride`` of every camera becomes tokens with a learned embedding per camera and cell; the last
    token is the command. With ``summary_width`` every cell is also reduced to so many numbers, and one linear map of
    them all is added to every token: attention starts out almost uniform, and short runs often end before it has
    found where to look. Networks with BatchNorm keep running statistics, which averaged weights (EMA) do not share:
    they are those of the weights as trained.
    """

    Config = TimmConfig

    def __init__(self, config: TimmConfig, pretrained: bool = False) -> None:
        """``pretrained``: fetch the network's released weights."""
        super().__init__(config)
        name, width = config.network, config.width
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), 3)
            raise ValueError(f"timm knows no model {name!r}; nearest: {', '.join(near) or 'none'}")
        sensors, self.token_width = self.sensors, width
        options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in config.options.items()}
        try:
            with torch.device("meta"):  # what it would take is known before memory is asked for
                probe: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
        except (TypeError, ValueError, RuntimeError, AssertionError, LookupError, ArithmeticError) as error:
            raise ValueError(f"encoder.options do not fit timm's {name}: {short(str(error))}") from None
        refuse_size(sum(parameter.numel() for parameter in probe.parameters()), "encoder.options")
        fitting = [i for i, reduction in enumerate(probe.feature_info.reduction()) if reduction <= config.stride]
        if not fitting:
            raise ValueError(
                f"{name} has no feature map at stride {config.stride} or finer: {probe.feature_info.reduction()}"
            )
        try:
            backbone: Any = timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=(fitting[-1],), **options
            )
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise ValueError(
                f"the released weights of timm's {name} cannot be had ({str(error).partition('. ')[0]}); start without "
                "them, --model.encoder.no-pretrained, or get them into the hub's local cache"
            ) from None
        self.backbone = backbone
        features = backbone.feature_info.channels()[-1]
        try:
            with torch.no_grad():
                device = next(backbone.parameters()).device  # meta, where weights are still to be read
                tensors = {name: t.to(device) for name, t in (*backbone.named_parameters(), *backbone.named_buffers())}
                image = torch.zeros(1, *sensors.shape[1:], device=device)
                seen = torch.func.functional_call(backbone.eval(), tensors, (image,))[0].shape[-2:]
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"{name} takes no images of {sensors.width} x {sensors.height} pixels: {short(str(error))}"
            ) from None
        backbone.train()
        cameras, cells = len(sensors.cameras), seen[0] * seen[1]
        refuse_size(
            cameras * cells * width * (1 + config.summary_width) + config.mixer_blocks * 8 * width**2, "encoder"
        )
        self.normalize = ImageNormalization()
        self.project = nn.Linear(features, width)
        self.place = nn.Parameter(torch.zeros(cameras, cells, width))
        self.command = nn.Embedding(len(COMMANDS), width)
        self.summary: nn.Sequential | None = None
        if config.summary_width:
            self.summary = nn.Sequential(
                nn.Linear(width, config.summary_width),
                nn.Flatten(),
                nn.Linear(cameras * cells * config.summary_width, width),
            )
        self.mixer = nn.ModuleList(
            Block(("self", "mlp"), False, width, config.mixer_heads, width, 2) for _ in range(config.mixer_blocks)
        )
        self.norm = nn.LayerNorm(width)
        # As large as the features: with the usual 0.02 short runs hardly learn where in the picture something is.
        nn.init.normal_(self.place, std=0.5)
        nn.init.normal_(self.command.weight, std=0.02)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, config: TimmConfig) -> TimmEncoder:
        """With released weights where the config asks for them."""
        return cls(config, config.pretrained)

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, None]:
        """Tokens (scene, camera * cell + 1, width); none is padding."""
        self.sensors.require(batch.images)
        scenes, cameras = batch.images.shape[:2]
        pixels = self.normalize(batch.images, self.project.weight.dtype).contiguous(memory_format=torch.channels_last)
        features = self.backbone(pixels)[0]
        tokens = self.project(features.flatten(2).transpose(1, 2))
        tokens = tokens.view(scenes, cameras, -1, self.token_width) + self.place
        tokens = tokens.flatten(1, 2)
        if self.summary is not None:
            tokens = tokens + self.summary(tokens)[:, None]
        tokens = torch.cat([tokens, self.command(batch.command)[:, None].to(tokens.dtype)], dim=1)
        for block in self.mixer:
            tokens = block(tokens[None, :, None])[0, :, 0]
        return self.norm(tokens), None
