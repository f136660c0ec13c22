"""Florence-2 weights from a local directory or the Hugging Face hub, without its text decoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, Florence2Config

from dpvla.models.florence import FlorenceEncoder, tiny_florence_config, tiny_tokenizer, tokenise_commands

RELEASED = "florence-community/Florence-2-large"
RELEASED_REVISION = "4271c66b88cdbc05735372ec13b2360108de5317"

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")

# Prefix in the released file -> prefix in FlorenceEncoder. The word embedding is stored only as the shared one.
PREFIXES = {
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.": "projector.",
    "language_model.encoder.": "text_encoder.",
}
SHARED_EMBEDDING = "language_model.shared.weight"
LEFT_OUT = ("language_model.decoder.", "lm_head.", "language_model.final_logits_bias", "final_logits_bias")


def tiny_florence(
    image_size: tuple[int, int], num_cameras: int, views_in_text_encoder: Literal["all", "front"] = "all"
) -> FlorenceEncoder:
    """The random tiny variant with its in-memory tokenizer: no files, no network."""
    ids, mask = tokenise_commands(tiny_tokenizer())
    encoder = FlorenceEncoder(
        tiny_florence_config(),
        image_size=image_size,
        num_cameras=num_cameras,
        views_in_text_encoder=views_in_text_encoder,
        command_length=ids.shape[1],
    )
    encoder.set_commands(ids, mask)
    return encoder


def pretrained_florence(
    source: str,
    revision: str | None,
    *,
    image_size: tuple[int, int],
    num_cameras: int,
    views_in_text_encoder: Literal["all", "front"] = "all",
) -> FlorenceEncoder:
    """Encoder with the weights of a native Florence-2 checkpoint.

    ``source`` is a directory or a hub id such as ``florence-community/Florence-2-large``; a hub is only asked when no
    such directory exists. Missing and unexpected keys are errors; only the text decoder is left out.
    """
    locate = _locator(source, revision)
    config = _read_config(source, locate)
    for name in TOKENIZER_FILES:
        locate(name, False)
    tokenizer_folder = _required(locate, "config.json").parent
    ids, mask = tokenise_commands(AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True))
    encoder = FlorenceEncoder(
        config,
        image_size=image_size,
        num_cameras=num_cameras,
        views_in_text_encoder=views_in_text_encoder,
        command_length=ids.shape[1],
    )
    load_florence_weights(encoder, _tensors(_weight_files(source, locate)), source)
    encoder.set_commands(ids, mask)
    return encoder


def load_florence_weights(encoder: FlorenceEncoder, tensors: Iterator[tuple[str, Tensor]], source: str) -> None:
    """Copy the tensors of a full Florence-2 model into the encoder by key prefix; strict."""
    expected = {key: value for key, value in encoder.state_dict().items() if key not in ("command_ids", "command_mask")}
    embedding = "text_encoder.embed_tokens.weight"
    seen, unexpected = set(), []
    for original, tensor in tensors:
        key = original.removeprefix("model.")
        if key.startswith(LEFT_OUT):
            continue
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if key == SHARED_EMBEDDING:
            target = embedding
        elif prefix is not None:
            target = PREFIXES[prefix] + key.removeprefix(prefix)
        else:
            target = key
        if target not in expected:
            unexpected.append(original)
            continue
        if expected[target].shape != tensor.shape:
            raise ValueError(
                f"{source}: {original} has shape {tuple(tensor.shape)}, expected {tuple(expected[target].shape)}"
            )
        with torch.no_grad():
            expected[target].copy_(tensor)
        seen.add(target)
    missing = sorted(expected.keys() - seen)
    if missing or unexpected:
        raise ValueError(
            f"{source} is not a native Florence-2 checkpoint of this size: {len(missing)} keys missing "
            f"(first {missing[:3]}), {len(unexpected)} unexpected (first {unexpected[:3]}). {_native_hint()}"
        )


Locate = Callable[[str, bool], "Path | None"]


def _locator(source: str, revision: str | None) -> Locate:
    """A function from file name and whether it is needed to its path (``None`` for an absent optional file)."""
    folder = Path(source)
    if folder.is_dir():

        def in_folder(name: str, needed: bool) -> Path | None:
            path = folder / name
            if path.is_file():
                return path
            if needed:
                raise FileNotFoundError(f"{path} is missing: a Florence-2 directory needs it")
            return None

        return in_folder
    if source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise FileNotFoundError(f"{source} is neither a directory nor a hub id like {RELEASED}")
    if source.startswith("microsoft/"):
        raise ValueError(f"{source} is in the remote-code format and does not load. {_native_hint()}")
    if revision is None and source == RELEASED:
        revision = RELEASED_REVISION

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def on_hub(name: str, needed: bool) -> Path | None:
        try:
            return Path(hf_hub_download(source, name, revision=revision))
        except EntryNotFoundError:
            if needed:
                raise FileNotFoundError(f"{source} has no {name} on the hub (revision {revision})") from None
            return None

    return on_hub


def _required(locate: Locate, name: str) -> Path:
    path = locate(name, True)
    assert path is not None
    return path


def _read_config(source: str, locate: Locate) -> Florence2Config:
    path = _required(locate, "config.json")
    raw: dict[str, Any] = json.loads(path.read_text())
    text_type = raw.get("text_config", {}).get("model_type", "bart")
    if raw.get("model_type") != "florence2" or text_type != "bart" or "auto_map" in raw:
        raise ValueError(
            f"{path} describes {raw.get('model_type')!r} with text model {text_type!r}, which is the remote-code "
            f"format or another model. {_native_hint()}"
        )
    return Florence2Config.from_dict(raw)


def _weight_files(source: str, locate: Locate) -> list[Path]:
    whole = locate(WEIGHTS, False)
    if whole is not None:
        return [whole]
    index = locate(INDEX, False)
    if index is None:
        raise FileNotFoundError(f"{source} has neither {WEIGHTS} nor {INDEX}; other weight formats are not read")
    return [_required(locate, name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _tensors(paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield key, file.get_tensor(key)


def _native_hint() -> str:
    return f"Use the native format: {RELEASED} (or -base, -ft variants of florence-community), or a copy of it on disk."
