"""Best-of-group distillation: the policy imitates the best plan of every group, and no other.

Also known as rejection sampling or expert iteration; the roll-outs are new in every cycle.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import BestOfGroupConfig
from dpvla.algorithms.weighted import weighted_denoising
from dpvla.models import DPVLA
from dpvla.models.sampling import Sampling


class BestOfGroup(Algorithm):
    """The denoising error of a group's best plan; several that are equally good share its weight."""

    Config = BestOfGroupConfig
    adapters = ("policy",)
    config: BestOfGroupConfig

    def sampling(self) -> Sampling:
        """The adapter alone."""
        return Sampling(self.adapters)

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (scene, candidate) whose mean over a group is 1, or 0 where it teaches nothing."""
        rewards = scores["score"]
        _, flat = group_advantages(rewards, self.config.spread_floor)
        highest, teaches = rewards.amax(dim=-1, keepdim=True), ~flat[:, None]
        if self.config.only_when == "beats_mean":
            teaches = teaches & (highest > rewards.mean())
        best = ((rewards == highest) & teaches).double()
        shared = best / best.mean(dim=-1, keepdim=True)
        return {"weights": torch.where(teaches, shared, 0.0).float()}

    def weights(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of ``targets``."""
        return {"policy": targets["weights"]}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Denoising of the best plans: a mean over scenes of the best one's error."""
        return weighted_denoising(self, policy, batch)
