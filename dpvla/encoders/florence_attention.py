"""How Florence-2's attention is computed: PyTorch's own, but for the channel attention of its vision tower on a GPU.

Channel attention looks from channel to channel: 32 of them in a group, and every token of an image is an element of a
"head" of up to 18,432. No fused kernel takes that, and PyTorch's fallback computes bf16 in float32, on copies that are
kept for the backward. Here the products stay in the precision of the model, and the 32 x 32 weights are float32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

NAME = "dpvla"
"""Of this attention among transformers' ``attn_implementation``."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention contract: queries (image, head, row, element) to outputs (image, row, head, element)."""
    if isinstance(module, Florence2VisionChannelAttention) and query.device.type == "cuda":
        assert scaling is not None and attention_mask is None
        return channel_attention(query, key, value, scaling), None
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return output


def channel_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """(image, group, channel, token) each, to (image, channel, group, token)."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2)


AttentionInterface.register(NAME, attention)
