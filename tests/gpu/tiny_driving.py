"""A tiny policy with scenes, and an accelerator on the pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import PropertyMock, patch

import torch
from accelerate import Accelerator

from dpvla.algorithms.dipole import ADAPTERS
from dpvla.models import DPVLA
from tests.dpvla.models.tiny_policies import CONFIGS
from tests.gpu.pretended import PretendedGPU
from tests.scenes_in_memory import ScenesInMemory

STEPS = 2  # of the solver


def make_policy(
    encoder: str = "tiny", clip_ratio: float | None = None, adapters: tuple[str, ...] = ADAPTERS
) -> tuple[DPVLA, ScenesInMemory]:
    """A policy whose outputs depend on all of it, with adapters, and scenes for it."""
    torch.manual_seed(0)
    config = CONFIGS[encoder]()
    config = replace(config, diffusion=replace(config.diffusion, num_steps=STEPS, clip_ratio=clip_ratio))
    policy = DPVLA.from_config(config)
    source = ScenesInMemory(6, config.encoder.sensors)
    policy.plan_coding.fit(source.plans(), source.ego_status())
    policy.add_adapters(adapters, 4)
    for parameter in policy.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval(), source


def numbers(seed: int = 3) -> torch.Generator:
    """For noise, on the CPU."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def training_on(gpu: PretendedGPU) -> Iterator[Accelerator]:
    """An accelerator whose device is the pretended one."""
    with gpu(), patch.object(Accelerator, "device", PropertyMock(return_value=gpu.device)):
        yield Accelerator(cpu=True, device_placement=False)
