"""The positive and the negative policy: their weights in the loss (paper Eq. 9) and their combination (Eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor


def dichotomous_weights(advantages: Tensor, beta: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """``sigmoid(beta G + k)`` for the positive policy and one minus it for the negative one (Eq. 9, App. D.2)."""
    positive = torch.sigmoid(beta * advantages + shift)
    return positive, 1.0 - positive


def combine(positive: Tensor, negative: Tensor, omega: float) -> Tensor:
    """``(1 + omega) positive - omega negative``, in float32 at least.

    The coefficients sum to 1, so the result is the same sample whether the inputs are eps, x0, v or scores at the same
    ``(x_t, t)``. Nothing non-linear may come before it. This is the classifier-free-guidance approximation of
    ``mu sigma(beta G) exp(omega beta G)``: exact at omega = 0, close while omega * beta * range(G) stays below about
    1.4, overshooting beyond.
    """
    if positive.dtype.itemsize < 4:
        positive, negative = positive.float(), negative.float()
    return positive + omega * (positive - negative)


def clip_x0(x0: Tensor, bound: Tensor) -> Tensor:
    """A static clip of the combined x0 to ``[-bound, bound]``.

    Static because dynamic thresholding rescales a plan and would shrink it in meters.
    """
    return x0.clamp(-bound, bound)
