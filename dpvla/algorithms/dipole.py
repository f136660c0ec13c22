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
        return Sampling(ADAPTERS, self.config.omega)

    @property
    def needs_behavior(self) -> bool:
        """For the control variate."""
        return self.config.control_variate

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group-normalized advantages (scene, candidate), Eq. 17."""
        return {"advantages": group_advantages(scores["score"])[0].float()}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted denoising for both adapters (Eq. 9) at one random noise level a plan; one backward reaches both.

        With ``control_variate``, ``v_b`` being the output of the head that sampled the plans, the term
        ``2 c E[output · (v - v_b)]`` is added, ``c = sigmoid(k)`` being the weight of a plan without preference. Its
        mean is zero only where ``v_b`` is the exact denoiser of its own samples, drawn with omega 0 in many steps. A
        learned field misses it by ``delta = E[v | x_t] - v_b``, so the term changes what is learned. Per noised plan,
        Eq. 9 and Eq. 9 with the term have their minimum at

            plain:      ``v_b + Cov(w, v) / E[w] + delta``
            with term:  ``v_b + Cov(w, v) / E[w] + (1 - c / E[w]) delta``

        (w: the policy's own weight). The part that follows preferences is the same. Plain Eq. 9 also adds delta in
        every cycle, whatever the reward; with the term the two policies, mixed by their weights, are exactly the policy
        that was rolled out, as Eq. 7-8 have it. So it anchors the pair to the behavior policy and is no unbiased
        estimate of Eq. 9.
        """
        beta, shift, advantages = self.config.beta, self.config.shift, batch.targets["advantages"]
        scenes, candidates = batch.plans.shape[:2]
        t, noise = policy.draw(scenes, candidates, batch.random)
        sampled = self._sampled(policy, batch, t, noise)
        good, bad = dichotomous_weights(advantages, beta, shift)
        output, target = policy.denoise_plans(batch.context, batch.plans, t, noise, ADAPTERS)
        factor = policy.loss_factor(t)
        positive, negative = (output - target).square().mean(dim=(-2, -1)) * factor
        loss_positive, loss_negative = (good * positive).mean(), (bad * negative).mean()
        loss = loss_positive + loss_negative
        if sampled is not None:
            indifferent = torch.stack(dichotomous_weights(torch.zeros_like(advantages), beta, shift))
            surplus = (output * (target - sampled)).mean(dim=(-2, -1)) * factor
            loss = loss + 2 * (indifferent * surplus).mean(dim=(-2, -1)).sum()
        info = {
            "rl/loss_positive": loss_positive.detach(),
            "rl/loss_negative": loss_negative.detach(),
            "rl/weight_positive": good.mean(),
            "rl/weight_negative": bad.mean(),
        }
        return loss, info

    @torch.no_grad()
    def _sampled(self, policy: DPVLA, batch: RolloutBatch, t: Tensor, noise: Tensor) -> Tensor | None:
        """Output (scene, candidate, 8, channel) of the combination that rolled out, where it is kept."""
        if batch.behavior is None:
            return None
        output, _ = policy.denoise_plans(batch.context, batch.plans, t, noise, ADAPTERS, batch.behavior)
        return combine(output[0], output[1], self.config.omega)
