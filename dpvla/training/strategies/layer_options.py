"""Recomputed activations and compiled layers, whatever the strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpvla.config import ConfigError
from dpvla.models.layers import repeated_layers

BACKEND = "inductor"
"""Of ``torch.compile``."""

SHAPES = 64
"""For which a kind of layer is compiled; beyond, dynamo would run it plainly. Every stage of an encoder, batch size,
with gradients and without is one."""


def apply_layer_options(module: nn.Module, recompute: str, compiled: bool) -> None:
    """Recompute the layers of "encoder", "head" or "both" in the backward pass, and compile all if asked to.

    Before weights are sharded, and in place, so that names of weights stay what they are. Raises ConfigError where a
    part has no layers.
    """
    parts = {"none": (), "both": ("encoder", "head")}.get(recompute, (recompute,))
    for part in parts:
        layers = repeated_layers(module, part)
        if not layers:
            raise ConfigError(
                f"loop.recompute {recompute}: the {part} names no repeated layers, so none can be recomputed; "
                "take the other part, or none"
            )
        for layer in layers:
            layer.forward = _recomputed(layer.forward)  # type: ignore[method-assign]
    if compiled:
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        setattr(torch._dynamo.config, limit, max(SHAPES, getattr(torch._dynamo.config, limit)))
        for layer in repeated_layers(module):
            layer.compile(backend=BACKEND, dynamic=False)  # with shapes left open Inductor fails on windowed attention


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run
