"""Encoding scenes with the frozen encoder, and looking through what comes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dpvla.batch import DrivingBatch
from dpvla.models import DPVLA, SceneContext
from dpvla.registry import ContractError
from dpvla.tensors import not_finite


@torch.no_grad()
def encoded(policy: DPVLA, batch: DrivingBatch, device: torch.device) -> SceneContext:
    """The batch's context on ``device``."""
    policy.eval()
    return policy.encode(batch.to(device))


def refuse_not_finite(policy: DPVLA, context: SceneContext, names: Sequence[str]) -> None:
    """Raise ContractError that names the encoder and the first scene with NaN or infinity. Waits for the device."""
    if not_finite({"tokens": context.tokens}):
        bad = (~context.tokens.isfinite()).flatten(1).any(-1).nonzero().flatten().tolist()
        raise ContractError(
            f"the encoder {policy.config.encoder.name} gives NaN or infinity for {len(bad)} scenes, first "
            f"{names[bad[0]]}"
        )
