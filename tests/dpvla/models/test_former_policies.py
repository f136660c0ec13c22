"""Policies that version 0.1.0 saved (tests/fixtures/policies_v1): every encoder had the keys of all encoders then."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpvla.batch import DrivingBatch
from dpvla.checkpoint_layout import CONFIG_FILE, WEIGHTS_FILE
from dpvla.config import ConfigError
from dpvla.encoders.config import EncoderConfig, FlorenceConfig, TimmConfig
from dpvla.encoders.registry import encoder_class
from dpvla.files import read_json
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.sensors import DEFAULT_CAMERAS
from tests.paths import FIXTURES

SAVED = FIXTURES / "policies_v1"
ENCODERS: dict[str, EncoderConfig] = {
    "timm": TimmConfig(network="test_convnext", pretrained=False, image_width=96, image_height=48, stride=12,
                       summary_width=16,
                       options={"patch_size": 6, "dims": [48, 96, 96, 96], "depths": [1, 2, 1, 1]}),
    "florence_tiny": FlorenceConfig(source="tiny", image_width=96, image_height=48),
    "florence_large": FlorenceConfig(revision="4271c66b"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_configs_of_then_say_what_they_said(name: str) -> None:
    encoder = DPVLAConfig.from_dict(read_json(SAVED / name / CONFIG_FILE)["model"]).encoder
    assert encoder == ENCODERS[name] and encoder.cameras == DEFAULT_CAMERAS


@pytest.mark.parametrize("name", ENCODERS)
def test_tensors_have_the_names_and_shapes_of_then(name: str) -> None:
    description = read_json(SAVED / name / CONFIG_FILE)
    config = DPVLAConfig.from_dict(description["model"])
    part: torch.nn.Module
    with torch.device("meta" if name == "florence_large" else "cpu"):
        part = encoder_class(config.encoder).from_architecture(config.encoder, description["encoder_architecture"])
    if name != "florence_large":  # of which the list holds the encoder alone
        part = DPVLA(config, part)  # type: ignore[arg-type]
    ours = [f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in part.state_dict().items()]
    assert ours == (SAVED / name / "tensors.txt").read_text().splitlines()


def test_weights_of_then_load_bit_for_bit_and_plan_as_then() -> None:
    policy = DPVLA.from_pretrained(SAVED / "small")
    state = policy.state_dict()
    tensors = load_file(SAVED / "small" / WEIGHTS_FILE)
    assert state.keys() == tensors.keys() and all(torch.equal(state[key], tensors[key]) for key in tensors)
    draw = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (2, 3, 3, 24, 48), dtype=torch.uint8, generator=draw)
    status, history = torch.randn(2, 4, generator=draw) + 3, torch.randn(2, 3, 3, generator=draw)
    batch = DrivingBatch(("a", "b"), images, torch.arange(2), status, history)
    with torch.no_grad():
        plans = policy.sample(policy.encode(batch), 1, noise=torch.zeros(2, 1, 8, 4))[:, 0]
    expected = torch.tensor(json.loads((SAVED / "small" / "plans.json").read_text())["plans"])
    torch.testing.assert_close(plans, expected, rtol=1e-4, atol=1e-4)


def test_a_policy_of_then_is_saved_in_the_words_of_today(tmp_path: Path) -> None:
    policy = DPVLA.from_pretrained(SAVED / "small")
    policy.save_pretrained(tmp_path)
    description = read_json(tmp_path / CONFIG_FILE)
    encoder = description["model"]["encoder"]
    assert description["format_version"] == 2 and encoder["name"] == "timm" and encoder["network"] == "test_convnext"
    assert "num_cameras" not in encoder and "revision" not in encoder
    again = DPVLA.from_pretrained(tmp_path)
    assert again.config == policy.config
    assert load_file(tmp_path / WEIGHTS_FILE).keys() == load_file(SAVED / "small" / WEIGHTS_FILE).keys()


def test_where_first_weights_came_from_may_be_said_otherwise_and_nothing_else() -> None:
    saved = DPVLA.from_pretrained(SAVED / "small").config
    assert isinstance(saved.encoder, TimmConfig)
    for same in ({}, {"pretrained": True}):
        wanted = replace(saved, encoder=replace(saved.encoder, **same))  # type: ignore[arg-type]
        assert DPVLA.from_pretrained(SAVED / "small", config=wanted).config == wanted
    others: list[EncoderConfig] = [
        replace(saved.encoder, cameras=("front",)),
        replace(saved.encoder, network="test_resnet"),
        FlorenceConfig(source="tiny", image_width=48, image_height=24),
    ]
    for encoder in others:
        with pytest.raises(ConfigError, match=r"model\.encoder\.(cameras|network|name) is .* give the same model"):
            DPVLA.from_pretrained(SAVED / "small", config=replace(saved, encoder=encoder))


def test_a_policy_with_another_number_of_cameras_never_worked_and_is_told(tmp_path: Path) -> None:
    shutil.copytree(SAVED / "small", tmp_path, dirs_exist_ok=True)
    description = read_json(tmp_path / CONFIG_FILE)
    description["model"]["encoder"]["num_cameras"] = 2
    (tmp_path / CONFIG_FILE).write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=r"num_cameras 2 is gone: name the cameras, such as cameras: \[front\]"):
        DPVLA.from_pretrained(tmp_path)


def test_a_policy_with_an_encoder_of_ones_own_asks_for_its_module(tmp_path: Path) -> None:
    shutil.copytree(SAVED / "small", tmp_path, dirs_exist_ok=True)
    description = read_json(tmp_path / CONFIG_FILE)
    description["model"]["encoder"] = {"name": "mine", "patch": 3}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=r"config\.json: encoder\.name: unknown encoder 'mine'; .*--plugin"):
        DPVLA.from_pretrained(tmp_path)
