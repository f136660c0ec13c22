"""Floating-point operations of a policy, counted from shapes alone: nothing is computed and no memory is taken.

A multiplication and an addition count as two; matrix products, convolutions and attention are what counts
(``torch.utils.flop_counter``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dpvla.models.driving_policy import DrivingPolicy, Policy
from dpvla.models.scene_context import SceneContext


def on_meta(policy: Policy) -> Policy:
    """A copy of ``policy`` without numbers: what is done with it is counted, not computed. It takes no memory.

    Whether parameters ask for gradients stays as it is, and with it what a backward costs. All weights are float32 and
    nothing is autocast, which the meta device does not know: counts are the same in every precision.
    """
    without: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty(parameter.shape, device="meta"), parameter.requires_grad)
        for parameter in policy.parameters()
    }
    without |= {id(buffer): buffer.to("meta") for buffer in policy.buffers()}
    copy = deepcopy(policy, without)
    copy.precision = "no"
    copy.assume_fitted()
    return copy


def count_flops(call: Callable[[], object]) -> int:
    """Of what ``call`` does, backward passes included."""
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    ) as c:
        call()
    return int(c.get_total_flops())


def encode_flops(policy: DrivingPolicy, scenes: int = 1) -> tuple[int, SceneContext]:
    """Of encoding so many scenes with an ``on_meta`` policy, and their context, which has shapes alone."""
    batch = policy.encoder.fake_batch(scenes).to("meta")
    contexts: list[SceneContext] = []
    with torch.no_grad():
        flops = count_flops(lambda: contexts.append(policy.encode(batch)))
    return flops, contexts[0]


def _convolution_backward(
    grad_out: Sequence[int], x: Sequence[int], weight: Sequence[int], *options: Any, **_: Any
) -> int:
    """As much as the forward for each gradient that is asked for.

    torch's own formula takes a weight's gradient for that of a convolution without groups: for Florence's depthwise
    convolutions hundreds of times too much, 40 % of an update in all.
    """
    transposed, (of_input, of_weight) = options[4], options[7][:2]
    positions = x if transposed else grad_out
    return 2 * math.prod(positions[2:]) * positions[0] * math.prod(weight) * (of_input + of_weight)
