"""Everything that decides what a DP-VLA is: saved as JSON beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from dpvla.config import Count, NotNegative, Positive, Range, Share, check, from_dict
from dpvla.diffusion.schedule import VPLinearSchedule
from dpvla.encoders.florence import FlorenceConfig
from dpvla.encoders.registry import AnyEncoder
from dpvla.encoders.timm import TimmConfig
from dpvla.models.head import HeadConfig
from dpvla.models.plan_coding import PlanCodingConfig


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise, what the network predicts, how the loss is measured, how plans are sampled."""

    output: Literal["v", "eps", "x0"] = "v"  # what the network outputs; raw eps is divided by 0.0066 at t = 1
    loss_weighting: Literal["eps", "v", "x0"] = "eps"  # whose squared error the loss is; eps is the paper's
    alpha_floor: Share = 0.0  # weightings v and x0 divide by alpha: not below this
    beta_min: Positive = 0.1  # variance-preserving schedule with linear beta(t)
    beta_max: Positive = 20.0  # beta at t = 1
    num_steps: Annotated[Count, Range(least=2)] = 10  # network evaluations of DPM-Solver++ (order 2)
    omega: NotNegative = 1.0  # greediness w of the guided combination
    clip_ratio: Annotated[float, Range(least=1)] | None = 2.0  # guided x0 stays within this multiple of training plans'

    def schedule(self) -> VPLinearSchedule:
        """The noise schedule."""
        return VPLinearSchedule(self.beta_min, self.beta_max)

    def __post_init__(self) -> None:
        check(self, "diffusion")


@dataclass(frozen=True)
class DPVLAConfig:
    """The whole policy; the defaults are the paper's model."""

    RENAMED: ClassVar[Mapping[str, str]] = {"encoder.timm_options": "encoder.options"}

    encoder: AnyEncoder = field(default_factory=FlorenceConfig)  # images and command to tokens
    head: HeadConfig = field(default_factory=HeadConfig)  # tokens and noised plan to prediction
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)  # schedule, loss, sampler
    plan: PlanCodingConfig = field(default_factory=PlanCodingConfig)  # meters to normalized numbers

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DPVLAConfig:
        """Inverse of ``to_dict``; unknown keys are refused with the nearest valid name."""
        return from_dict(cls, data, "model config")

    @classmethod
    def tiny(cls) -> DPVLAConfig:
        """About a million parameters, trained from nothing in minutes on two CPU cores."""
        return cls(
            encoder=TimmConfig(network="test_resnet", pretrained=False, image_width=96, image_height=48),
            head=HeadConfig(preset="tiny"),
            diffusion=DiffusionConfig(loss_weighting="v"),
        )
