"""The action head: a diffusion transformer over the poses of a plan, given as a list of blocks.

Every candidate of a scene shares the scene's context. Candidates are folded along the query axis of the
cross-attention, ``(scene, candidate * pose, width)`` against ``(scene, token, width)``, which is exact because
cross-attention has no coupling between queries, so keys and values are computed once per scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.batch import COMMANDS
from dpvla.layers.adaptable import BASE, Active
from dpvla.layers.block_text import parse_blocks
from dpvla.layers.blocks import Block, initialize_linears
from dpvla.models.head_configs import HeadConfig
from dpvla.plan import HISTORY_POSES, NUM_POSES

Policies = tuple[str | None, ...]
"""Policies that one head holds, by the name of their adapter; ``None`` is the base: the head without any."""
BASE_POLICY: Policies = (None,)
FREQUENCIES = 256
STATUS = 4
HISTORY = 3 * HISTORY_POSES
STATUS_SCALE = (10.0, 5.0, 5.0, 5.0)
"""Typical sizes of the ego status: m/s, m/s, m/s^2, m/s^2."""
HISTORY_SCALE = (10.0, 5.0, 1.0)
"""Of past poses: m, m, rad."""


@dataclass(frozen=True)
class Condition:
    """What the head knows of a scene besides the encoder's tokens; batch axis first."""

    command: Tensor  # (scene,) int64
    ego_status: Tensor  # (scene, 4) m/s, m/s^2
    history: Tensor  # (scene, 3, 3) m, m, rad


@dataclass(frozen=True)
class PreparedContext:
    """Per-scene work that neither the noise level nor the candidates change: computed once per rollout."""

    condition: Tensor  # (scene, width), zeros when every condition is off
    keys_values: tuple[
        tuple[Tensor, Tensor], ...
    ]  # per cross-attention, each (policy * scene, head, token, width / head)
    mask: Tensor | None  # (policy * scene, 1, 1, token), True where a token may be looked at
    active: Active | None
    num_policies: int


class DiTHead(nn.Module):
    """Noised plans and a scene's context to the denoiser's output, of one or several policies at once."""

    Config = HeadConfig
    adapters: tuple[str, ...]
    """Names of the adapters it carries, in the order of the stacked weights; see ``models.adapters``."""

    status_scale: Tensor  # (4,)
    history_scale: Tensor  # (3,)
    frequencies: Tensor  # (128,)

    def __init__(self, config: HeadConfig, channels: int, context_width: int) -> None:
        super().__init__()
        width, heads, blocks = config.resolved()
        self.width = width
        self.channels, self.context_width = channels, context_width
        self.flags = config
        self.adapters = ()
        token_width = width if config.project_context else context_width
        self.input = nn.Linear(channels, width)
        self.pose_embedding = nn.Parameter(torch.zeros(NUM_POSES, width))
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        inputs = len(COMMANDS) * config.use_command + STATUS * config.use_ego_status + HISTORY * config.use_history
        self.condition = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width)) if inputs else None
        self.has_status_token = config.status_token and self.condition is not None
        if self.has_status_token:
            self.status_embedding = nn.Parameter(torch.zeros(width))
        self.context = nn.Linear(context_width, width) if config.project_context else None
        specs = [spec for text in blocks for spec in parse_blocks(text)]
        self.blocks = nn.ModuleList(
            Block(sublayers, modulated, width, heads, token_width, config.mlp_ratio) for modulated, sublayers in specs
        )
        self.output_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.output_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, channels)
        self.register_buffer("status_scale", torch.tensor(STATUS_SCALE), persistent=False)
        self.register_buffer("history_scale", torch.tensor(HISTORY_SCALE), persistent=False)
        half = FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears; every modulation and the output start at zero (adaLN-Zero)."""
        initialize_linears(self)
        nn.init.normal_(self.pose_embedding, std=0.02)
        zeros = [self.output, self.output_modulation]
        zeros += [block.modulation for block in self.blocks if isinstance(block, Block) and block.modulated]
        for layer in zeros:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        condition: Condition,
        policies: Policies = BASE_POLICY,
    ) -> PreparedContext:
        """Everything that depends on the scene and the policies only.

        ``tokens`` (scene, token, context width), ``mask`` (scene, token) True for real tokens.
        """
        active = self._active(policies)
        vector = self._condition(condition)
        tokens = tokens.to(self.input.weight.dtype)
        if self.context is not None:
            tokens = self.context(tokens)
        if self.has_status_token:
            status = (vector + self.status_embedding)[:, None]
            tokens = torch.cat([tokens, status.to(tokens.dtype)], dim=1)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        keys_values = tuple(
            block.keys_values(tokens, active) for block in self.blocks if isinstance(block, Block) and block.has_cross
        )
        if mask is not None:
            mask = mask.repeat(len(policies), 1)[:, None, None]
        return PreparedContext(vector, keys_values, mask, active, len(policies))

    def denoise(self, x_t: Tensor, t: Tensor, context: PreparedContext) -> Tensor:
        """Network output ``(policy, scene, candidate, pose, channel)``.

        ``x_t`` (scene, candidate, pose, channel) is seen by every active policy; ``t`` is (scene, candidate) or 0-dim
        when all share one noise level (the modulation is then computed per scene).
        """
        dtype = self.input.weight.dtype
        x = self.input(x_t.to(dtype)) + self.pose_embedding
        x = x[None].expand(context.num_policies, *x.shape).contiguous()
        vector = F.silu(self._time(t) + context.condition[:, None])
        pairs = iter(context.keys_values)
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block(x, vector, next(pairs) if block.has_cross else None, context.mask, context.active)
        shift, scale = self.output_modulation(vector)[:, :, None].chunk(2, dim=-1)
        return self.output(torch.addcmul(shift, self.output_norm(x), 1 + scale))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        condition: Condition,
        policies: Policies = BASE_POLICY,
    ) -> Tensor:
        """``prepare`` and ``denoise`` in one call; output ``(len(policies), scene, candidate, pose, channel)``."""
        return self.denoise(x_t, t, self.prepare(tokens, mask, condition, policies))

    def _active(self, policies: Policies) -> Active | None:
        """Names to indices; None where no adapter is involved."""
        unknown = [name for name in policies if name is not None and name not in self.adapters]
        if unknown or not policies:
            there = ", ".join(self.adapters) or "none"
            raise ValueError(f"no adapter {', '.join(map(repr, unknown))}: the head has {there}; None is the base")
        if policies == BASE_POLICY:
            return None
        return tuple(BASE if name is None else self.adapters.index(name) for name in policies)

    def _time(self, t: Tensor) -> Tensor:
        """(scene or 1, candidate or 1, width)."""
        angles = 1000.0 * t.float()
        # A solver's t is a 0-dim CPU tensor, which a GPU takes as a number: nothing is copied or waited for.
        angles = (angles[..., None] if t.ndim else angles) * self.frequencies
        angles = angles.view(*(t.shape or (1, 1)), -1)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.time(waves.to(self.input.weight.dtype))

    def _condition(self, condition: Condition) -> Tensor:
        if self.condition is None:
            return torch.zeros(len(condition.command), self.width, device=condition.command.device)
        parts = []
        if self.flags.use_command:
            parts.append(torch.eye(len(COMMANDS), device=condition.command.device)[condition.command])
        if self.flags.use_ego_status:
            parts.append(condition.ego_status.float() / self.status_scale)
        if self.flags.use_history:
            parts.append((condition.history.float() / self.history_scale).flatten(1))
        return self.condition(torch.cat(parts, dim=-1).to(self.input.weight.dtype))
