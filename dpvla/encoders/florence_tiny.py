"""Florence-2 in miniature, with a tokenizer of its own: no files, no network."""

from __future__ import annotations

from typing import Any

from transformers import BartConfig, BartTokenizer, Florence2Config

from dpvla.encoders.florence_commands import COMMAND_PHRASES


def tiny_florence_config() -> Florence2Config:
    """About a million parameters with random weights, for machines without the released ones.

    The attention windows are 4 x 4, so that small images do not pay for padding, and the last stage keeps its
    resolution: a 96 x 48 image gives 19 tokens instead of 7.
    """
    vision = {
        "embed_dim": (16, 32, 64, 96),
        "num_heads": (1, 2, 4, 6),
        "num_groups": (1, 2, 4, 6),
        "depths": (1, 1, 2, 1),
        "patch_stride": (4, 2, 2, 1),
        "window_size": 4,
        "projection_dim": 96,
        "drop_path_rate": 0.0,
    }
    text = BartConfig(
        vocab_size=512,
        d_model=96,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        max_position_embeddings=2048,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return Florence2Config(vision_config=vision, text_config=text.to_dict(), image_token_id=511)


def tiny_tokenizer() -> BartTokenizer:
    """A byte-level tokenizer built in memory: the 256 byte symbols and the words of the commands."""
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    for symbol in _byte_symbols():
        vocabulary.setdefault(symbol, len(vocabulary))
    merges: list[tuple[str, str]] = []
    for word in sorted({word for phrase in COMMAND_PHRASES for word in phrase.split()}):
        piece = word[0]
        for letter in word[1:]:
            if piece + letter not in vocabulary:
                merges.append((piece, letter))
                vocabulary[piece + letter] = len(vocabulary)
            piece += letter
        if "Ġ" + word not in vocabulary:
            merges.append(("Ġ", word))
            vocabulary["Ġ" + word] = len(vocabulary)
    tokenizer: Any = BartTokenizer  # its annotation of merges is narrower than what it takes
    return tokenizer(vocab=vocabulary, merges=merges)


def _byte_symbols() -> list[str]:
    """Printable stand-ins for the 256 bytes, as byte-level BPE defines them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
