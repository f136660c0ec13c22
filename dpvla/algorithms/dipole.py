"""DIPOLE (Dichotomous Diffusion Policy Optimization), in the paper's own terms.

The optimal policy ``pi* ∝ mu · sigmoid(beta G) · exp(omega beta G)`` (Eq. 6) is split into two policies that are
each learned with a bounded weight (Eq. 7-9) and combined again when sampling (Eq. 10,
``dpvla.diffusion.guidance``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.weighted import weighted_errors
from dpvla.diffusion import combine
from dpvla.diffusion.guidance import dichotomous_weights
from dpvla.models import DPVLA
from dpvla.models.sampling import Sampling

ADAPTERS = ("positive", "negative")


class Dipole(Algorithm):
    """Two adapters, pulled towards the better and towards the worse plans of every group."""

    Config = DipoleConfig
    adapters = ADAPTERS
    config: DipoleConfig

    def sampling(self) -> Sampling:
        """``(1 + w) positive - w negative`` (Eq. 10)."""
        return Sampling(ADAPTERS, self.omega)

    @property
    def needs_behavior(self) -> bool:
        """For the anchor."""
        return self.config.anchor == "behavior"

    @property
    def learns_from_rewards(self) -> bool:
        """Not the control."""
        return self.config.beta > 0

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group-normalized advantages (scene, candidate), Eq. 17."""
        return {"advantages": group_advantages(scores["score"], self.config.spread_floor)[0].float()}

    def weights(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The two of Eq. 9."""
        return dict(zip(ADAPTERS, dichotomous_weights(targets["advantages"], self.config.beta, self.config.shift)))

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted denoising for both adapters (Eq. 9) at one random noise level a plan; one backward reaches both.

        With ``anchor: behavior``, ``v_b`` being the output of the head that sampled the plans, the anchor
        ``2 c E[output · (v - v_b)]`` is added, ``c = sigmoid(k)`` being the weight of a plan without preference. Per
        noised plan, Eq. 9 without and with it has its minimum at

            none:      ``v_b + Cov(w, v) / E[w] + delta``
            behavior:  ``v_b + Cov(w, v) / E[w] + (1 - c / E[w]) delta``

        where w is the policy's own weight and ``delta = E[v | x_t] - v_b`` what the learned field misses of the
        denoiser of its own samples. The part that follows preferences is the same. With the anchor the two policies,
        mixed by their weights, are exactly the one that rolled out, as Eq. 7-8 have it; without, delta is added in
        every cycle, whatever the reward. So it is no unbiased estimate of Eq. 9. docs/algorithms.md derives all this.
        """
        scenes, candidates = batch.plans.shape[:2]
        t, noise = policy.draw(scenes, candidates, batch.random)
        behavior = self._behavior(policy, batch, t, noise)
        output, target = policy.denoise_plans(batch.context, batch.plans, t, noise, ADAPTERS)
        factor = policy.loss_factor(t)
        errors = (output - target).square().mean(dim=(-2, -1)) * factor
        loss, info = weighted_errors(self.weights(batch.targets), errors)
        if behavior is not None:
            indifferent = torch.stack([*self.weights({"advantages": torch.zeros_like(t)}).values()])
            missed = target - behavior
            anchor = (output * missed).mean(dim=(-2, -1)) * factor
            loss = loss + 2 * (indifferent * anchor).mean(dim=(-2, -1)).sum()
            info["rl/delta_squared"] = delta_squared(missed, t)
        return loss, info

    @torch.no_grad()
    def _behavior(self, policy: DPVLA, batch: RolloutBatch, t: Tensor, noise: Tensor) -> Tensor | None:
        """``v_b`` (scene, candidate, 8, channel): the output of the combination that rolled out, where it is kept."""
        if batch.behavior is None:
            return None
        output, _ = policy.denoise_plans(batch.context, batch.plans, t, noise, ADAPTERS, batch.behavior)
        return combine(output[0], output[1], self.omega)


def delta_squared(missed: Tensor, t: Tensor) -> Tensor:
    """An estimate of ``|delta|^2``: how far a network is from the denoiser of its own samples, at given noise levels.

    What a network misses of one noised plan is mostly chance, whose square says nothing of delta. But the samples of a
    scene are drawn independently, so the product of what two of them miss has the mean ``delta(t_i) · delta(t_j)``,
    delta(t) being the mean over noised samples of the scene at level t. Pairs are those of neighboring levels: the
    result estimates the mean of ``|delta(t)|^2`` over t without bias but for how much delta changes between neighbors,
    and may be below zero by chance. What of delta differs between the samples of one level is not in it.

    Args:
        missed: ``v - v_b`` (scene, candidate, 8, channel). t: (scene, candidate).

    Returns:
        a mean over poses and channels, pairs and scenes, in the square of the network's own (normalized) output.
    """
    order = t.argsort(dim=-1)[..., None, None].expand_as(missed)
    ordered = missed.gather(1, order)
    return (ordered[:, 1:] * ordered[:, :-1]).mean()
