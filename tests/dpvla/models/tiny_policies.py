"""Small policies and batches for the model tests."""

from dataclasses import replace

import torch

from dpvla.batch import DrivingBatch, fake_batch
from dpvla.encoders.config import EgoStatusConfig, FlorenceConfig, LatentTransfuserConfig
from dpvla.models import DPVLA, DPVLAConfig, RegressionConfig


def tiny_florence() -> DPVLAConfig:
    """The paper's architecture in miniature, random weights, no files."""
    return replace(DPVLAConfig.tiny(), encoder=FlorenceConfig(source="tiny", image_width=96, image_height=48))


def ego_status_mlp() -> DPVLAConfig:
    """NAVSIM's ego-status MLP, narrower."""
    head = RegressionConfig(layers=0, hidden=0, bounded_heading=False)
    return DPVLAConfig(encoder=EgoStatusConfig(width=32), head=head)


def latent_transfuser() -> DPVLAConfig:
    """NAVSIM's Latent TransFuser in miniature."""
    encoder = LatentTransfuserConfig(
        image_width=96, image_height=64, crop=16, network="test_resnet", pretrained=False, bev_network="test_resnet",
        bev_size=64, width=32,
    )  # fmt: skip
    return DPVLAConfig(encoder=encoder, head=RegressionConfig(layers=2, heads=4, feed_forward=64, hidden=64))


CONFIGS = {"tiny": DPVLAConfig.tiny, "tiny_florence": tiny_florence}
REGRESSION = {"ego_status_mlp": ego_status_mlp, "latent_transfuser": latent_transfuser}
"""Policies that draw nothing."""


def make_batch(config: DPVLAConfig, scenes: int = 4, seed: int = 0) -> DrivingBatch:
    """Scenes whose commands differ, with accelerations, and histories and plans as noisy as real ones."""
    generator = torch.Generator().manual_seed(seed)
    batch = fake_batch(config.encoder.sensors, scenes, generator)
    assert batch.plan is not None
    return replace(
        batch,
        command=torch.arange(scenes) % 4,
        ego_status=batch.ego_status + 0.3 * torch.randn(scenes, 4, generator=generator),
        history=torch.randn(scenes, 3, 3, generator=generator),
        plan=batch.plan + 0.1 * torch.randn(scenes, 8, 3, generator=generator),
    )


def make_policy(config: DPVLAConfig, randomize: bool = True) -> DPVLA:
    """A policy with plan statistics; ``randomize`` undoes the zero initialization, so that outputs depend on all."""
    torch.manual_seed(0)
    policy = DPVLA.from_config(config)
    batch = make_batch(config, 32)
    assert batch.plan is not None
    policy.plan_coding.fit(batch.plan, batch.ego_status)
    if randomize:
        for parameter in policy.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def randomize_adapters(policy: DPVLA, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.adapter_parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
