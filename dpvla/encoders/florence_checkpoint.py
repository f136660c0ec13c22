"""Florence-2 weights from a local directory or the Hugging Face hub, without its text decoder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Florence2Config

from dpvla.encoders.config import RELEASED
from dpvla.encoders.florence_commands import tokenize_commands
from dpvla.encoders.florence_config import florence_config
from dpvla.files import read_json
from dpvla.tensors import not_finite, read_tensors

RELEASED_REVISION = "4271c66b88cdbc05735372ec13b2360108de5317"

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")

# Prefix in the released file -> prefix in FlorenceEncoder. The word embedding is stored only as the shared one.
PREFIXES = {
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.": "projector.",
    "language_model.encoder.": "text_encoder.",
}
EMBEDDING = "text_encoder.embed_tokens.weight"
EMBEDDINGS = (
    "language_model.encoder.embed_tokens.weight", "language_model.shared.weight",
    "language_model.decoder.embed_tokens.weight", "lm_head.weight",
)  # fmt: skip
"""Names under which transformers ties the word embedding: of those in a file the encoder gets the first."""
LEFT_OUT = ("language_model.decoder.", "lm_head.", "language_model.final_logits_bias", "final_logits_bias")


Locate = Callable[[str, bool], "Path | None"]
"""From a file's name, and whether it is needed, to its path; None for an absent one that is not."""


@dataclass(frozen=True)
class FlorenceFiles:
    """A native Florence-2 checkpoint: config and commands are read, tensors when asked for."""

    source: str
    config: Florence2Config
    command_ids: Tensor  # (command, word) int64, padded
    command_mask: Tensor  # (command, word) bool, True for real words
    locate: Locate

    @classmethod
    def open(cls, source: str, revision: str | None) -> FlorenceFiles:
        """The files of a directory, or of a hub id such as ``florence-community/Florence-2-large``.

        Raises FileNotFoundError or ValueError: files are missing, of another format, or do not fit each other.
        """
        locate = _locator(source, revision)
        config = _read_config(source, locate)
        for name in TOKENIZER_FILES:
            locate(name, False)
        folder = _required(locate, "config.json").parent
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(
                f"{folder} holds no tokenizer that loads ({_first_line(error)}); it needs {TOKENIZER_FILES[0]}, "
                "or vocab.json with merges.txt"
            ) from None
        ids, mask = tokenize_commands(tokenizer)
        vocabulary = int(getattr(config.text_config, "vocab_size", 0))
        _refuse_tokenizer_that_tells_nothing(ids, mask, tokenizer, vocabulary, folder)
        return cls(source, config, ids, mask, locate)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the whole file, or else of the shards that the index lists, each from the shard it names."""
        yield from _tensors(self.source, self.locate)


def _refuse_tokenizer_that_tells_nothing(
    ids: Tensor, mask: Tensor, tokenizer: Any, vocabulary: int, folder: Path
) -> None:
    """Without its files a tokenizer still loads, empty: every command would then read alike."""
    words = [tuple(row[real].tolist()) for row, real in zip(ids, mask)]
    unknown = tokenizer.unk_token_id
    if len(set(words)) < len(words) or any(unknown in row for row in words) or int(ids.max()) >= vocabulary:
        raise ValueError(
            f"the tokenizer in {folder} does not tell the driving commands apart in a vocabulary of {vocabulary} "
            f"words; the folder needs the model's own {TOKENIZER_FILES[0]}, or vocab.json with merges.txt"
        )


def load_weights(encoder: nn.Module, tensors: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Copy the tensors of a full Florence-2 model into the encoder, as transformers would load them.

    Every tensor is accounted for: it has a place, or belongs to the text decoder, which is left out (how many are
    is said on stderr). The word embedding may stand under any of its tied names.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape, not finite, or two are meant for one place.
    """
    expected = {key: value for key, value in encoder.state_dict().items() if key not in ("command_ids", "command_mask")}
    embeddings: dict[str, Tensor] = {}
    filled: dict[str, str] = {}
    unexpected, left_out = [], 0

    def fill(target: str, original: str, tensor: Tensor) -> None:
        if target in filled:
            raise ValueError(f"{source}: {filled[target]} and {original} are both meant for the same weight; keep one")
        if expected[target].shape != tensor.shape:
            raise ValueError(
                f"{source}: {original} has shape {tuple(tensor.shape)}, expected {tuple(expected[target].shape)}"
            )
        if expected[target].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{source}: {original} holds {tensor.dtype}, expected {expected[target].dtype}")
        if not_finite({original: tensor}):
            raise ValueError(f"{source}: {original} holds NaN or infinity; the file is damaged, get it again")
        with torch.no_grad():
            expected[target].copy_(tensor)
        filled[target] = original

    for original, tensor in tensors:
        key = original.removeprefix("model.")
        if key in EMBEDDINGS:
            if key in embeddings:
                raise ValueError(f"{source}: two tensors are called {key}; keep one")
            embeddings[key] = tensor
        elif key.startswith(LEFT_OUT):
            left_out += 1
        else:
            prefix = next((p for p in PREFIXES if key.startswith(p)), None)
            target = key if prefix is None else PREFIXES[prefix] + key.removeprefix(prefix)
            if prefix is None or target not in expected:
                unexpected.append(original)
            else:
                fill(target, original, tensor)
    found = [name for name in EMBEDDINGS if name in embeddings]
    if found:
        fill(EMBEDDING, found[0], embeddings[found[0]])
    missing = sorted(expected.keys() - filled.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source} is not a native Florence-2 checkpoint of this size: {len(missing)} keys missing "
            f"(first {missing[:3]}), {len(unexpected)} unexpected (first {unexpected[:3]}). {_native_hint()}"
        )
    differing = [name for name in found[1:2] if not torch.equal(embeddings[name], embeddings[found[0]])]
    _say(
        f"{source}: {len(filled)} tensors read, {left_out} of the text decoder left out (it is not used)"
        + (f"; {differing[0]} differs from {found[0]}, which the encoder reads" if differing else "")
    )


def _say(text: str) -> None:
    """On stderr, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _locator(source: str, revision: str | None) -> Locate:
    """How the files of a directory or of a hub's model are found."""
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
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def on_hub(name: str, needed: bool) -> Path | None:
        try:
            return Path(hf_hub_download(source, name, revision=revision))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError by inheritance, but nobody asked the hub
            if name in TOKENIZER_FILES:  # which of them a model has differs; without any, loading the tokenizer says so
                return None
            raise FileNotFoundError(_unreached(source, name, error)) from None
        except EntryNotFoundError:
            if needed:
                raise FileNotFoundError(f"{source} has no {name} on the hub (revision {revision})") from None
            return None
        except HfHubHTTPError as error:  # no such repository or revision, gated, server errors
            raise FileNotFoundError(f"{source} (revision {revision}): the hub answered: {_first_line(error)}") from None
        except OSError as error:  # connections that break
            raise FileNotFoundError(_unreached(source, name, error)) from None

    return on_hub


def _unreached(source: str, name: str, error: BaseException) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    why = "HF_HUB_OFFLINE is set" if offline else f"no connection ({_first_line(error.__cause__ or error)})"
    return (
        f"{name} of {source} is not in the local cache and the Hugging Face hub was not reached: {why}. Give a copy "
        "on disk instead, --model.encoder.source DIRECTORY (a folder with config.json, model.safetensors and the "
        f"tokenizer's files; where there is a network, `hf download {source} --local-dir DIRECTORY` makes one)"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _required(locate: Locate, name: str) -> Path:
    path = locate(name, True)
    assert path is not None
    return path


def _read_config(source: str, locate: Locate) -> Florence2Config:
    path = _required(locate, "config.json")
    raw: dict[str, Any] = read_json(path)
    text = raw.get("text_config", {})
    text_type = text.get("model_type", "bart") if isinstance(text, dict) else type(text).__name__
    if raw.get("model_type") != "florence2" or text_type != "bart" or "auto_map" in raw:
        raise ValueError(
            f"{path} describes {raw.get('model_type')!r} with text model {text_type!r}, which is the remote-code "
            f"format or another model. {_native_hint()}"
        )
    return florence_config(raw, str(path))


def _tensors(source: str, locate: Locate) -> Iterator[tuple[str, Tensor]]:
    whole = locate(WEIGHTS, False)
    if whole is not None:
        yield from read_tensors(whole)
        return
    index = locate(INDEX, False)
    if index is None:
        raise FileNotFoundError(f"{source} has neither {WEIGHTS} nor {INDEX}; other weight formats are not read")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    waiting = dict(shards)
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}, which is not a file beside it")
        for name, tensor in read_tensors(_required(locate, shard)):
            if waiting.pop(name, None) != shard:
                raise ValueError(f"{index}: {name} stands in {shard}, but not by this index; the shards are mixed up")
            yield name, tensor
    if waiting:
        name = sorted(waiting)[0]
        raise ValueError(
            f"{index}: {len(waiting)} tensors are not in the shards it names, first {name} ({waiting[name]})"
        )


def _native_hint() -> str:
    return f"Use the native format: {RELEASED} (or -base, -ft variants of florence-community), or a copy of it on disk."
