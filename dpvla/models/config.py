"""Everything that decides what a DP-VLA is: saved as JSON beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from dpvla.config import Count, NotNegative, Positive, Range, Share, Size, Steps, check, from_dict
from dpvla.encoders.config import FlorenceConfig, TimmConfig
from dpvla.encoders.registry import AnyEncoder
from dpvla.models.head_configs import HeadConfig
from dpvla.models.registry import AnyHead

if TYPE_CHECKING:
    from dpvla.diffusion.schedule import VPLinearSchedule

_Beta = Annotated[Positive, Range(most=1000)]


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise, what the network predicts, how the loss is measured, how plans are sampled."""

    output: Literal["v", "eps", "x0"] = "v"  # what the network outputs; raw eps is divided by 0.0066 at t = 1
    loss_weighting: Literal["eps", "v", "x0"] = "eps"  # whose squared error the loss is; eps is the paper's
    alpha_floor: Share = 0.0  # weightings v and x0 divide by alpha: not below this
    beta_min: _Beta = 0.1  # variance-preserving schedule with linear beta(t)
    beta_max: _Beta = 20.0  # beta at t = 1
    num_steps: Annotated[Steps, Range(least=2)] = 10  # network evaluations of DPM-Solver++ (order 2)
    omega: NotNegative = 1.0  # greediness w of the guided combination
    clip_ratio: Annotated[float, Range(least=1)] | None = 2.0  # guided x0 stays within this multiple of training plans'

    def schedule(self) -> VPLinearSchedule:
        """The noise schedule."""
        from dpvla.diffusion.schedule import VPLinearSchedule  # with torch, which reading a config does not need

        return VPLinearSchedule(self.beta_min, self.beta_max)

    def __post_init__(self) -> None:
        check(self, "diffusion")
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min {self.beta_min:g} must be below beta_max {self.beta_max:g}")


_Spread = Annotated[float, Range(least=1e-6, most=1000)]


@dataclass(frozen=True)
class PlanCodingConfig:
    """How a plan is written for the denoiser."""

    channels: Literal["x_y_cos_sin", "x_y_heading"] = "x_y_cos_sin"  # cos and sin have no wrap-around
    baseline: Literal["constant_velocity", "none"] = "constant_velocity"  # code the residual to it, or absolute poses
    positions: Literal["pose", "delta"] = "pose"  # x and y as they are, or as steps from the pose before (smoother)
    std_floor: _Spread = 0.01  # smallest spread (m, rad) that is normalized to 1; cos hardly varies at 0.5 s


@dataclass(frozen=True)
class LoRAConfig:
    """Size of the adapters. One that is trained alone has twice the rank and alpha: all algorithms train as much."""

    rank: Size = 16  # of the low-rank updates of each of two adapters (paper: 16); one alone has twice this
    alpha: Count = 16  # they are scaled by alpha / rank (paper: 16); for one alone both are twice as large

    def of(self, adapters: Sequence[str]) -> tuple[int, int]:
        """Rank and alpha of each adapter where these are trained together."""
        times = self.times(adapters)
        return times * self.rank, times * self.alpha

    @staticmethod
    def times(adapters: Sequence[str]) -> int:
        """How many times ``rank`` each of these adapters has."""
        return 2 if len(adapters) == 1 else 1


@dataclass(frozen=True)
class DPVLAConfig:
    """The whole policy; the defaults are the paper's model. With the head regression it is one without diffusion."""

    RENAMED: ClassVar[Mapping[str, str]] = {"encoder.timm_options": "encoder.options"}

    encoder: AnyEncoder = field(default_factory=FlorenceConfig)  # images and command to tokens
    head: AnyHead = field(default_factory=HeadConfig)  # tokens and noised plan to prediction, or tokens to a plan
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)  # schedule, loss, sampler
    plan: PlanCodingConfig = field(default_factory=PlanCodingConfig)  # meters to normalized numbers

    def __post_init__(self) -> None:
        for name, default in (("diffusion", DiffusionConfig()), ("plan", PlanCodingConfig())):
            if name not in self.head.OF_MODEL and getattr(self, name) != default:
                raise ValueError(f"{name} is not read by the head {self.head.name}: leave model.{name} out")

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
