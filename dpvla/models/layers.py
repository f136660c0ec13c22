"""The repeated layers of a model: what is compiled, recomputed, and gathered one by one."""

from __future__ import annotations

from torch import nn

from dpvla.models.driving_policy import DrivingPolicy


def repeated_layers(module: nn.Module, *parts: str) -> list[nn.Module]:
    """Those of the policies in ``module``: of the ``parts`` named, "encoder" or "head", or of both.

    What calls a layer calls its ``forward``, or a method that its ``FORWARD_METHODS`` name.
    """
    found: list[nn.Module] = []
    for policy in module.modules():
        if isinstance(policy, DrivingPolicy):
            found += policy.encoder.repeated_layers() if not parts or "encoder" in parts else []
            found += policy.head_layers() if not parts or "head" in parts else []
    return found
