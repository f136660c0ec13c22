"""The driving policy: encoders, diffusion head, adapters, plan coding."""

from dpvla.models.config import DPVLAConfig
from dpvla.models.head import HeadConfig
from dpvla.models.plan_coding import PlanCodingConfig
from dpvla.models.policy import DPVLA
from dpvla.models.scene_context import SceneContext

__all__ = [
    "DPVLA",
    "DPVLAConfig",
    "HeadConfig",
    "PlanCodingConfig",
    "SceneContext",
]
