"""Everything that decides what a DP-VLA is: saved as JSON beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from dpvla.config import Count, NotNegative, Positive, Range, Share, Whole, check, from_dict
from dpvla.diffusion.schedule import VPLinearSchedule
from dpvla.models.head import HeadConfig
from dpvla.models.plan_coding import PlanCodingConfig


@dataclass(frozen=True)
class EncoderConfig:
    """Cameras and command to scene tokens."""

    name: str = "florence-community/Florence-2-large"  # hub id | directory | florence:tiny | timm:<name>
    revision: str | None = None  # hub revision; the released large model is pinned when this is empty
    pretrained: bool = True  # start from released weights (a directory or hub id always does)
    image_width: Count = 768  # pixels the batch's images must have
    image_height: Count = 384  # multiples of 384 keep Florence-2 out of window padding
    num_cameras: Count = 3  # front-left, front, front-right
    views_in_text_encoder: Literal["all", "front"] = "all"  # Florence: whose tokens the text encoder reads
    stride: Count = 16  # timm: feature map to take, in pixels per cell
    width: Count = 96  # timm: width of the tokens
    summary_width: Whole = 0  # timm: all cells, reduced to so many numbers each, also reach every token; 0: they do not
    mixer_blocks: Whole = 1  # timm: transformer blocks over all cameras' tokens
    mixer_heads: Count = 4  # timm: their attention heads
    timm_options: dict[str, Any] = field(default_factory=dict)  # timm: more arguments of timm.create_model


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

    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # images and command to tokens
    head: HeadConfig = field(default_factory=HeadConfig)  # tokens and noised plan to prediction
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)  # schedule, loss, sampler
    plan: PlanCodingConfig = field(default_factory=PlanCodingConfig)  # metres to normalised numbers

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DPVLAConfig:
        """Inverse of ``to_dict``; unknown keys are refused with the nearest valid name."""
        return from_dict(cls, data, "model config")

    @classmethod
    def paper(cls) -> DPVLAConfig:
        """Florence-2-large and the 475M-parameter head."""
        return cls()

    @classmethod
    def tiny(cls) -> DPVLAConfig:
        """About a million parameters, trained from nothing in minutes on two CPU cores."""
        return cls(
            encoder=EncoderConfig(
                name="timm:test_resnet", pretrained=False, image_width=96, image_height=48, stride=16
            ),
            head=HeadConfig(preset="tiny"),
            diffusion=DiffusionConfig(loss_weighting="v"),
        )

    @classmethod
    def tiny_florence(cls) -> DPVLAConfig:
        """The paper's architecture in miniature, random weights, no files."""
        return cls(
            encoder=EncoderConfig(name="florence:tiny", pretrained=False, image_width=96, image_height=48),
            head=HeadConfig(preset="tiny"),
            diffusion=DiffusionConfig(loss_weighting="v"),
        )
