"""Transformer blocks, given as text: attention among poses, attention to a scene's tokens, MLPs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.layers.adaptable import Active, AdaptableLinear


def initialize_linears(module: nn.Module) -> None:
    """Xavier weights and zero biases of every linear layer inside."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


class SelfAttention(nn.Module):
    """Attention among the poses of one candidate."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = AdaptableLinear(width, 3 * width)
        self.out = AdaptableLinear(width, width)

    def forward(self, x: Tensor, active: Active | None = None) -> Tensor:
        """``x`` (policy, sequence, pose, width)."""
        policies, sequences, poses, width = x.shape
        qkv = self.qkv(x, active).view(policies * sequences, poses, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(policies, sequences, poses, width)
        return self.out(y, active)


class CrossAttention(nn.Module):
    """Attention from the poses of all candidates of a scene to the scene's tokens."""

    def __init__(self, width: int, heads: int, context_width: int, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = AdaptableLinear(width, width)
        if fused:
            self.kv = AdaptableLinear(context_width, 2 * width)
        else:
            self.k = AdaptableLinear(context_width, width)
            self.v = AdaptableLinear(context_width, width)
        self.fused = fused
        self.out = AdaptableLinear(width, width)

    def keys_values(self, context: Tensor, active: Active | None) -> tuple[Tensor, Tensor]:
        """``context`` (scene, token, context width) -> two of (policy * scene, head, token, width / head)."""
        if self.fused:
            keys, values = self.kv(context, active, shared=True).chunk(2, dim=-1)
        else:
            keys, values = self.k(context, active, shared=True), self.v(context, active, shared=True)
        split = (self.heads, -1)
        return (
            keys.flatten(0, 1).unflatten(-1, split).transpose(1, 2),
            values.flatten(0, 1).unflatten(-1, split).transpose(1, 2),
        )

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None, active: Active | None = None
    ) -> Tensor:
        """``x`` (policy, scene, candidate * pose, width)."""
        policies, scenes, queries, width = x.shape
        q = self.q(x, active).view(policies * scenes, queries, self.heads, width // self.heads).transpose(1, 2)
        keys, values = keys_values
        y = F.scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype), attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(policies, scenes, queries, width), active)


class MLP(nn.Module):
    """Two linear layers with a GELU between them (the exact one: its tanh form is five times slower on CPUs)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = AdaptableLinear(width, hidden)
        self.down = AdaptableLinear(hidden, width)

    def forward(self, x: Tensor, active: Active | None = None) -> Tensor:
        """``x`` (policy, ..., width)."""
        return self.down(F.gelu(self.up(x, active)), active)


class Block(nn.Module):
    """Pre-norm sublayers with residuals; ``modulated`` takes shift, scale and gate from the condition (adaLN-Zero)."""

    FORWARD_METHODS = ("keys_values",)
    """Called beside ``forward``: where weights are sharded, they are whole in these."""

    def __init__(
        self, sublayers: tuple[str, ...], modulated: bool, width: int, heads: int, context_width: int, mlp_ratio: int
    ) -> None:
        super().__init__()
        self.sublayers = sublayers
        self.modulated = modulated
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6, elementwise_affine=not modulated) for _ in sublayers)
        if "self" in sublayers:
            self.attention = SelfAttention(width, heads)
        if "cross" in sublayers or "fused-cross" in sublayers:
            self.cross = CrossAttention(width, heads, context_width, fused="fused-cross" in sublayers)
        if "mlp" in sublayers:
            self.mlp = MLP(width, mlp_ratio * width)
        if modulated:
            self.modulation = nn.Linear(width, 3 * len(sublayers) * width)

    @property
    def has_cross(self) -> bool:
        """Whether the block looks at the context."""
        return hasattr(self, "cross")

    def keys_values(self, context: Tensor, active: Active | None) -> tuple[Tensor, Tensor]:
        """Of the cross-attention: ``context`` (scene, token, context width) -> ``CrossAttention.keys_values``."""
        return self.cross.keys_values(context, active)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        active: Active | None = None,
    ) -> Tensor:
        """``x`` (policy, scene, candidate, pose, width); ``condition`` (scene, candidate or 1, width), after SiLU."""
        policies, scenes, candidates, poses, width = x.shape
        pieces: tuple[Tensor, ...] = ()
        if self.modulated:
            assert condition is not None
            pieces = self.modulation(condition)[:, :, None].chunk(3 * len(self.sublayers), dim=-1)
        for index, (kind, norm) in enumerate(zip(self.sublayers, self.norms)):
            y = norm(x)
            if self.modulated:
                shift, scale, gate = pieces[3 * index : 3 * index + 3]
                y = torch.addcmul(shift, y, 1 + scale)
            if kind == "self":
                y = self.attention(y.view(policies, scenes * candidates, poses, width), active).view_as(x)
            elif kind == "mlp":
                y = self.mlp(y, active)
            else:
                assert keys_values is not None
                y = self.cross(y.view(policies, scenes, -1, width), keys_values, mask, active).view_as(x)
            x = torch.addcmul(x, gate, y) if self.modulated else x + y
        return x
