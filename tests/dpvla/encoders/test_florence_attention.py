"""The vision tower's channel attention on a GPU is the one that transformers computes."""

import torch
from torch import Tensor, nn

from dpvla.encoders import florence_attention
from dpvla.encoders.config import FlorenceConfig
from dpvla.encoders.florence import FlorenceEncoder


def test_channel_attention_is_scaled_dot_product_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 8, 50, generator=generator).unbind(0)  # (image, group, channel, token)
    expected: Tensor = nn.functional.scaled_dot_product_attention(query, key, value, scale=50**-0.5).transpose(1, 2)
    torch.testing.assert_close(florence_attention.channel_attention(query, key, value, 50**-0.5), expected)


def test_its_weights_are_float32_where_the_model_is_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 8, 400, generator=generator).unbind(0)
    exact = florence_attention.channel_attention(query, key, value, 0.05)
    coarse = florence_attention.channel_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), 0.05)
    assert coarse.dtype == torch.bfloat16
    assert float((coarse.float() - exact).abs().mean()) < 0.01 * float(exact.abs().mean())


def test_a_saved_encoder_does_not_name_it() -> None:
    encoder = FlorenceEncoder.from_config(FlorenceConfig(source="tiny", image_width=96, image_height=48))
    assert encoder.vision_tower.config._attn_implementation == florence_attention.NAME
    assert florence_attention.NAME not in str(encoder.architecture())
