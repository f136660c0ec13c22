"""The regression head: tokens to one plan, by a learned query that reads them or off their mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.config import refuse_size
from dpvla.layers.blocks import CrossAttention, SelfAttention
from dpvla.models.head_configs import RegressionConfig
from dpvla.plan import NUM_POSES


class RegressionHead(nn.Module):
    """Tokens (scene, token, width) to a plan (scene, 8, 3) in m, m, rad."""

    Config = RegressionConfig

    def __init__(self, config: RegressionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        if config.layers and width % config.heads:
            raise ValueError(f"head.heads {config.heads} does not divide the encoder's tokens, which are {width} wide")
        refuse_size(config.layers * width * (8 * width + 2 * config.feed_forward) + width * config.hidden, "head")
        if config.layers:
            self.query = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.feed_forward) for _ in range(config.layers)
        )
        numbers = 3 * NUM_POSES
        self.poses = (
            nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, numbers))
            if config.hidden
            else nn.Linear(width, numbers)
        )

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """``mask`` (scene, token) is True for real tokens; None where all are."""
        if self.layers:
            x = self.query.expand(len(tokens), 1, -1)
            for layer in self.layers:
                x = layer(x, tokens, None if mask is None else mask[:, None, None])
            read = x[:, 0]
        elif mask is None:
            read = tokens.mean(dim=1)
        else:
            read = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        poses: Tensor = self.poses(read).unflatten(-1, (NUM_POSES, 3))
        if not self.config.bounded_heading:
            return poses
        return torch.cat([poses[..., :2], math.pi * poses[..., 2:].tanh()], dim=-1)


class DecoderLayer(nn.Module):
    """A post-norm transformer decoder layer with a ReLU, as of ``nn.TransformerDecoderLayer``, without dropout."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.cross = SelfAttention(width, heads), CrossAttention(width, heads, width, fused=False)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` (scene, query, width), ``tokens`` (scene, token, width), ``mask`` (scene, 1, 1, token)."""
        x = self.norms[0](x + self.attention(x[None])[0])
        x = self.norms[1](x + self.cross(x[None], self.cross.keys_values(tokens, None), mask)[0])
        return self.norms[2](x + self.down(F.relu(self.up(x))))
