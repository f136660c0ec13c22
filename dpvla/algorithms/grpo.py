"""GRPO: a plan's denoising steps are moved by how its reward compares with its group's (ReCogDrive's settings)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.chain import ChainAlgorithm
from dpvla.algorithms.config import GRPOConfig


class GRPO(ChainAlgorithm):
    """Advantages normalized in every group, one clip width for all steps, imitation of the reference."""

    Config = GRPOConfig
    config: GRPOConfig

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Advantages (scene, candidate): ``(r - mean) / std`` of the group."""
        return {"advantages": group_advantages(scores["score"], self.config.spread_floor)[0].float()}

    def clip_widths(self, num_steps: int) -> list[float]:
        """The same for all steps."""
        return [self.config.clip] * num_steps
