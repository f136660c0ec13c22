"""The head's adapters: low-rank updates by name on one frozen head (``layers.adaptable``); kept by ``adapter_files``.

Their names are the algorithm's, and the order in which it gives them is that of the stacked weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dpvla.layers.adaptable import BASE, AdaptableLinear
from dpvla.models.head import DiTHead


def adaptable_layers(head: DiTHead) -> dict[str, AdaptableLinear]:
    """Every adaptable layer of the head by its path, in module order."""
    return {name: module for name, module in head.named_modules() if isinstance(module, AdaptableLinear)}


def add_adapters(head: DiTHead, names: Sequence[str], rank: int, alpha: float) -> None:
    """Give every adaptable layer one zero-effect update per name (paper: rank 16, alpha 16, dropout 0)."""
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank must be at least 1 and alpha positive, found {rank} and {alpha}")
    if not names or len(set(names)) < len(names) or not all(names):
        raise ValueError(f"adapters need names that differ, found {list(names)}")
    if head.adapters:
        raise RuntimeError(f"the head already has adapters: {', '.join(head.adapters)}")
    for layer in adaptable_layers(head).values():
        layer.add(len(names), rank, alpha)
    head.adapters = tuple(names)


def adapter_parameters(head: DiTHead) -> list[nn.Parameter]:
    """Stacked parameters of all adapters, for one optimizer."""
    found = []
    for layer in adaptable_layers(head).values():
        found += [p for p in (layer.adapter_down, layer.adapter_up) if p is not None]
    return found


def merge_adapters(head: DiTHead, shares: Mapping[str, float]) -> None:
    """Add ``share * scale * B A`` of every adapter to the base weights (0 for one not named), then remove all."""
    require_adapters(head)
    for layer in adaptable_layers(head).values():
        down, up = layer.stacked(tuple(range(len(head.adapters))))
        with torch.no_grad():
            updates = torch.bmm(up.double(), down.double()) * layer.adapter_scale
            for name, update in zip(head.adapters, updates):
                layer.weight += (shares.get(name, 0.0) * update).to(layer.weight.dtype)
        layer.adapter_down = layer.adapter_up = None
    head.adapters = ()


def are_equal(head: DiTHead, first: str | None, second: str | None) -> bool:
    """Whether two policies of the head are one to the bit: the same weights, or updates of zero. Waits for the device.

    ``None`` is the head without adapters.
    """
    same = []
    for layer in adaptable_layers(head).values():
        indices = tuple(BASE if name is None else head.adapters.index(name) for name in (first, second))
        if indices[0] == indices[1]:
            return True
        down, up = layer.stacked(indices)
        same.append((up == 0).all() | ((down[0] == down[1]).all() & (up[0] == up[1]).all()))
    return bool(torch.stack(same).all()) if same else True


def adapter_size(head: DiTHead) -> tuple[int, float]:
    """Rank and alpha of the head's adapters."""
    require_adapters(head)
    layer = next(iter(adaptable_layers(head).values()))
    assert layer.adapter_down is not None
    rank = layer.adapter_down.shape[1]
    return rank, layer.adapter_scale * rank


def update_sizes(head: DiTHead) -> dict[str, float]:
    """``|scale B A| / |W|`` of every adapter, Frobenius norms over all layers that have one. Waits for the device."""
    updates, base = [], []
    with torch.no_grad():
        for layer in adaptable_layers(head).values():
            down, up = (part.double() for part in layer.stacked(tuple(range(len(head.adapters)))))
            # |B A|^2 is the trace of (B'B)(AA'), which is as small as the rank.
            inner = (up.transpose(1, 2) @ up) * (down @ down.transpose(1, 2))
            updates.append(inner.sum(dim=(1, 2)) * layer.adapter_scale**2)
            base.append(layer.weight.double().square().sum())
        if not base:
            return {}
        found = (torch.stack(updates).sum(0) / torch.stack(base).sum()).clamp_min(0).sqrt().tolist()
    return dict(zip(head.adapters, found))


def snapshot(head: DiTHead, shared: bool = True) -> DiTHead:
    """The head as it is now, without gradients: what is trained is copied, the rest shared, or copied as well."""
    with torch.device("meta"):
        copy = DiTHead(head.flags, head.channels, head.context_width)
    if head.adapters:
        add_adapters(copy, head.adapters, *adapter_size(head))
    for own, made in zip(head.modules(), copy.modules()):
        made._buffers.update(own._buffers)
        for name, parameter in own._parameters.items():
            if parameter is not None and (parameter.requires_grad or not shared):
                parameter = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            made._parameters[name] = parameter
    return copy.train(head.training)


def require_adapters(head: DiTHead) -> None:
    """Raise RuntimeError for a head without adapters."""
    if not head.adapters:
        raise RuntimeError("the head has no adapters")
