"""A plug-in: an algorithm that trains the whole head, and keeps more of a roll-out than its plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import AlgorithmConfig
from dpvla.algorithms.registry import ALGORITHMS
from dpvla.config import Count
from dpvla.models import DPVLA, SceneContext
from dpvla.models.sampling import Sampling
from dpvla.random_rows import RandomRows


@dataclass(frozen=True)
class BestConfig(AlgorithmConfig):
    """Which plans are learned."""

    name: str = "best"  # of the algorithm
    best: Count = 1  # plans of a group


class Best(Algorithm):
    """Imitates the best plans of a group at the noise that they were made from."""

    Config = BestConfig
    adapters = ()
    config: BestConfig

    def sampling(self) -> Sampling:
        return Sampling()

    def roll_out(
        self, policy: DPVLA, context: SceneContext, candidates: int, generator: RandomRows
    ) -> dict[str, Tensor]:
        noise = generator.normal(candidates, 8, policy.plan_coding.num_channels)
        return {"plans": policy.sample(context, candidates, noise=noise), "noise": noise}

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rank = scores["score"].argsort(dim=-1, descending=True).argsort(dim=-1)
        return {"chosen": (rank < self.config.best).float()}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        scenes, candidates = batch.plans.shape[:2]
        t, _ = policy.draw(scenes, candidates, batch.random)
        errors = policy.denoising_errors(batch.context, batch.plans, t, batch.roll_outs["noise"])[0]
        return (batch.targets["chosen"] * errors).mean(), {"rl/chosen": batch.targets["chosen"].mean()}


ALGORITHMS["best"] = Best
