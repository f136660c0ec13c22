"""Small policies and batches for the model tests."""

import torch

from dpvla.batch import DrivingBatch
from dpvla.models import DPVLA, DPVLAConfig


def make_batch(config: DPVLAConfig, scenes: int = 4, seed: int = 0) -> DrivingBatch:
    generator = torch.Generator().manual_seed(seed)
    shape = (scenes, config.encoder.num_cameras, 3, config.encoder.image_height, config.encoder.image_width)
    speed = 5 + 2 * torch.rand(scenes, generator=generator)
    status = torch.stack([speed, *torch.randn(3, scenes, generator=generator) * 0.3], dim=1)
    times = torch.arange(1, 9) * 0.5
    heading = 0.1 * torch.randn(scenes, 1, generator=generator) * times
    plan = torch.stack([speed[:, None] * times * heading.cos(), speed[:, None] * times * heading.sin(), heading], -1)
    return DrivingBatch(
        tokens=tuple(f"scene{i}" for i in range(scenes)),
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        command=torch.arange(scenes) % 4,
        ego_status=status,
        history=torch.randn(scenes, 3, 3, generator=generator),
        plan=plan,
    )


def make_policy(config: DPVLAConfig, randomise: bool = True) -> DPVLA:
    """A policy with plan statistics; ``randomise`` undoes the zero initialisation, so that outputs depend on all."""
    torch.manual_seed(0)
    policy = DPVLA.from_config(config)
    batch = make_batch(config, 32)
    assert batch.plan is not None
    policy.plan_coding.fit(batch.plan, batch.ego_status)
    if randomise:
        for parameter in policy.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def randomise_adapters(policy: DPVLA, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.adapter_parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
