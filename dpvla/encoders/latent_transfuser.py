"""Latent TransFuser: image features and a learned bird's-eye view, fused stage by stage; no lidar.

As the devkit's ``TransfuserAgent`` with ``latent: true`` (Chitta et al., arXiv 2205.15997): where TransFuser has the
lidar's histogram, a learned picture stands, the same for every scene. After each of four stages a transformer over the
cells of both views lets them exchange features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.batch import DrivingBatch
from dpvla.config import refuse_size
from dpvla.encoders.config import LatentTransfuserConfig
from dpvla.encoders.ego_status import STATUS, status_of
from dpvla.encoders.encoder import Encoder
from dpvla.files import short

STAGES = 4
MLP_RATIO = 4


class LatentTransfuserEncoder(Encoder[LatentTransfuserConfig]):
    """Camera images, ego status and command to tokens ``(scene, cell + 1, width)``.

    The cells are those of the bird's-eye view after the last stage (8 x 8 at 256 pixels); the last token is the ego
    status with the command. Pixels are divided by 255 and not normalized further, as in the devkit.
    """

    Config = LatentTransfuserConfig

    def __init__(self, config: LatentTransfuserConfig, pretrained: bool = False) -> None:
        """``pretrained``: fetch the image network's released weights."""
        super().__init__(config)
        self.token_width = config.width
        self.images = Stages("network", config.network, 3, pretrained)
        self.bev = Stages("bev_network", config.bev_network, 1)
        self.latent = nn.Parameter(torch.randn(1, 1, config.bev_size, config.bev_size))
        images, bev = self._shapes()
        cells = images[-1][1] * images[-1][2], bev[-1][1] * bev[-1][2]
        refuse_size(sum(config.fusion_layers * 12 * of[0] ** 2 + sum(cells) * of[0] for of in images), "encoder")
        self.fusions = nn.ModuleList(
            Fusion(of_images[0], of_bev[0], images[-1][1:], bev[-1][1:], config)
            for of_images, of_bev in zip(images, bev)
        )
        self.reduce = nn.Conv2d(bev[-1][0], config.width, kernel_size=1)
        self.status = nn.Linear(STATUS, config.width)
        self.place = nn.Parameter(torch.randn(cells[1] + 1, config.width))

    @classmethod
    def from_config(cls, config: LatentTransfuserConfig) -> LatentTransfuserEncoder:
        """With the image network's released weights where the config asks for them."""
        return cls(config, config.pretrained)

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, None]:
        """Tokens (scene, cell + 1, width); none is padding."""
        self.sensors.require(batch.images)
        images = side_by_side(batch.images, self.config.crop).to(self.latent.dtype) / 255
        bev = self.latent.expand(len(batch), -1, -1, -1)
        for of_images, of_bev, fuse in zip(self.images.stages, self.bev.stages, self.fusions):
            images, bev = fuse(of_images(images), of_bev(bev))
        cells = self.reduce(bev).flatten(2).transpose(1, 2)
        status = self.status(status_of(batch))[:, None]
        return torch.cat([cells, status.to(cells.dtype)], dim=1) + self.place, None

    def repeated_layers(self) -> list[nn.Module]:
        """The transformer layers of the fusions."""
        return [layer for fusion in self.fusions if isinstance(fusion, Fusion) for layer in fusion.layers]

    def _shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """(channel, height, width) after every stage, of the images and of the bird's-eye view."""
        sensors = self.sensors
        picture = torch.empty(1, len(sensors.cameras), *sensors.shape[1:], device="meta")
        return self.images.shapes(side_by_side(picture, self.config.crop)), self.bev.shapes(self.latent.to("meta"))


def side_by_side(images: Tensor, crop: int) -> Tensor:
    """(scene, camera, 3, height, width) to (scene, 3, height, all widths), from left to right.

    The first and the last camera lose ``crop`` columns on either side, where there are several.
    """
    first, *others = images.unbind(1)
    if not others:
        return first
    inside = slice(crop, images.shape[-1] - crop)
    return torch.cat([first[..., inside], *others[:-1], others[-1][..., inside]], dim=-1)


class Stages(nn.Module):
    """A timm network in four parts, each of which ends with features; a stem belongs to the first."""

    def __init__(self, key: str, name: str, channels: int, pretrained: bool = False) -> None:
        """``key``: of the config, for errors. Raises ValueError for a network that has not four such stages."""
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"{key}: timm knows no model {short(name, 80)}")
        try:
            network: Any = timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=channels)
        except (OSError, RuntimeError, TypeError) as error:
            if not pretrained:
                raise ValueError(f"{key}: timm's {name} gives no features: {short(str(error))}") from None
            raise ValueError(
                f"the released weights of timm's {name} cannot be had ({str(error).partition('. ')[0]}); start without "
                "them, --model.encoder.no-pretrained, or get them into the hub's local cache"
            ) from None
        found = list(_parts(network))
        if len(found) < STAGES:
            raise ValueError(f"{key}: timm's {name} is not in {STAGES} stages, as resnet34 is")
        stem = [layer for part in found[:-STAGES] for layer in part]
        first, *others = found[-STAGES:]
        self.stages = nn.ModuleList(nn.Sequential(*layers) for layers in ([*stem, *first], *others))

    def shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        """(channel, height, width) after every stage; ``x`` on the meta device."""
        found = []
        with torch.no_grad():
            for stage in self.stages:
                tensors = {k: t.to("meta") for k, t in (*stage.named_parameters(), *stage.named_buffers())}
                mode = stage.training
                x = torch.func.functional_call(stage.eval(), tensors, (x.float(),))
                stage.train(mode)
                found.append(tuple(x.shape[1:]))
        return found


def _parts(network: Any) -> Iterator[list[nn.Module]]:
    """Layers of a network up to each that gives features; nothing of one that is no list of layers."""
    part: list[nn.Module] = []
    for name, layer in network.items() if hasattr(network, "return_layers") else ():
        part.append(layer)
        if name in network.return_layers:
            yield part
            part = []


class Fusion(nn.Module):
    """Attention among the cells of both views, averaged to the size of the last stage; each gets the result added."""

    def __init__(
        self,
        image_channels: int,
        bev_channels: int,
        image_cells: tuple[int, ...],
        bev_cells: tuple[int, ...],
        config: LatentTransfuserConfig,
    ) -> None:
        super().__init__()
        width = image_channels
        if width % config.fusion_heads:
            raise ValueError(f"fusion_heads {config.fusion_heads} does not divide {width} channels of {config.network}")
        self.image_cells, self.bev_cells = image_cells, bev_cells
        self.to_images = nn.Conv2d(bev_channels, width, kernel_size=1)
        self.to_bev = nn.Conv2d(width, bev_channels, kernel_size=1)
        count = image_cells[0] * image_cells[1] + bev_cells[0] * bev_cells[1]
        self.place = nn.Parameter(torch.zeros(1, count, width))
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            FusionLayer(width, config.fusion_heads, config.dropout) for _ in range(config.fusion_layers)
        )
        self.norm = nn.LayerNorm(width)
        for part in self.layers.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, images: Tensor, bev: Tensor) -> tuple[Tensor, Tensor]:
        """``images`` (scene, channel, height, width) and ``bev`` likewise; both as they came, with more in them."""
        of_images = _averaged(images, self.image_cells)
        of_bev = self.to_images(_averaged(bev, self.bev_cells))
        cells = torch.cat([of_images.flatten(2), of_bev.flatten(2)], dim=2).transpose(1, 2)
        x = self.drop(self.place + cells)
        for layer in self.layers:
            x = layer(x)
        mixed = self.norm(x).transpose(1, 2).to(images.dtype)
        seen = mixed[..., : of_images[0, 0].numel()].unflatten(2, self.image_cells)
        above = self.to_bev(mixed[..., of_images[0, 0].numel() :].unflatten(2, self.bev_cells))
        return images + _stretched(seen, images), bev + _stretched(above, bev)


def _averaged(x: Tensor, cells: tuple[int, ...]) -> Tensor:
    """Features averaged to ``cells``: sizes halve from stage to stage, so that each is a whole number of pixels."""
    return F.adaptive_avg_pool2d(x, (cells[0], cells[1]))


def _stretched(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class FusionLayer(nn.Module):
    """A pre-norm transformer layer with a ReLU."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (scene, cell, width)."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        x = x + self.drop(self.out(seen.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.relu(self.up(self.norms[1](x)))))
