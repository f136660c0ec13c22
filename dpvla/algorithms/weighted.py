"""The loss of algorithms that weight plans: every adapter's denoising errors, each plan's with a weight (Eq. 4, Eq. 9).

Which weights they are is ``Algorithm.weights``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.models import DPVLA


def weighted_denoising(algorithm: Algorithm, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss at one random noise level a plan; one backward reaches all adapters."""
    scenes, candidates = batch.plans.shape[:2]
    t, noise = policy.draw(scenes, candidates, batch.random)
    errors = policy.denoising_errors(batch.context, batch.plans, t, noise, algorithm.adapters)
    return weighted_errors(algorithm.weights(batch.targets), errors)


def weighted_errors(weights: Mapping[str, Tensor], errors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """``sum over adapters of E[weight · error]``, and what to log of each.

    Args:
        weights: (scene, candidate) by adapter. errors: (adapter, scene, candidate), in that order.
    """
    losses = {name: (weight * error).mean() for (name, weight), error in zip(weights.items(), errors, strict=True)}
    info = {f"rl/loss_{name}": loss.detach() for name, loss in losses.items()}
    info |= {f"rl/weight_{name}": weight.mean() for name, weight in weights.items()}
    return sum(losses.values(), errors.new_zeros(())), info
