from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpvla.algorithms.dipole import ADAPTERS
from dpvla.models import DPVLA, DPVLAConfig
from navsim_bridge.agents import human
from tests.navsim_bridge.conftest import World


@pytest.fixture(scope="session")
def checkpoint(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random policy with adapters, and images to look at."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    policy = DPVLA.from_config(DPVLAConfig.tiny())
    plans = torch.from_numpy(human(world.records)).float()
    status = torch.tensor(np.array([[*r.velocity, *r.acceleration] for r in world.records]), dtype=torch.float32)
    policy.plan_coding.fit(plans, status)
    policy.add_adapters(ADAPTERS, 4, 4)
    with torch.no_grad():
        for parameter in policy.head.parameters():  # away from its zero-initialized gates
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.save_pretrained(folder / "model")
    policy.save_adapters(folder / "adapters")
    for i, record in enumerate(world.records):
        for path in record.cameras.values():
            (folder / "sensor_blobs/mini" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (192, 108), (20 * i, 100, 100)).save(folder / "sensor_blobs/mini" / path)
    return folder
