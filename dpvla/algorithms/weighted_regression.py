"""Exponentially weighted regression (Eq. 4): one policy that imitates good plans exponentially more.

Also known as reward-weighted regression; with the group's mean as the baseline, advantage-weighted.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import WeightedRegressionConfig
from dpvla.algorithms.weighted import weighted_denoising
from dpvla.config import ConfigError
from dpvla.models import DPVLA
from dpvla.models.sampling import Sampling


class WeightedRegression(Algorithm):
    """``E[exp(beta G) |eps - eps(a_t, s, t)|^2]``, the weights clipped unless ``clip`` is None."""

    Config = WeightedRegressionConfig
    adapters = ("policy",)
    config: WeightedRegressionConfig

    def sampling(self) -> Sampling:
        """The adapter alone."""
        return Sampling(self.adapters)

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (scene, candidate) of Eq. 4. Raises ConfigError where unclipped ones are too large for float32."""
        advantages, _ = group_advantages(scores["score"], self.config.spread_floor)
        weights = (self.config.beta * advantages).exp()
        if self.config.clip is not None:
            weights = weights.clamp_max(self.config.clip)
        if self.config.normalize:
            weights = weights / weights.mean()
        if not bool(weights.float().isfinite().all()):
            raise ConfigError(
                f"algorithm.beta {self.config.beta:g} makes weights of up to {float(weights.max()):.2g}, which are no "
                "numbers of 32 bits any more: give --algorithm.clip 100, or a smaller beta"
            )
        return {"weights": weights.float()}

    def weights(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of ``targets``."""
        return {"policy": targets["weights"]}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted denoising (Eq. 4)."""
        loss, info = weighted_denoising(self, policy, batch)
        return loss, info | {"rl/largest_weight": batch.targets["weights"].amax(dim=-1).mean()}
