"""Independent check of the stacked networks and losses: one network, one seed at a time, in NumPy with float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dpvla.state_based.data.batch import Batch
from dpvla.state_based.networks.stacked import StackedLayerNorm, StackedLinear, StackedMLP

Array = np.ndarray


def plain(x: Tensor) -> Array:
    return x.detach().double().numpy()


def activation(name: str, x: Array) -> Array:
    if name == "tanh":
        return np.tanh(x)
    if name == "mish":
        return x * np.tanh(np.log1p(np.exp(x)))
    assert name == "gelu"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def linear(layer: StackedLinear, x: Array, place: int = 0) -> Array:
    return x @ plain(layer.weight)[place] + plain(layer.bias)[place]


def layer_norm(norm: StackedLayerNorm, x: Array, place: int = 0) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return normed * plain(norm.gain)[place] + plain(norm.bias)[place]


def mlp(stack: StackedMLP, *inputs: Array, name: str, norm: str = "none", member: int = 0) -> Array:
    """Output (row, out) of one member of the only seed for inputs (row, number)."""
    x = np.concatenate(inputs, -1)
    count = len(stack.layers)
    for number in range(count):
        x = linear(stack.layers[number], x, member)  # type: ignore[arg-type]
        if norm == "before" or (norm == "before_but_last" and number < count - 1):
            x = layer_norm(stack.norms[number], x, member)  # type: ignore[arg-type]
        x = activation(name, x)
        if norm == "after":
            x = layer_norm(stack.norms[number], x, member)  # type: ignore[arg-type]
    return linear(stack.final, x, member)


class KnownDraws:
    """Draws that are remembered, so that a check can use the same numbers."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.normals: list[Array] = []
        self.uniforms: list[Array] = []

    def normal(self, *shape: int) -> Tensor:
        self.normals.append(self._random.normal(size=shape))
        return torch.from_numpy(self.normals[-1])[None]

    def uniform(self, *shape: int) -> Tensor:
        self.uniforms.append(self._random.uniform(size=shape))
        return torch.from_numpy(self.uniforms[-1])[None]


def small_batch(rows: int = 6, observation: int = 3, action: int = 2, seeds: int = 1, seed: int = 0) -> Batch:
    """A batch in float64; the second row is a true end, the third one the last of its episode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, rows, *shape, generator=generator, dtype=torch.float64)

    masks, known = torch.ones(seeds, rows, dtype=torch.float64), torch.ones(seeds, rows, dtype=torch.float64)
    masks[:, 1] = known[:, 1] = known[:, 2] = 0
    return Batch(
        normal(observation), normal(action).tanh(), normal(), normal(observation), masks, normal(action).tanh(), known
    )


def shake(module: nn.Module, scale: float = 0.5) -> None:
    """Random values for every parameter: zero biases and unit gains would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
