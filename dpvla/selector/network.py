"""Scene tokens and plans to predicted scores: each plan asks the tokens, and knows where it lies among the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.batch import COMMANDS
from dpvla.layers.blocks import Block, initialize_linears
from dpvla.models import SceneContext
from dpvla.models.head import HISTORY, HISTORY_SCALE, STATUS, STATUS_SCALE
from dpvla.plan import NUM_POSES, POSE_INTERVAL
from dpvla.selector.config import SelectorConfig

CONDITION = len(COMMANDS) + STATUS + HISTORY
SPEED, ACCELERATION, JERK, YAW_RATE, YAW_ACCELERATION = 10.0, 3.0, 5.0, 0.5, 1.0
"""Of a plan's motion: m/s, m/s^2, m/s^3, rad/s, rad/s^2."""
FEATURES = 16 + 8
"""Of a pose: its motion, and where it lies among the others."""


class SelectorNetwork(nn.Module):
    """Logits or normalized values of every predicted score, of each plan among those of its scene."""

    status_scale: Tensor  # (4,)
    history_scale: Tensor  # (3,)

    def __init__(self, config: SelectorConfig, context_width: int, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.context_width = context_width
        self.token_norm = nn.LayerNorm(context_width, elementwise_affine=False)
        self.context = nn.Linear(context_width, width)
        self.condition = nn.Sequential(nn.Linear(CONDITION, width), nn.SiLU(), nn.Linear(width, width))
        self.status_embedding = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(config.dropout)
        self.input = nn.Sequential(
            nn.Linear(NUM_POSES * FEATURES, 2 * width), nn.SiLU(), self.dropout, nn.Linear(2 * width, width)
        )
        self.blocks = nn.ModuleList(
            Block(("cross", "mlp"), True, width, config.heads, width, config.mlp_ratio) for _ in range(config.layers)
        )
        self.output = nn.Sequential(
            nn.LayerNorm(width), self.dropout, nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)
        )
        self.register_buffer("status_scale", torch.tensor(STATUS_SCALE), persistent=False)
        self.register_buffer("history_scale", torch.tensor(HISTORY_SCALE), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears; every modulation (adaLN-Zero) and the last layer start at zero."""
        initialize_linears(self)
        zeros: list[Any] = [block.modulation for block in self.blocks]
        for layer in (*zeros, self.output[-1]):
            nn.init.zeros_(layer.weight)

    def forward(self, context: SceneContext, plans: Tensor) -> Tensor:
        """(scene, candidate, output) of plans (scene, candidate, 8, 3) in meters and radians, ego frame; float32."""
        dtype = self.status_embedding.dtype
        status = self.condition(self._known(context).to(dtype))
        tokens = self.context(self.dropout(self.token_norm(context.tokens.to(dtype))))
        tokens = torch.cat([tokens, (status + self.status_embedding)[:, None].to(tokens.dtype)], dim=1)
        mask = context.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)[:, None, None]
        features = torch.cat([motion(plans, context.ego_status), among(plans)], dim=-1)
        x = self.input(features.flatten(-2).to(dtype))[None, ..., None, :]  # each plan as a sequence of one
        vector = F.silu(status)[:, None]
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block(x, vector, block.keys_values(tokens, None), mask)
        raw: Tensor = self.output(x[0, ..., 0, :]).float()
        return raw

    def _known(self, context: SceneContext) -> Tensor:
        """(scene, number) command, ego status and past poses, about of size one."""
        command = F.one_hot(context.command, len(COMMANDS)).float()
        status = context.ego_status.float() / self.status_scale
        return torch.cat([command, status, (context.history.float() / self.history_scale).flatten(1)], dim=-1)


def among(plans: Tensor) -> Tensor:
    """(scene, candidate, 8, number) where each plan lies among those of its scene, about of size one.

    What is off the middle of all, along and across its heading, in meters and in spreads, and how far plans spread.
    Plans of one policy scatter about what it means to do: the nearest to the middle is a better choice than most, and
    slower or faster than the others says more than slow or fast.

    Args:
        plans: (scene, candidate, 8, 3) m, m, rad.
    """
    plans = plans.float()
    off = plans - plans.mean(dim=1, keepdim=True)
    sin, cos = (wave(plans[..., 2]).mean(dim=1, keepdim=True) for wave in (torch.sin, torch.cos))
    heading = torch.atan2(sin, cos)
    along = heading.cos() * off[..., 0] + heading.sin() * off[..., 1]
    across = heading.cos() * off[..., 1] - heading.sin() * off[..., 0]
    turned = plans[..., 2] - heading
    turned = torch.atan2(turned.sin(), turned.cos())
    long, wide = (values.square().mean(dim=1, keepdim=True).sqrt().expand_as(values) for values in (along, across))
    return torch.stack(
        [
            along / 2, across, 5 * turned, along / (long + 0.2), across / (wide + 0.1),
            torch.linalg.vector_norm(off[..., :2], dim=-1) / 2, long / 2, wide,
        ],
        dim=-1,
    )  # fmt: skip


def motion(plans: Tensor, ego_status: Tensor) -> Tensor:
    """(scene, candidate, 8, number) where plans lead and how they move, about of size one.

    Poses, what they are off a constant speed straight ahead, and speed, acceleration and jerk along and across the
    heading, from the state at t = 0 on: comfort is a matter of these, and a network would have to learn to subtract.

    Args:
        plans: (scene, candidate, 8, 3) m, m, rad. ego_status: (scene, 4) m/s, m/s^2.
    """
    plans, status = plans.float(), ego_status.float()[:, None, None]
    x, y, heading = plans.unbind(-1)
    start = torch.zeros_like(plans[..., :1, :])
    step = torch.diff(torch.cat([start, plans], dim=-2), dim=-2)
    turned = torch.atan2(step[..., 2].sin(), step[..., 2].cos())
    middle = heading - turned / 2  # between two poses, where the step is taken
    along = (middle.cos() * step[..., 0] + middle.sin() * step[..., 1]) / POSE_INTERVAL
    across = (middle.cos() * step[..., 1] - middle.sin() * step[..., 0]) / POSE_INTERVAL
    yaw_rate = turned / POSE_INTERVAL

    def change(values: Tensor, first: Tensor) -> Tensor:
        before = torch.cat([first.expand(*values.shape[:-1], 1), values[..., :-1]], dim=-1)
        return (values - before) / POSE_INTERVAL

    acceleration = change(along, status[..., 0])
    jerk = change(acceleration, status[..., 2])
    yaw_acceleration = change(yaw_rate, yaw_rate[..., :1])
    times = POSE_INTERVAL * torch.arange(1, NUM_POSES + 1, device=plans.device)
    ahead = torch.linalg.vector_norm(status[..., :2], dim=-1) * times
    return torch.stack(
        [
            x / 20, y / 5, heading.cos(), heading.sin(), (x - ahead) / 5, y,
            along / SPEED, across, acceleration / ACCELERATION, jerk / JERK,
            yaw_rate / YAW_RATE, yaw_acceleration / YAW_ACCELERATION, along * yaw_rate / ACCELERATION,
            change(along * yaw_rate, along[..., :1] * yaw_rate[..., :1]) / JERK,
            (acceleration / ACCELERATION).square(), (yaw_rate / YAW_RATE).square(),
        ],
        dim=-1,
    )  # fmt: skip
