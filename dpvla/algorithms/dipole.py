"""DIPOLE (Dichotomous Diffusion Policy Optimization) in the paper's own terms.

The optimal policy ``pi* ∝ mu · sigmoid(beta G) · exp(omega beta G)`` (Eq. 6) is split into two policies that are
each learned with a bounded weight (Eq. 7-9) and combined again when sampling (Eq. 10,
``dpvla.diffusion.guidance``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dpvla.models import DPVLA, SceneContext

ADAPTERS = ("positive", "negative")
ZERO_SPREAD = 1e-6
"""A group whose rewards all lie within this standard deviation carries no preference."""


def group_advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """``G_i = (r_i - mean(r)) / std(r)`` over the candidates of a scene (Eq. 17).

    Args:
        rewards: (scene, candidate), PDM scores. The standard deviation is the population's.

    Returns:
        advantages (scene, candidate) and a mask (scene,) of the groups without spread, whose G is 0, so that
        both weights are 1/2.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards hold NaN or infinity; a failed score is not a reward")
    centred = rewards - rewards.mean(-1, keepdim=True)
    spread = centred.pow(2).mean(-1, keepdim=True).sqrt()
    flat = spread < ZERO_SPREAD
    return torch.where(flat, 0.0, centred / spread.clamp_min(ZERO_SPREAD)), flat.squeeze(-1)


def dichotomous_weights(advantages: Tensor, beta: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """``sigmoid(beta G + k)`` for the positive policy and one minus it for the negative one (Eq. 9, App. D.2)."""
    positive = torch.sigmoid(beta * advantages + shift)
    return positive, 1.0 - positive


def dipole_loss(
    policy: DPVLA,
    context: SceneContext,
    plans: Tensor,
    advantages: Tensor,
    t: Tensor,
    noise: Tensor,
    beta: float,
    shift: float = 0.0,
    behaviour: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted denoising for both adapters (Eq. 9); one backward pass reaches both.

    With ``behaviour``, the output ``v_b`` of the denoiser that sampled ``plans``, the control variate
    ``2 c E[output · (v - v_b)]`` is added, ``c = sigmoid(k)`` being the weight of a plan without preference. Its mean
    is zero only where ``v_b`` is the exact denoiser of its own samples, drawn with omega 0 in many steps. A learned
    field misses it by ``delta = E[v | x_t] - v_b``, so the term changes what is learned. Per noised plan, Eq. 9 and
    Eq. 9 with the term have their minimum at

        plain:      ``v_b + Cov(w, v) / E[w] + delta``
        with term:  ``v_b + Cov(w, v) / E[w] + (1 - c / E[w]) delta``

    (w: the policy's own weight). The part that follows preferences is the same. Plain Eq. 9 also adds delta in every
    cycle, whatever the reward; with the term the two policies, mixed by their weights, are exactly the policy that was
    rolled out, as Eq. 7-8 have it. So it anchors the pair to the behaviour policy and is no unbiased estimate of Eq. 9.

    Args:
        plans: (scene, candidate, 8, 3) rollouts, ego frame. advantages, t: (scene, candidate).
        noise: (scene, candidate, 8, channel) standard normal.
        behaviour: (scene, candidate, 8, channel), the sampling denoiser's output at these noised plans; no gradient.
    """
    good, bad = dichotomous_weights(advantages, beta, shift)
    output, target = policy.denoise_plans(context, plans, t, noise, adapters=ADAPTERS)
    factor = policy.loss_factor(t)
    positive, negative = (output - target).square().mean(dim=(-2, -1)) * factor
    loss_positive, loss_negative = (good * positive).mean(), (bad * negative).mean()
    loss = loss_positive + loss_negative
    if behaviour is not None:
        indifferent = torch.stack(dichotomous_weights(torch.zeros_like(advantages), beta, shift))
        surplus = (output * (target - behaviour)).mean(dim=(-2, -1)) * factor
        loss = loss + 2 * (indifferent * surplus).mean(dim=(-2, -1)).sum()
    info = {
        "rl/loss_positive": loss_positive.detach(),
        "rl/loss_negative": loss_negative.detach(),
        "rl/weight_positive": good.mean(),
        "rl/weight_negative": bad.mean(),
    }
    return loss, info
