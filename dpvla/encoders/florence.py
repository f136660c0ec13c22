"""The paper's scene encoder: Florence-2's vision tower, projector and text encoder.

The text decoder (258M parameters) is never built: without it encoder (571M) and head (475M) make the paper's
"1-billion parameter model". Loading weights is in ``florence_checkpoint.py``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BartConfig, BartTokenizer, Florence2Config, Florence2VisionConfig
from transformers.models.bart.modeling_bart import BartEncoder
from transformers.models.florence2.modeling_florence2 import Florence2MultiModalProjector, Florence2VisionBackbone

from dpvla.encoders.image_normalization import ImageNormalisation, check_images

COMMAND_PHRASES = ("turn left", "go straight", "turn right", "no command given")
"""What the text encoder reads, in the order of ``dpvla.batch.COMMANDS``; the paper names the first three."""

FRONT_CAMERA = 1


class FlorenceEncoder(nn.Module):
    """Camera images and command text to scene tokens ``(scene, token, d_model)``.

    Every camera gives ``1 + ceil(H / 32) ceil(W / 32)`` tokens, the first of them their mean. With
    ``views_in_text_encoder="all"`` the tokens of all cameras and the command go through the text encoder; with
    ``"front"`` only the front camera's do and the other cameras' tokens are appended after it (as X-VLA does).
    """

    command_ids: Tensor  # (command, word) int64, padded
    command_mask: Tensor  # (command, word) bool, True for real words

    def __init__(
        self,
        config: Florence2Config,
        *,
        image_size: tuple[int, int],
        num_cameras: int,
        views_in_text_encoder: Literal["all", "front"] = "all",
        command_length: int,
    ) -> None:
        """``image_size`` is (width, height); the command table starts empty, see ``set_commands``."""
        super().__init__()
        if views_in_text_encoder not in ("all", "front"):
            raise ValueError(f"views_in_text_encoder must be 'all' or 'front', found {views_in_text_encoder!r}")
        self.config = config
        self.image_size, self.num_cameras = image_size, num_cameras
        self.views_in_text_encoder = views_in_text_encoder
        vision, text = config.vision_config, config.text_config
        if not isinstance(vision, Florence2VisionConfig) or not isinstance(text, BartConfig):
            raise ValueError(f"expected a Florence-2 vision and a BART text config, found {vision!r} and {text!r}")
        self.token_width = int(text.d_model or 0)
        limit = 32 * vision.max_position_embeddings
        if max(image_size) > limit:
            raise ValueError(f"image size {image_size} is too large: Florence-2 has positions up to {limit} pixels")
        self.vision_tower = Florence2VisionBackbone(vision)
        self.projector = Florence2MultiModalProjector(config)
        self.text_encoder = BartEncoder(text)
        # Only the few words of the commands would ever get a gradient; their optimiser state is waste.
        self.text_encoder.embed_tokens.weight.requires_grad_(False)
        self.normalise = ImageNormalisation()
        shape = (len(COMMAND_PHRASES), command_length)
        self.register_buffer("command_ids", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("command_mask", torch.zeros(shape, dtype=torch.bool))

    def set_commands(self, ids: Tensor, mask: Tensor) -> None:
        """Fill the table of tokenised command phrases."""
        self.command_ids.copy_(ids)
        self.command_mask.copy_(mask)

    def forward(self, images: Tensor, command: Tensor) -> tuple[Tensor, Tensor]:
        """``images`` (scene, camera, 3, height, width) uint8, ``command`` (scene,) int64.

        Returns tokens (scene, token, d_model) and their mask (scene, token), True for real tokens.
        """
        check_images(images, self.num_cameras, self.image_size[1], self.image_size[0])
        scenes = len(images)
        pixels = self.normalise(images, self.projector.image_projection.weight.dtype)
        features = self.projector(self.vision_tower(pixels).last_hidden_state)
        features = features.view(scenes, self.num_cameras, *features.shape[1:])
        words = self.text_encoder.embed_tokens(self.command_ids[command])
        word_mask = self.command_mask[command]
        if self.views_in_text_encoder == "all":
            seen, beside = features.flatten(1, 2), None
        else:
            front = min(FRONT_CAMERA, self.num_cameras - 1)
            others = [index for index in range(self.num_cameras) if index != front]
            seen, beside = features[:, front], features[:, others].flatten(1, 2)
        # Concatenation equals the released model's placeholder scheme, whose image placeholders come first.
        inputs = torch.cat([seen, words.to(seen.dtype)], dim=1)
        mask = torch.cat([word_mask.new_ones(seen.shape[:2]), word_mask], dim=1)
        tokens = self.text_encoder(inputs_embeds=inputs, attention_mask=mask.long()).last_hidden_state
        if beside is not None and beside.shape[1]:
            tokens = torch.cat([tokens, beside.to(tokens.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(beside.shape[:2])], dim=1)
        return tokens, mask

    def architecture(self) -> dict[str, Any]:
        """What a checkpoint has to remember to build this encoder without Florence's own files."""
        return {"florence": self.config.to_diff_dict(), "command_length": self.command_ids.shape[1]}


def tokenise_commands(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Word ids and mask of ``COMMAND_PHRASES``: done once, so that no data loader ever needs a tokenizer."""
    rows = [tokenizer(phrase)["input_ids"] for phrase in COMMAND_PHRASES]
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id), dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return ids, mask


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


def _byte_symbols() -> list[str]:
    """Printable stand-ins for the 256 bytes, as byte-level BPE defines them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
