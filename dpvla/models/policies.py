"""Policies by the name of their head: made new, or opened from files without knowing which it is."""

from __future__ import annotations

from pathlib import Path

import torch

from dpvla.models.config import DPVLAConfig
from dpvla.models.driving_policy import DrivingPolicy
from dpvla.models.policy_files import PolicyFiles
from dpvla.registry import Registry, look_up

POLICIES = Registry(
    "dpvla.models.driving_policy:DrivingPolicy",
    diffusion="dpvla.models.policy:DPVLA",
    regression="dpvla.models.regression:RegressionPolicy",
)


def policy_class(config: DPVLAConfig) -> type[DrivingPolicy]:
    """The policy that a config is of."""
    found: type[DrivingPolicy] = look_up(POLICIES, config.head.name, "policy with the head")
    return found


def new_policy(config: DPVLAConfig) -> DrivingPolicy:
    """One before training, see ``DrivingPolicy.from_config``."""
    return policy_class(config).from_config(config)


def open_policy(
    directory: Path | str, device: torch.device | str = "cpu", config: DPVLAConfig | None = None
) -> DrivingPolicy:
    """A saved one of any head; arguments and errors as of ``DrivingPolicy.from_pretrained``."""
    return policy_class(PolicyFiles.read(directory, config).config).from_pretrained(directory, device, config)
