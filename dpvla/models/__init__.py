"""The driving policy: encoders, diffusion head, adapters, plan coding. Reading configs loads no network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpvla.models.config import DPVLAConfig, PlanCodingConfig
from dpvla.models.head_configs import HeadConfig, RegressionConfig

if TYPE_CHECKING:
    from dpvla.models.driving_policy import DrivingPolicy
    from dpvla.models.policy import DPVLA
    from dpvla.models.scene_context import SceneContext

__all__ = [
    "DPVLA",
    "DPVLAConfig",
    "DrivingPolicy",
    "HeadConfig",
    "PlanCodingConfig",
    "RegressionConfig",
    "SceneContext",
]

_LOADED_WHEN_ASKED_FOR = {
    "DPVLA": "dpvla.models.policy",
    "DrivingPolicy": "dpvla.models.driving_policy",
    "SceneContext": "dpvla.models.scene_context",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOADED_WHEN_ASKED_FOR[name]), name)
