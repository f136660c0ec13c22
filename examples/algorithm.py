"""An RL algorithm to copy: one adapter that imitates the better plans of every group, by a softmax over it.

python tools/rl_finetune.py --plugin examples/algorithm.py --algorithm weighted --algorithm.temperature 0.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import SPREAD_FLOOR, AlgorithmConfig
from dpvla.algorithms.registry import ALGORITHMS
from dpvla.config import Positive
from dpvla.models import DPVLA
from dpvla.models.sampling import Sampling


@dataclass(frozen=True)
class WeightedConfig(AlgorithmConfig):
    """Its hyperparameters: options of the command line and keys of the YAML file."""

    name: str = "weighted"  # of the algorithm
    temperature: Positive = 1.0  # of the weights softmax(G / temperature)
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation prefers nothing


class Weighted(Algorithm):
    """``sum_i softmax(G / temperature)_i |eps - eps(a_i, s, t)|^2`` over the plans of a group."""

    Config = WeightedConfig
    adapters = ("policy",)
    config: WeightedConfig

    def sampling(self) -> Sampling:
        """The adapter alone."""
        return Sampling(("policy",))

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (scene, candidate) that sum to 1 in every group."""
        advantages, _ = group_advantages(scores["score"], self.config.spread_floor)
        return {"weights": (advantages / self.config.temperature).softmax(dim=-1).float()}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted denoising error at one random noise level a plan."""
        weights = batch.targets["weights"]
        scenes, candidates = weights.shape
        t, noise = policy.draw(scenes, candidates, batch.random)
        errors = policy.denoising_errors(batch.context, batch.plans, t, noise, self.adapters)[0]
        return (weights * errors).sum(dim=-1).mean(), {"rl/largest_weight": weights.amax(dim=-1).mean()}


ALGORITHMS["weighted"] = Weighted
