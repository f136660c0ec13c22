"""The paper's scene encoder: Florence-2's vision tower, projector and text encoder.

The text decoder (258M parameters) is never built: without it encoder (571M) and head (475M) make the paper's
"1-billion parameter model". Released files are read by ``florence_checkpoint``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import BartConfig, Florence2Config, Florence2VisionConfig
from transformers.models.bart.modeling_bart import BartEncoder, BartEncoderLayer
from transformers.models.florence2.modeling_florence2 import (
    Florence2MultiModalProjector,
    Florence2VisionBackbone,
    Florence2VisionBlock,
)

from dpvla.batch import DrivingBatch
from dpvla.config import Range
from dpvla.encoders import florence_attention
from dpvla.encoders.config import LARGE, RELEASED, TINY, FlorenceConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.florence_checkpoint import FlorenceFiles, load_weights
from dpvla.encoders.florence_commands import COMMAND_PHRASES, tokenize_commands
from dpvla.encoders.florence_config import florence_config
from dpvla.encoders.florence_large import large_florence_config
from dpvla.encoders.florence_tiny import tiny_florence_config, tiny_tokenizer
from dpvla.encoders.image_normalization import ImageNormalization
from dpvla.schema import checked
from dpvla.tensors import empty_parameters, materialize


class _Architecture(TypedDict):
    florence: dict[str, Any]
    command_length: Annotated[int, Range(least=1, most=1024)]


class FlorenceEncoder(Encoder[FlorenceConfig]):
    """Camera images and command text to scene tokens ``(scene, token, d_model)``.

    Every camera gives ``1 + ceil(H / 32) ceil(W / 32)`` tokens, the first of them their mean. With
    ``views_in_text_encoder="all"`` the tokens of all cameras and the command go through the text encoder; with
    ``"front"`` only the front camera's do and the other cameras' tokens are appended after it (as X-VLA does).
    """

    Config = FlorenceConfig
    command_ids: Tensor  # (command, word) int64, padded
    command_mask: Tensor  # (command, word) bool, True for real words

    def __init__(self, config: FlorenceConfig, florence: Florence2Config, command_length: int) -> None:
        """The command table starts empty, see ``set_commands``."""
        super().__init__(config)
        self.florence = florence
        vision, text = florence.vision_config, florence.text_config
        if not isinstance(vision, Florence2VisionConfig) or not isinstance(text, BartConfig):
            raise ValueError(f"expected a Florence-2 vision and a BART text config, found {vision!r} and {text!r}")
        self.token_width = int(text.d_model or 0)
        sensors, limit = self.sensors, 32 * vision.max_position_embeddings
        if max(sensors.width, sensors.height) > limit:
            raise ValueError(
                f"image size {(sensors.width, sensors.height)} is too large: Florence-2 has positions up to {limit} "
                "pixels"
            )
        self.front: int | None = None
        if config.views_in_text_encoder == "front":
            if "front" not in sensors.cameras:
                raise ValueError(
                    "encoder.views_in_text_encoder is front, but encoder.cameras are " + ", ".join(sensors.cameras)
                )
            self.front = sensors.cameras.index("front")
        self.vision_tower = Florence2VisionBackbone(vision)
        self.vision_tower.set_attn_implementation(florence_attention.NAME)
        self.projector = Florence2MultiModalProjector(florence)
        self.text_encoder = BartEncoder(text)
        # Only the few words of the commands would ever get a gradient; their optimizer state is waste.
        self.text_encoder.embed_tokens.weight.requires_grad_(False)
        self.normalize = ImageNormalization()
        shape = (len(COMMAND_PHRASES), command_length)
        self.register_buffer("command_ids", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("command_mask", torch.zeros(shape, dtype=torch.bool))

    @classmethod
    def from_config(cls, config: FlorenceConfig) -> FlorenceEncoder:
        """A random one, tiny or large, or one with the weights of a native Florence-2 checkpoint.

        A hub is only asked when no directory is called so. Missing and unexpected tensors are errors; only the text
        decoder is left out.
        """
        if config.source in (TINY, LARGE):
            ids, mask = tokenize_commands(tiny_tokenizer())
            florence = tiny_florence_config() if config.source == TINY else large_florence_config()
            encoder = cls(config, florence, ids.shape[1])
            encoder.set_commands(ids, mask)
            return encoder
        files = FlorenceFiles.open(config.source, config.revision)
        try:
            with empty_parameters():
                encoder = cls(config, files.config, files.command_ids.shape[1])
        except (TypeError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
            raise ValueError(
                f"the config.json of {config.source} describes no Florence-2 that can be built: {error}"
            ) from None
        materialize(encoder, "cpu")
        load_weights(encoder, files.tensors(), config.source)
        encoder.set_commands(files.command_ids, files.command_mask)
        return encoder

    @classmethod
    def outline(cls, config: FlorenceConfig) -> FlorenceEncoder:
        """Of the released large model, of a directory (whose config is read), or a random one.

        Raises ValueError for another hub id: what it is stands in files that are not here.
        """
        if config.source in (TINY, LARGE):
            return cls.from_config(config)
        if Path(config.source).is_dir():
            files = FlorenceFiles.open(config.source, None)
            return cls(config, files.config, files.command_ids.shape[1])
        if config.source.removesuffix("-ft") != RELEASED:
            raise ValueError(f"the sizes of {config.source} are known from its files alone: give a copy on disk")
        return cls(config, large_florence_config(), tokenize_commands(tiny_tokenizer())[0].shape[1])

    @classmethod
    def from_architecture(cls, config: FlorenceConfig, architecture: Any) -> FlorenceEncoder:
        """The saved one, without Florence's own files."""
        saved = checked(architecture, _Architecture, "encoder_architecture")
        return cls(config, florence_config(saved["florence"], "encoder_architecture.florence"), saved["command_length"])

    def architecture(self) -> dict[str, Any]:
        """Florence's own config and the words of the longest command."""
        return {"florence": self.florence.to_diff_dict(), "command_length": self.command_ids.shape[1]}

    def repeated_layers(self) -> list[nn.Module]:
        """Blocks of the vision tower, layers of the text encoder."""
        return [module for module in self.modules() if isinstance(module, (Florence2VisionBlock, BartEncoderLayer))]

    def set_commands(self, ids: Tensor, mask: Tensor) -> None:
        """Fill the table of tokenized command phrases."""
        self.command_ids.copy_(ids)
        self.command_mask.copy_(mask)

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, Tensor]:
        """Tokens (scene, token, d_model) and their mask (scene, token), True for real tokens."""
        self.sensors.require(batch.images)
        scenes, cameras = batch.images.shape[:2]
        pixels = self.normalize(batch.images, self.projector.image_projection.weight.dtype)
        features = self.projector(self.vision_tower(pixels).last_hidden_state)
        features = features.view(scenes, cameras, *features.shape[1:])
        words = self.text_encoder.embed_tokens(self.command_ids[batch.command])
        word_mask = self.command_mask[batch.command]
        if self.front is None:
            seen, beside = features.flatten(1, 2), None
        else:
            others = [index for index in range(cameras) if index != self.front]
            seen, beside = features[:, self.front], features[:, others].flatten(1, 2)
        # Concatenation equals the released model's placeholder scheme, whose image placeholders come first.
        inputs = torch.cat([seen, words.to(seen.dtype)], dim=1)
        mask = torch.cat([word_mask.new_ones(seen.shape[:2]), word_mask], dim=1)
        # As a whole mask: of a flat one transformers would ask whether it hides anything, which waits for the device.
        seen_by_all = mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
        tokens = self.text_encoder(inputs_embeds=inputs, attention_mask=seen_by_all).last_hidden_state
        if beside is not None and beside.shape[1]:
            tokens = torch.cat([tokens, beside.to(tokens.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(beside.shape[:2])], dim=1)
        return tokens, mask
