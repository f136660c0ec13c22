"""Small networks side by side: all members of all seeds are one batched matmul per layer.

Parameters have seed · member as their first axis, the members of a seed next to each other.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.state_based.networks.options import Activation, LayerNorm
from dpvla.state_based.networks.stacked_matmul import batched_affine

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),  # flax's default
    "mish": F.mish,
    "swish": F.silu,
    "relu": F.relu,
}
LAYER_NORM_EPS = 1e-6  # flax's default


class StackedLinear(nn.Module):
    """``members`` linear layers for each seed: Glorot-uniform weights (times ``scale``), zero biases."""

    def __init__(
        self, generators: Sequence[torch.Generator], members: int, inputs: int, outputs: int, scale: float = 1.0
    ) -> None:
        """``generators``: one per seed, on the CPU; each fills the weights of its own seed only."""
        super().__init__()
        bound = math.sqrt(scale * 6 / (inputs + outputs))
        draws = [torch.rand(members, inputs, outputs, generator=generator) for generator in generators]
        self.weight = nn.Parameter((2 * torch.cat(draws) - 1) * bound)  # (seed · member, in, out)
        self.bias = nn.Parameter(torch.zeros(len(generators) * members, 1, outputs))

    def forward(self, x: Tensor, frozen: bool = False, only: slice | None = None) -> Tensor:
        """(seed · member, row, in) to (seed · member, row, out).

        Args:
            frozen: no gradient to the parameters.
            only: which of them, where ``x`` is of some members alone.
        """
        weight, bias = (self.weight.detach(), self.bias.detach()) if frozen else (self.weight, self.bias)
        if only is not None:
            weight, bias = weight[only], bias[only]
        return batched_affine(bias, x, weight)


class StackedLayerNorm(nn.Module):
    """Layer normalization over the last axis, with gain and bias of each member."""

    def __init__(self, seeds: int, members: int, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(seeds * members, 1, size))
        self.bias = nn.Parameter(torch.zeros(seeds * members, 1, size))

    def forward(self, x: Tensor, frozen: bool = False, only: slice | None = None) -> Tensor:
        """(seed · member, row, size), normalized; ``frozen`` and ``only`` as of ``StackedLinear``."""
        gain, bias = (self.gain.detach(), self.bias.detach()) if frozen else (self.gain, self.bias)
        if only is not None:
            gain, bias = gain[only], bias[only]
        if len(gain) == 1:  # one member in all: the fused kernel knows gain and bias
            return F.layer_norm(x, x.shape[-1:], gain[0, 0], bias[0, 0], LAYER_NORM_EPS)
        normed = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        return torch.addcmul(bias, normed, gain)


class StackedMLP(nn.Module):
    """``members`` equal MLPs for each seed, e.g. two critics, or the positive and the negative policy.

    Layer normalization stands after every activation (FQL's critics), before every activation (CFGRL's critics on
    ExORL), or before all but the last one (CFGRL's policy there).
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        members: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        activation: Activation,
        layer_norm: LayerNorm = "none",
        final_scale: float = 1.0,
    ) -> None:
        """``final_scale``: of the last layer's initial variance. ``generators``: one per seed, on the CPU."""
        super().__init__()
        self.seeds, self.members, self.outputs = len(generators), members, outputs
        self.activation, self.norm_before = ACTIVATIONS[activation], layer_norm.startswith("before")
        sizes = [inputs, *hidden]
        self.layers = nn.ModuleList(StackedLinear(generators, members, i, o) for i, o in itertools.pairwise(sizes))
        normed = {"none": 0, "before_but_last": len(hidden) - 1}.get(layer_norm, len(hidden))
        self.norms = nn.ModuleList(StackedLayerNorm(self.seeds, members, size) for size in hidden[:normed])
        self.final = StackedLinear(generators, members, sizes[-1], outputs, final_scale)

    def forward(self, *inputs: Tensor, frozen: bool = False, member: int | None = None) -> Tensor:
        """(seed, member, row, out).

        Args:
            inputs: (seed, row, number) each, joined along the last axis; every member of a seed sees the same.
            frozen: no gradient to the parameters (but to the inputs).
            member: only this one of each seed, (seed, 1, row, out).
        """
        members, only = (self.members, None) if member is None else (1, slice(member, None, self.members))
        x = torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0]
        x = x.unsqueeze(1).expand(-1, members, -1, -1).flatten(0, 1)
        for number, layer in enumerate(self.layers):
            norm = self.norms[number] if number < len(self.norms) else None
            x = layer(x, frozen, only)
            if norm is None:
                x = self.activation(x)
            elif self.norm_before:
                x = self.activation(norm(x, frozen, only))
            else:
                x = norm(self.activation(x), frozen, only)
        return self.final(x, frozen, only).unflatten(0, (self.seeds, members))


def target_of(module: nn.Module) -> nn.Module:
    """A copy that takes no gradient and is moved by ``follow`` alone."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, rate: float) -> None:
    """``target += rate (online - target)``, all tensors in one call (soft update)."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
