"""What counting takes a convolution for."""

import pytest
import torch
from torch import nn

from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.flops import count_flops, encode_flops, on_meta


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolutions_backward_costs_its_forward_twice_whatever_the_groups(groups: int, transposed: bool) -> None:
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    convolution = make(8, 16, 3, padding=1, groups=groups).to("meta")
    pixels = torch.zeros(2, 8, 5, 6, device="meta", requires_grad=True)
    forward = count_flops(lambda: convolution(pixels))
    assert forward == 2 * (2 * 5 * 6) * 9 * 8 * 16 / groups
    assert count_flops(lambda: convolution(pixels).sum().backward()) == 3 * forward


def test_counts_are_the_same_in_every_precision() -> None:
    policy = DPVLA.from_config(DPVLAConfig.tiny())
    expected = encode_flops(on_meta(policy))[0]
    policy.precision = "bf16"
    assert encode_flops(on_meta(policy))[0] == expected > 0
    policy.encoder.to(torch.bfloat16)
    assert encode_flops(on_meta(policy))[0] == expected
    assert policy.precision == "bf16"
