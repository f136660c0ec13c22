"""What of a Florence-2 config is taken from a file, which may be a stranger's.

Only what says how the network is built: sizes within bounds, names of activations, ids of tokens. Everything else that
transformers would take (code to load, other implementations of attention, quantization, types) is left out, as are the
many keys about generating text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from transformers import Florence2Config

from dpvla.config import Range, Size, refuse_size
from dpvla.files import FileError
from dpvla.schema import checked

_Small = Annotated[int, Range(least=0, most=1024)]
_Layers = Annotated[int, Range(least=1, most=512)]
_Id = Annotated[int, Range(least=0, most=2**22)]
_Rate = Annotated[float, Range(least=0, below=1)]
_Activation = Literal["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"]


class _Vision(TypedDict, total=False):
    """Of ``Florence2VisionConfig``; lists have one value a stage."""

    in_channels: Literal[3]
    depths: list[_Layers]
    patch_size: list[_Small]
    patch_stride: list[_Small]
    patch_padding: list[_Small]
    patch_prenorm: list[bool]
    embed_dim: list[Size]
    num_heads: list[Size]
    num_groups: list[Size]
    window_size: Annotated[int, Range(least=1, most=1024)]
    drop_path_rate: _Rate
    mlp_ratio: Annotated[float, Range(above=0, most=64)]
    qkv_bias: bool
    activation_function: _Activation
    projection_dim: Size
    max_temporal_embeddings: Size
    max_position_embeddings: Size
    initializer_range: Annotated[float, Range(least=0, most=1)]


class _Text(TypedDict, total=False):
    """Of ``BartConfig``."""

    model_type: Literal["bart"]
    vocab_size: Annotated[int, Range(least=1, most=2**22)]
    max_position_embeddings: Annotated[int, Range(least=1, most=2**17)]
    encoder_layers: _Layers
    encoder_ffn_dim: Annotated[int, Range(least=1, most=2**16)]
    encoder_attention_heads: Size
    decoder_layers: _Layers
    decoder_ffn_dim: Annotated[int, Range(least=1, most=2**16)]
    decoder_attention_heads: Size
    encoder_layerdrop: _Rate
    decoder_layerdrop: _Rate
    activation_function: _Activation
    d_model: Size
    dropout: _Rate
    attention_dropout: _Rate
    activation_dropout: _Rate
    classifier_dropout: _Rate
    init_std: Annotated[float, Range(least=0, most=1)]
    scale_embedding: bool
    use_cache: bool
    pad_token_id: _Id
    bos_token_id: _Id | None
    eos_token_id: _Id | list[_Id] | None
    decoder_start_token_id: _Id | None
    forced_eos_token_id: _Id | list[_Id] | None
    is_decoder: Literal[False]
    tie_word_embeddings: bool


class _Both(TypedDict):
    vision_config: _Vision
    text_config: _Text


class _Florence(_Both, total=False):
    """Of ``Florence2Config``."""

    model_type: Literal["florence2"]
    image_token_id: _Id
    is_encoder_decoder: bool
    tie_word_embeddings: bool


def florence_config(raw: Mapping[str, Any], where: str) -> Florence2Config:
    """The config that a mapping describes, as ``Florence2Config.to_dict`` and the released files write it.

    Raises FileError, led by ``where`` and the key: a value is of another type or out of range, sizes do not go
    together, or it is a network of more weights than any has.
    """
    content = checked(raw, _Florence, where)
    taken = {key: content[key] for key in _Florence.__annotations__ if key in content}  # type: ignore[literal-required]
    for key, schema in (("vision_config", _Vision), ("text_config", _Text)):
        taken[key] = {name: raw[key][name] for name in schema.__annotations__ if name in raw[key]}
    taken.pop("model_type", None)
    taken["text_config"]["model_type"] = "bart"
    try:
        config = Florence2Config(**taken)
    except Exception as error:  # transformers and huggingface_hub raise classes of their own for single fields
        raise FileError(f"{where} is not a usable Florence-2 config: {error!s:.200}") from None
    try:
        _require_fitting(config.vision_config, config.text_config)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None
    return config


def _require_fitting(vision: Any, text: Any) -> None:
    stages = len(vision.embed_dim)
    per_stage = (
        "embed_dim", "depths", "patch_size", "patch_stride", "patch_padding", "patch_prenorm", "num_heads", "num_groups"
    )  # fmt: skip
    if not 1 <= stages <= 16:
        raise ValueError(f"vision_config.embed_dim has {stages} stages, from 1 to 16 are taken")
    for key in per_stage:
        values = getattr(vision, key)
        if len(values) != stages:
            raise ValueError(f"vision_config.{key} has {len(values)} values, embed_dim has {stages}")
        if key in ("patch_size", "patch_stride") and min(values) < 1:
            raise ValueError(f"vision_config.{key} must be at least 1")
        if key.startswith("num_") and any(width % parts for width, parts in zip(vision.embed_dim, values)):
            raise ValueError(f"vision_config.embed_dim is not divisible by {key}")
    if text.d_model % text.encoder_attention_heads:
        raise ValueError("text_config.d_model is not divisible by encoder_attention_heads")
    if text.d_model != vision.projection_dim:
        raise ValueError(
            f"vision_config.projection_dim {vision.projection_dim} is not text_config.d_model {text.d_model}"
        )
    if text.pad_token_id is None or text.pad_token_id >= text.vocab_size:
        raise ValueError(f"text_config.pad_token_id {text.pad_token_id} is not in a vocabulary of {text.vocab_size}")
    weights = 0.0
    for width, depth, patch, before in zip(vision.embed_dim, vision.depths, vision.patch_size, [3, *vision.embed_dim]):
        weights += width * before * patch**2 + depth * (8 + 4 * vision.mlp_ratio) * width**2
    refuse_size(weights, "vision_config")
    layer = 4 * text.d_model + 2 * text.encoder_ffn_dim
    words = text.vocab_size + text.max_position_embeddings
    refuse_size(text.d_model * (words + text.encoder_layers * layer), "text_config")
