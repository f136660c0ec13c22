"""A linear layer that can carry the low-rank updates of several policies, evaluated in one pass.

Running a positive and a negative policy as two networks costs two base passes; PEFT's adapter switching also trains
only the adapter that was switched on last when both forwards share one backward. Here the layer carries the stacked
updates of all policies: rows come in as ``(policy, ..., in)``, the base product is computed once over all rows, and a
batched product adds each policy's own update. Gradients reach every policy from a single backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE = -1
"""Index of the policy without any update."""

Active = tuple[int, ...]
"""Which policy each slice of the leading axis runs: indices of updates, or ``BASE``."""


class AdaptableLinear(nn.Linear):
    """``nn.Linear`` that can carry one low-rank update per policy."""

    adapter_down: nn.Parameter | None  # (policy, rank, in)
    adapter_up: nn.Parameter | None  # (policy, out, rank)
    adapter_scale: float

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_parameter("adapter_down", None)
        self.register_parameter("adapter_up", None)
        self.adapter_scale = 0.0

    def add(self, num_policies: int, rank: int, alpha: float) -> None:
        """Updates that start at zero: A is Kaiming-uniform, B is 0, so each policy equals the base.

        All policies start from the same A. What training noise does to them is then mostly common, and the guided
        combination ``(1+w) eps_pos - w eps_neg`` counts it once instead of amplifying it.
        """
        down = torch.empty(rank, self.in_features, device=self.weight.device)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        self.adapter_down = nn.Parameter(down.repeat(num_policies, 1, 1))
        up = torch.zeros(num_policies, self.out_features, rank, device=self.weight.device)
        self.adapter_up = nn.Parameter(up)
        self.adapter_scale = alpha / rank

    def forward(self, x: Tensor, active: Active | None = None, shared: bool = False) -> Tensor:
        """The linear map of each active policy.

        ``x`` is ``(policy, ..., in)``, or ``(..., in)`` when ``shared`` says that all policies see the same rows (the
        base product is then computed once). Without ``active`` this is a plain linear layer; ``shared`` then adds a
        policy axis of length 1.
        """
        if active is None or all(index == BASE for index in active):
            base = F.linear(x, self.weight, self.bias)
            if not shared:
                return base
            return base[None] if active is None else base[None].expand(len(active), *base.shape)
        down, up = self.stacked(active)
        down = down.to(x.dtype)
        if shared:
            rows = x.reshape(-1, self.in_features)
            base = F.linear(rows, self.weight, self.bias)
            reduced = F.linear(rows, down.flatten(0, 1))  # one product for all policies
            reduced = reduced.unflatten(1, (len(active), -1)).transpose(0, 1)
            up = up.to(base.dtype).transpose(1, 2)
            base = base.expand(len(active), -1, -1)
            return torch.baddbmm(base, reduced, up, alpha=self.adapter_scale).view(len(active), *x.shape[:-1], -1)
        rows = x.reshape(len(active), -1, self.in_features)
        base = F.linear(rows, self.weight, self.bias)
        reduced = torch.bmm(rows, down.transpose(1, 2))
        # In place saves a copy of every activation; the linear's backward does not need its own output.
        base = base.baddbmm_(reduced, up.to(base.dtype).transpose(1, 2), alpha=self.adapter_scale)
        return base.view(*x.shape[:-1], -1)

    def stacked(self, active: Active) -> tuple[Tensor, Tensor]:
        """A (policy, rank, in) and B (policy, out, rank) of the active policies; B is 0 for the base."""
        down, up = self.adapter_down, self.adapter_up
        if down is None or up is None:
            raise RuntimeError("this layer has no adapters: call add_adapters first")
        if active == tuple(range(len(down))):
            return down, up
        picked_up = [torch.zeros_like(up[0]) if index == BASE else up[index] for index in active]
        return torch.stack([down[max(index, 0)] for index in active]), torch.stack(picked_up)
