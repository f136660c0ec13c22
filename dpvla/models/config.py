"""Everything that decides what a DP-VLA is: saved as JSON beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from dpvla.config import Count, NotNegative, Positive, Range, Share, Size, Steps, check, from_dict, refuse_size
from dpvla.encoders.config import FlorenceConfig, TimmConfig
from dpvla.encoders.registry import AnyEncoder
from dpvla.files import short
from dpvla.layers.block_text import MOST as MOST_BLOCKS
from dpvla.layers.block_text import parse_blocks

if TYPE_CHECKING:
    from dpvla.diffusion.schedule import VPLinearSchedule

PRESETS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    # (width, attention heads, blocks)
    "tiny": (96, 4, ("3 modulated self cross mlp",)),
    # The layout that reproduces the paper's sizes (475M, 6.68M per rank-16 adapter); one cross-attention block.
    "paper": (1024, 16, ("24 modulated self mlp", "1 plain self cross mlp")),
    # Cross-attention in every block instead: 475.7M and 6.78M.
    "cross18": (1024, 16, ("18 modulated self fused-cross mlp",)),
}


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


@dataclass(frozen=True)
class HeadConfig:
    """The action head.

    A block reads ``COUNT modulated|plain SUBLAYER...``; sublayers are self, cross, fused-cross (one projection for
    keys and values) and mlp.
    """

    preset: str = "paper"  # paper | cross18 | tiny: gives width, heads and blocks where they are not set below
    width: Size | None = None  # model width d
    heads: Size | None = None  # attention heads
    blocks: tuple[str, ...] | None = None  # e.g. ("24 modulated self mlp", "1 plain self cross mlp")
    mlp_ratio: Annotated[Count, Range(most=64)] = 4  # hidden width of the MLPs over d
    use_command: bool = True  # driving command in the adaLN condition (the encoder sees it as text in any case)
    use_ego_status: bool = True  # velocity and acceleration in the adaLN condition; the paper does not say
    use_history: bool = True  # past poses in the adaLN condition; the paper does not say
    status_token: bool = True  # the same condition once more as a context token
    project_context: bool = True  # linear projection of the encoder tokens to d before keys and values

    def __post_init__(self) -> None:
        check(self, "head")
        if self.preset not in PRESETS:
            raise ValueError(f"preset {short(self.preset)} is unknown; expected one of {', '.join(PRESETS)}")
        width, heads, blocks = self.resolved()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads, {heads}")
        if self.status_token and not self.project_context:
            raise ValueError("status_token needs project_context: the token joins the projected ones")
        if self.blocks is not None and not 1 <= len(self.blocks) <= MOST_BLOCKS:
            raise ValueError(f"blocks holds {len(self.blocks)} texts, from 1 to {MOST_BLOCKS} are taken")
        weights = 0
        for text in blocks:
            try:
                layers = parse_blocks(text)
            except ValueError as error:
                raise ValueError(f"blocks: {error}") from None
            of_one = sum(2 * self.mlp_ratio if kind == "mlp" else 4 for kind in layers[0][1])
            weights += len(layers) * (of_one + 3 * len(layers[0][1])) * width**2
        refuse_size(weights, "blocks")

    def resolved(self) -> tuple[int, int, tuple[str, ...]]:
        """Width, heads and blocks with the preset filled in."""
        width, heads, blocks = PRESETS[self.preset]
        return self.width or width, self.heads or heads, tuple(self.blocks or blocks)


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
