"""Plans in meters and radians to the normalized numbers the diffusion works on, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpvla.config import check
from dpvla.models.config import PlanCodingConfig
from dpvla.plan import NUM_POSES, POSE_INTERVAL


class PlanCoding(nn.Module):
    """Invertible coding of plans with statistics per pose and channel from the training split.

    The residual to the constant-velocity roll-out (speed now, straight along the ego x axis) is learned far faster
    than absolute poses. The statistics are buffers and travel with the checkpoint.
    """

    mean: Tensor  # (pose, channel)
    std: Tensor  # (pose, channel)
    largest: Tensor  # (pose, channel): largest absolute normalized value of the training split
    fitted: Tensor  # 0-dim bool

    def __init__(self, config: PlanCodingConfig) -> None:
        super().__init__()
        check(config, "plan")
        self.config = config
        self.num_channels = 4 if config.channels == "x_y_cos_sin" else 3
        shape = (NUM_POSES, self.num_channels)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("largest", torch.ones(shape))
        self.register_buffer("fitted", torch.tensor(False))
        self._is_fitted = False

    @torch.no_grad()
    def fit(self, plans: Tensor, ego_status: Tensor) -> None:
        """Take mean and spread from the training split.

        ``plans`` (scene, 8, 3) and ``ego_status`` (scene, 4) of all its scenes. Non-finite values are refused.
        """
        if plans.ndim != 3 or tuple(plans.shape[1:]) != (NUM_POSES, 3) or len(plans) != len(ego_status):
            raise ValueError(
                f"expected plans (scene, {NUM_POSES}, 3) and as many ego states, "
                f"found {tuple(plans.shape)} and {tuple(ego_status.shape)}"
            )
        if len(plans) < 2:
            raise ValueError(f"plan statistics need at least 2 scenes, found {len(plans)}")
        bad = ~(plans.isfinite().flatten(1).all(1) & ego_status.isfinite().all(1))
        if bad.any():
            raise ValueError(f"plan statistics: {int(bad.sum())} scenes are not finite, first {int(bad.nonzero()[0])}")
        values = self._steps(self._channels(plans.double()) - self._baseline(ego_status.double()))
        std, mean = torch.std_mean(values, dim=0)
        std = std.clamp_min(self.config.std_floor)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.largest.copy_(((values - mean) / std).abs().amax(0))
        self.fitted.fill_(True)
        self._is_fitted = True

    def assume_fitted(self) -> None:
        """Take the statistics as they are, where only shapes matter."""
        self._is_fitted = True

    def encode(self, plans: Tensor, ego_status: Tensor) -> Tensor:
        """Plans (scene, ..., 8, 3) to normalized values (scene, ..., 8, channel), float32 at least."""
        self._require_statistics()
        plans = plans if plans.dtype == torch.float64 else plans.float()
        baseline = self._over_candidates(self._baseline(ego_status.to(plans.dtype)), plans)
        values = self._steps(self._channels(plans) - baseline)
        return (values - self.mean.to(plans.dtype)) / self.std.to(plans.dtype)

    def decode(self, values: Tensor, ego_status: Tensor) -> Tensor:
        """Inverse of ``encode``: headings come back in (-pi, pi]."""
        self._require_statistics()
        values = values if values.dtype == torch.float64 else values.float()
        baseline = self._over_candidates(self._baseline(ego_status.to(values.dtype)), values)
        channels = self._poses(values * self.std.to(values.dtype) + self.mean.to(values.dtype)) + baseline
        if self.config.channels == "x_y_heading":
            heading = channels[..., 2:3]
            heading = torch.atan2(heading.sin(), heading.cos())
        else:
            heading = torch.atan2(channels[..., 3:4], channels[..., 2:3])
        return torch.cat([channels[..., :2], heading], dim=-1)

    def _channels(self, plans: Tensor) -> Tensor:
        heading = plans[..., 2:3]
        if self.config.channels == "x_y_heading":
            return torch.cat([plans[..., :2], torch.atan2(heading.sin(), heading.cos())], dim=-1)
        return torch.cat([plans[..., :2], heading.cos(), heading.sin()], dim=-1)

    def _steps(self, channels: Tensor) -> Tensor:
        """x and y as differences between poses, the first from the origin, where the config says so."""
        if self.config.positions == "pose":
            return channels
        before = torch.cat([torch.zeros_like(channels[..., :1, :2]), channels[..., :-1, :2]], dim=-2)
        return torch.cat([channels[..., :2] - before, channels[..., 2:]], dim=-1)

    def _poses(self, channels: Tensor) -> Tensor:
        """Inverse of ``_steps``."""
        if self.config.positions == "pose":
            return channels
        return torch.cat([channels[..., :2].cumsum(dim=-2), channels[..., 2:]], dim=-1)

    def _baseline(self, ego_status: Tensor) -> Tensor:
        """(scene, 8, channel): keep the speed of t = 0 straight ahead, as NAVSIM's constant-velocity agent does."""
        out = ego_status.new_zeros(len(ego_status), NUM_POSES, self.num_channels)
        if self.config.baseline == "none":
            return out
        speed = torch.linalg.vector_norm(ego_status[:, :2], dim=-1)
        times = torch.arange(1, NUM_POSES + 1, dtype=ego_status.dtype, device=ego_status.device) * POSE_INTERVAL
        out[..., 0] = speed[:, None] * times
        if self.config.channels == "x_y_cos_sin":
            out[..., 2] = 1.0
        return out

    @staticmethod
    def _over_candidates(baseline: Tensor, like: Tensor) -> Tensor:
        extra = like.ndim - baseline.ndim
        return baseline.reshape(len(baseline), *(1,) * extra, *baseline.shape[1:])

    def _require_statistics(self) -> None:
        if not self._is_fitted:
            # The flag on the Python side spares a device sync per call; a loaded checkpoint sets it here once.
            self._is_fitted = bool(self.fitted)
        if not self._is_fitted:
            raise RuntimeError(
                "plan statistics are missing: call policy.plan_coding.fit(plans, ego_status) with the training split"
            )
