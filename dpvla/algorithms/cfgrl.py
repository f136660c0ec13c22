"""CFGRL (Frans et al., 2025): classifier-free guidance towards plans that are better than average.

The paper's network takes the label "A >= 0" as a condition, which is dropped for a tenth of the rows; guidance goes
from the unconditional output towards the positive one. Here each of these two outputs has an adapter, as DIPOLE's have.
So no label is dropped: the null adapter learns every plan, the positive one those that are positive.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import CFGRLConfig
from dpvla.algorithms.weighted import weighted_denoising
from dpvla.models import DPVLA
from dpvla.models.sampling import Sampling


class CFGRL(Algorithm):
    """``w+ = 1[A >= threshold]``, ``w_null = 1``; sampled from ``(1 + omega) positive - omega null``."""

    Config = CFGRLConfig
    adapters = ("positive", "null")
    config: CFGRLConfig

    def sampling(self) -> Sampling:
        """``null + w (positive - null)`` with w = 1 + omega."""
        return Sampling(self.adapters, self.omega)

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group-normalized advantages (scene, candidate); 0, and so positive by default, in groups below the floor."""
        return {"advantages": group_advantages(scores["score"], self.config.spread_floor)[0].float()}

    def weights(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """1 for what an adapter learns, else 0."""
        advantages = targets["advantages"]
        positive = (advantages >= self.config.threshold).float()
        return {"positive": positive, "null": torch.ones_like(positive)}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Denoising of the positive plans, and of all."""
        return weighted_denoising(self, policy, batch)
