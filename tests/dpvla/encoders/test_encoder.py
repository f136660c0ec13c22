"""The encoder contract: configs in all words, batches without data, encoders of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dpvla.batch import DrivingBatch
from dpvla.cli import parse
from dpvla.config import ConfigError, from_dict
from dpvla.encoders.config import AnyEncoderConfig, EncoderConfig, FlorenceConfig, TimmConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.registry import ENCODERS, encoder_class
from dpvla.encoders.timm import TimmEncoder
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.plan import NUM_POSES
from dpvla.sensors import DEFAULT_CAMERAS, Sensors
from tests.dpvla.models.tiny_policies import CONFIGS


def encoder_of(data: Mapping[str, Any]) -> AnyEncoderConfig:
    return from_dict(DPVLAConfig, {"encoder": data}, "x").encoder


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ({"name": "timm:resnet18"}, TimmConfig()),
        (
            {"name": "timm:a", "timm_options": {"depth": 1}, "num_cameras": 3, "revision": None},
            TimmConfig(network="a", options={"depth": 1}),
        ),
        ({"name": "florence:tiny", "pretrained": False, "stride": 8}, FlorenceConfig(source="tiny")),
        ({"name": "florence-community/Florence-2-base"}, FlorenceConfig(source="florence-community/Florence-2-base")),
        (
            {"name": "./weights", "views_in_text_encoder": "front"},
            FlorenceConfig(source="./weights", views_in_text_encoder="front"),
        ),
        ({"name": "some folder", "num_cameras": 3}, FlorenceConfig(source="some folder")),
        ({}, FlorenceConfig()),
        ({"name": "timm", "network": "a"}, TimmConfig(network="a")),
        ({"name": "florence", "cameras": ["front"]}, FlorenceConfig(cameras=("front",))),
    ],
)
def test_former_words_mean_what_they_meant(former: dict[str, Any], today: EncoderConfig) -> None:
    assert encoder_of(former) == today


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "florense"}, "unknown encoder 'florense'; nearest valid name: 'florence' .*--plugin"),
        ({"name": "timm", "revision": "x"}, "unknown key 'encoder.revision'"),
        ({"name": "florence", "stride": 3}, "unknown key 'encoder.stride'"),
        ({"num_cameras": 1}, "num_cameras 1 is gone: name the cameras"),
        ({"cameras": []}, "cameras must name at least one, at most 64, each once, found none"),
        ({"cameras": ["front", "front"]}, "each once, found front, front"),
        ({"name": "timm", "image_width": 0}, "encoder.image_width must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder_of(data)


@dataclass(frozen=True)
class Options:
    """Options of a tool that builds a policy."""

    model: DPVLAConfig = field(default_factory=DPVLAConfig)  # the policy


def test_former_words_work_on_the_command_line_over_a_former_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "model: {encoder: {name: 'timm:a', pretrained: false, image_width: 96, stride: 12, timm_options: {depth: 1}}}"
    )
    files = ["--config", str(tmp_path / "a.yaml")]
    file = TimmConfig(network="a", pretrained=False, image_width=96, stride=12, options={"depth": 1})

    def encoder(*words: str) -> AnyEncoderConfig:
        return parse(Options, [*files, *words]).model.encoder

    assert encoder() == file
    assert encoder("--model.encoder.name", "timm:b") == replace(file, network="b")
    assert encoder("--model.encoder.timm-options.depth", "2") == replace(file, options={"depth": 2})
    florence = FlorenceConfig(source="tiny", image_width=96)
    assert encoder("--model.encoder.name=florence:tiny") == florence
    assert encoder("--model.encoder", "florence", "--model.encoder.source", "tiny") == florence
    assert encoder("--model.encoder.name", str(tmp_path)) == replace(florence, source=str(tmp_path))
    assert encoder("--model.encoder.cameras", "front", "rear") == replace(file, cameras=("front", "rear"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_made_up_batch_is_what_the_encoder_reads_and_a_policy_learns(name: str) -> None:
    policy = DPVLA.from_config(CONFIGS[name]())
    batch = policy.encoder.fake_batch(5, torch.Generator().manual_seed(1))
    again = policy.encoder.fake_batch(5, torch.Generator().manual_seed(1))
    assert len(set(batch.tokens)) == 5 and torch.equal(batch.images, again.images)
    assert batch.images.shape[1:] == policy.encoder.sensors.shape == (3, 3, 48, 96)
    assert batch.plan is not None and batch.plan.shape == (5, NUM_POSES, 3)
    policy.plan_coding.fit(batch.plan, batch.ego_status)
    policy.imitation_loss(batch)[0].backward()
    tokens, mask = policy.encoder(batch)
    assert tokens.shape[0] == 5 and tokens.shape[2] == policy.encoder.token_width
    assert mask is None or mask.shape == tokens.shape[:2]


def test_every_encoder_says_its_name_and_is_found_by_it() -> None:
    for name in ("florence", "timm"):  # and not those that other tests plug in
        config = encoder_of({"name": name})
        assert config.name == name and encoder_class(config).Config is type(config)
        assert config.sensors.cameras == DEFAULT_CAMERAS


def test_images_that_the_sensors_do_not_give_are_refused() -> None:
    sensors = Sensors(("front", "rear"), 8, 4)
    sensors.require(torch.zeros(7, 2, 3, 4, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"shape \(7, 3, 3, 4, 8\), expected \(scene, 2, 3, 4, 8\)"):
        sensors.require(torch.zeros(7, 3, 3, 4, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least one pixel, found 0 x 4"):
        Sensors(width=0, height=4)


def test_released_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    make = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("the hub is not there. Check it")
        return make(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    config = TimmConfig(network="test_resnet", image_width=32, image_height=32)
    with pytest.raises(ValueError, match=r"timm's test_resnet cannot be had \(the hub is not there\); .*no-pretrained"):
        TimmEncoder.from_config(config)
    TimmEncoder.from_config(replace(config, pretrained=False))
    TimmEncoder.from_architecture(config, None)


@dataclass(frozen=True)
class MeanConfig(EncoderConfig):
    """Mean colors."""

    name: str = "mean"  # which encoder


class Mean(Encoder[MeanConfig]):
    """One token: the mean color of all cameras, in words of its own."""

    Config = MeanConfig

    def __init__(self, config: MeanConfig) -> None:
        super().__init__(config)
        self.token_width = 12
        self.color = nn.Linear(3, 12)

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, None]:
        self.sensors.require(batch.images)
        return self.color(batch.images.float().mean(dim=(1, 3, 4)) / 255)[:, None], None


def test_an_encoder_needs_a_constructor_and_forward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ENCODERS, "mean", Mean)
    config = from_dict(DPVLAConfig, {"encoder": "mean", "head": {"preset": "tiny"}}, "x")
    policy = DPVLA.from_config(config).eval()
    assert isinstance(policy.encoder, Mean)
    batch = policy.encoder.fake_batch(2)
    assert batch.plan is not None
    policy.plan_coding.fit(batch.plan, batch.ego_status)
    policy.save_pretrained(tmp_path)
    loaded = DPVLA.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(batch).tokens, policy.encode(batch).tokens)


def test_an_encoder_that_says_more_than_its_config_must_read_it_again() -> None:
    with pytest.raises(TypeError, match="Mean is described by its config alone, found more"):
        Mean.from_architecture(MeanConfig(), {"layers": 3})
