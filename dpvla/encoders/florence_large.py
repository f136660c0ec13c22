"""Florence-2-large's architecture without its files, for measurements and plans: weights are random until read."""

from __future__ import annotations

from transformers import BartConfig, Florence2Config


def large_florence_config() -> Florence2Config:
    """That of ``florence-community/Florence-2-large``: 776.7M parameters, 570.7M without its text decoder."""
    vision = {
        "embed_dim": (256, 512, 1024, 2048),
        "num_heads": (8, 16, 32, 64),
        "num_groups": (8, 16, 32, 64),
        "depths": (1, 1, 9, 1),
        "projection_dim": 1024,
    }
    text = BartConfig(
        vocab_size=51328,
        d_model=1024,
        encoder_layers=12,
        decoder_layers=12,
        encoder_attention_heads=16,
        decoder_attention_heads=16,
        encoder_ffn_dim=4096,
        decoder_ffn_dim=4096,
        max_position_embeddings=4096,
    )
    return Florence2Config(vision_config=vision, text_config=text.to_dict())
