"""The Florence-2 encoder against transformers' full model, saved locally at tiny size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from dpvla.batch import COMMANDS, DrivingBatch
from dpvla.encoders.config import FlorenceConfig
from dpvla.encoders.florence import FlorenceEncoder
from dpvla.encoders.florence_commands import COMMAND_PHRASES, tokenize_commands
from dpvla.encoders.florence_config import florence_config
from dpvla.encoders.florence_tiny import tiny_florence_config, tiny_tokenizer
from dpvla.files import FileError
from dpvla.tensors import empty_parameters

SIZE = 64


def pretrained_florence(source: Path | str) -> FlorenceEncoder:
    return FlorenceEncoder.from_config(FlorenceConfig(source=str(source), image_width=SIZE, image_height=SIZE))


def tiny_florence(views: Literal["all", "front"] = "all", cameras: tuple[str, ...] | None = None) -> FlorenceEncoder:
    config = FlorenceConfig(source="tiny", image_width=SIZE, image_height=SIZE, views_in_text_encoder=views)
    return FlorenceEncoder.from_config(config if cameras is None else replace(config, cameras=cameras))


@pytest.fixture(scope="module")
def full_model() -> Any:
    torch.manual_seed(0)
    return Florence2ForConditionalGeneration(tiny_florence_config()).eval()


@pytest.fixture(scope="module")
def checkpoint(full_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("florence")
    full_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _copy(folder: Path, target: Path) -> Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def _batch(encoder: FlorenceEncoder, command: Tensor) -> DrivingBatch:
    return replace(encoder.fake_batch(len(command)), command=command)


@torch.no_grad()
def test_the_encoder_equals_the_full_models(full_model: Any, checkpoint: Path) -> None:
    encoder = pretrained_florence(checkpoint).eval()
    batch = _batch(encoder, torch.arange(4))
    images = batch.images
    tokens, mask = encoder(batch)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    tokenizer: Any = tiny_tokenizer()
    for scene in range(4):
        pixels = (images[scene].float() / 255 - mean) / std
        features = full_model.model.get_image_features(pixels).pooler_output.flatten(0, 1)
        words = torch.tensor(tokenizer(COMMAND_PHRASES[scene])["input_ids"])
        inputs = torch.cat([features, full_model.get_input_embeddings()(words)])[None]
        expected = full_model.model.language_model.encoder(inputs_embeds=inputs).last_hidden_state[0]
        assert mask[scene].sum().item() == len(expected)
        torch.testing.assert_close(tokens[scene][mask[scene]], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_sharded_checkpoint_loads_the_same(full_model: Any, checkpoint: Path, tmp_path: Path) -> None:
    full_model.save_pretrained(tmp_path, max_shard_size="1MB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    whole = pretrained_florence(checkpoint).state_dict()
    sharded = pretrained_florence(tmp_path).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)


def test_missing_and_unexpected_keys_are_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = _copy(checkpoint, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.vision_tower.extra.weight"] = tensors.pop("model.vision_tower.convs.0.conv.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 keys missing.*vision_tower\.convs\.0\.conv\.weight.*1 unexpected"):
        pretrained_florence(folder)


EMBEDDING = "text_encoder.embed_tokens.weight"


def _stored(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """The checkpoint in ``folder`` with its tensors changed by ``change``."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("shared",),
        ("encoder.embed_tokens",),
        ("decoder.embed_tokens",),
        ("shared", "encoder.embed_tokens"),
        ("encoder.embed_tokens", "decoder.embed_tokens", "shared"),
    ],
)
@torch.no_grad()
def test_the_word_embedding_is_read_as_transformers_reads_it(
    checkpoint: Path, tmp_path: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever tied names it stands under, and where they differ: the encoder's own."""
    folder = _copy(checkpoint, tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        stored = tensors.pop("model.language_model.shared.weight")
        for place, name in enumerate(names):
            tensors[f"model.language_model.{name}.weight"] = stored + place

    source = _stored(folder, change)
    ours = pretrained_florence(source)
    theirs = Florence2ForConditionalGeneration.from_pretrained(source).model.language_model.encoder
    assert torch.equal(ours.state_dict()[EMBEDDING], theirs.embed_tokens.weight)
    assert ("differs from" in capsys.readouterr().err) == (len(names) > 1)


def test_two_tensors_for_one_weight_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["vision_tower.convs.0.conv.weight"] = 2 * tensors["model.vision_tower.convs.0.conv.weight"]

    with pytest.raises(ValueError, match=r"vision_tower\.convs\.0\.conv\.weight .*both meant for the same weight"):
        pretrained_florence(_stored(_copy(checkpoint, tmp_path), change))


def test_what_is_not_read_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    decoder = [name for name in tensors if ".decoder." in name or "logits" in name or "lm_head" in name]
    pretrained_florence(checkpoint)
    assert f"{len(tensors) - len(decoder)} tensors read, {len(decoder)} of the text decoder left out" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "NaN or infinity"), (None, "holds torch.int64")])
def test_weights_that_cannot_be_right_are_refused(
    checkpoint: Path, tmp_path: Path, value: float | None, message: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        name = "model.vision_tower.convs.0.conv.weight"
        tensors[name] = tensors[name].long() if value is None else tensors[name].clone().fill_(value)

    with pytest.raises(ValueError, match=message):
        pretrained_florence(_stored(_copy(checkpoint, tmp_path), change))


def test_a_mixed_up_index_is_refused(full_model: Any, tmp_path: Path) -> None:
    full_model.save_pretrained(tmp_path, max_shard_size="1MB")
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.vision_tower.convs.0.conv.weight"
    shards = sorted(set(index["weight_map"].values()))

    def refused(message: str, **weight_map: str) -> None:
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | weight_map}))
        with pytest.raises(ValueError, match=message):
            pretrained_florence(tmp_path)

    refused("not by this index", **{name: next(s for s in shards if s != index["weight_map"][name])})
    refused("1 tensors are not in the shards it names, first absent", absent=shards[0])
    refused("not a file beside it", **{name: "../elsewhere.safetensors"})
    path.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is not valid JSON"):
        pretrained_florence(tmp_path)


def test_a_folder_without_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """transformers then makes an empty one, for which all commands are alike."""
    folder = _copy(checkpoint, tmp_path)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="does not tell the driving commands apart"):
        pretrained_florence(folder)


@pytest.mark.parametrize(
    "change", [{"text_config": 5}, {"vision_config": {"depths": [1]}}, {"text_config": {"d_model": 0}}]
)
def test_a_config_that_describes_nothing_is_refused(checkpoint: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = _copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError):
        pretrained_florence(folder)


def test_a_damaged_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = _copy(checkpoint, tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        pretrained_florence(folder)


def test_a_hub_that_is_not_reached_is_not_said_to_lack_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def answer(error: Exception) -> str:
        def download(*arguments: Any, **options: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(FileNotFoundError) as refused:
            pretrained_florence("florence-community/Florence-2-large")
        return str(refused.value)

    for error in (LocalEntryNotFoundError("not cached"), ConnectionError("Name or service not known")):
        text = answer(error)
        assert "was not reached" in text and "--model.encoder.source DIRECTORY" in text and "has no" not in text
    assert "has no config.json on the hub" in answer(EntryNotFoundError("404"))


def test_the_remote_code_format_is_explained(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"remote-code format.*florence-community"):
        pretrained_florence("microsoft/Florence-2-large")
    folder = _copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "florence2_language"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="florence-community"):
        pretrained_florence(folder)


def test_absent_files_and_folders_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a directory nor a hub id"):
        pretrained_florence("./no/such/folder")
    folder = _copy(checkpoint, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        pretrained_florence(folder)


def test_every_command_has_its_own_words() -> None:
    ids, mask = tokenize_commands(tiny_tokenizer())
    rows = {tuple(row[keep].tolist()) for row, keep in zip(ids, mask)}
    assert len(rows) == len(COMMANDS) == len(COMMAND_PHRASES)


@torch.no_grad()
def test_the_command_changes_every_token_and_padding_none() -> None:
    torch.manual_seed(0)
    encoder = tiny_florence().eval()
    batch = encoder.fake_batch(1)
    alone = {c: encoder(replace(batch, command=torch.tensor([c]))) for c in range(4)}
    assert not torch.allclose(alone[0][0], alone[2][0], atol=1e-4)
    encoder.command_ids[~encoder.command_mask] = 7  # what stands in the padding
    for command, (tokens, mask) in alone.items():
        again = encoder(replace(batch, command=torch.tensor([command])))[0]
        torch.testing.assert_close(again[mask], tokens[mask])


@torch.no_grad()
def test_front_only_keeps_the_side_views_out_of_the_text_encoder() -> None:
    torch.manual_seed(0)
    encoder = tiny_florence("front").eval()
    batch = _batch(encoder, torch.tensor([1]))
    changed = batch.images.clone()
    changed[:, 0] = 0
    first, second = encoder(batch)[0], encoder(replace(batch, images=changed))[0]
    per_view = encoder.projector(encoder.vision_tower(torch.zeros(1, 3, SIZE, SIZE)).last_hidden_state).shape[1]
    front = first.shape[1] - 2 * per_view
    torch.testing.assert_close(first[:, :front], second[:, :front])
    assert not torch.allclose(first[:, front : front + per_view], second[:, front : front + per_view], atol=1e-4)
    torch.testing.assert_close(first[:, front + per_view :], second[:, front + per_view :])


@torch.no_grad()
def test_the_front_camera_is_found_wherever_it_stands() -> None:
    torch.manual_seed(0)
    usual = tiny_florence("front").eval()
    other = tiny_florence("front", ("rear", "front_right", "front")).eval()
    other.load_state_dict(usual.state_dict())
    batch = usual.fake_batch(2)
    first, second = usual(batch)[0], other(replace(batch, images=batch.images[:, [0, 2, 1]]))[0]
    torch.testing.assert_close(first, second)
    with pytest.raises(ValueError, match=r"views_in_text_encoder is front, but encoder\.cameras are rear, left"):
        tiny_florence("front", ("rear", "left"))


def test_no_text_decoder_is_built_and_the_word_embedding_is_frozen() -> None:
    encoder = tiny_florence()
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen == ["text_encoder.embed_tokens.weight"]


def test_images_of_another_size_or_type_are_refused() -> None:
    encoder = tiny_florence()
    batch = encoder.fake_batch(1)
    with pytest.raises(ValueError, match=r"expected \(scene, 3, 3, 64, 64\)"):
        encoder(replace(batch, images=batch.images[..., :32, :]))
    with pytest.raises(TypeError, match="uint8"):
        encoder(replace(batch, images=batch.images.float()))


def test_the_large_encoder_has_the_size_the_paper_implies() -> None:
    """571M without the text decoder; with the 475M head that is the paper's "1-billion parameter model"."""
    with empty_parameters():
        encoder = FlorenceEncoder.from_config(FlorenceConfig(source="large"))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(570.7, abs=0.05)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "vocab_size", 10**12),
        ("text_config", "d_model", 10**9),
        ("text_config", "d_model", 1024),
        ("text_config", "encoder_layers", 10**6),
        ("text_config", "encoder_attention_heads", 7),
        ("text_config", "dropout", "0.1"),
        ("text_config", "pad_token_id", 4_000_000),
        ("text_config", "model_type", "llama"),
        ("text_config", "activation_function", "os.system"),
        ("vision_config", "depths", [10**6] * 4),
        ("vision_config", "depths", [1]),
        ("vision_config", "embed_dim", [2**14] * 4),
        ("vision_config", "embed_dim", [0] * 4),
        ("vision_config", "patch_size", [0] * 4),
        ("vision_config", "num_heads", [5] * 4),
        ("vision_config", "window_size", 0),
        ("vision_config", "qkv_bias", 3),
    ],
)
def test_what_no_florence_has_is_refused_with_its_key_before_it_is_built(part: str, key: str, value: Any) -> None:
    raw = json.loads(json.dumps(tiny_florence_config().to_diff_dict()))
    raw[part][key] = value
    with pytest.raises(FileError, match=rf"^config\.json: .*{part}.*{key}"):
        florence_config(raw, "config.json")


def test_of_a_florence_config_nothing_is_taken_that_loads_code() -> None:
    plain = tiny_florence_config().to_diff_dict()
    hostile: dict[str, Any] = json.loads(json.dumps(plain))
    for part in (hostile, hostile["text_config"], hostile["vision_config"]):
        part |= {
            "auto_map": {"AutoConfig": "somebody/else--code.Config"},
            "_attn_implementation": "somebody/kernel",
            "attn_implementation": "somebody/kernel",
            "quantization_config": {"quant_method": "bitsandbytes"},
            "dtype": "float8",
            "_name_or_path": "/etc/passwd",
        }
    assert florence_config(hostile, "config.json").to_dict() == florence_config(plain, "config.json").to_dict()
