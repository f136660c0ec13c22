"""V(scene): the reward that a policy's plans can expect, from what conditions them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpvla.batch import COMMANDS
from dpvla.models import SceneContext

SPEEDS = 10.0
"""Typical m/s, by which the ego status is divided."""


class Critic(nn.Module):
    """Two hidden layers on the mean of the encoder's tokens, the command and the ego status; 0 at first."""

    def __init__(self, token_width: int, width: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(token_width)
        inputs = token_width + len(COMMANDS) + 4
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, context: SceneContext) -> Tensor:
        """Values (scene,), float32."""
        tokens = context.tokens.float()
        if context.mask is None:
            mean = tokens.mean(1)
        else:
            real = context.mask[..., None]
            mean = (tokens * real).sum(1) / real.sum(1)
        command = torch.eye(len(COMMANDS), device=context.device)[context.command]
        inputs = torch.cat([self.norm(mean), command, context.ego_status.float() / SPEEDS], dim=-1)
        values: Tensor = self.layers(inputs)
        return values.squeeze(-1).float()
