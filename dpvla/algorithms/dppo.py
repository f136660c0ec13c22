"""DPPO (Diffusion Policy Policy Optimization): PPO on denoising steps, with a clip that grows towards the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpvla.algorithms.advantages import ZERO_SPREAD, group_advantages
from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.chain import ChainAlgorithm
from dpvla.algorithms.config import DPPOConfig
from dpvla.algorithms.critic import Critic
from dpvla.models import DPVLA, SceneContext
from dpvla.random_rows import RandomRows


class DPPO(ChainAlgorithm):
    """Advantages over the group's mean or over a critic, normalized over all plans of a cycle."""

    Config = DPPOConfig
    config: DPPOConfig

    def networks(self, policy: DPVLA) -> nn.Module | None:
        """The critic, where it is the baseline."""
        return Critic(policy.head.context_width) if self.config.baseline == "critic" else None

    def roll_out(
        self, policy: DPVLA, context: SceneContext, candidates: int, generator: RandomRows
    ) -> dict[str, Tensor]:
        """With a critic also its ``values`` (scene, candidate)."""
        made = super().roll_out(policy, context, candidates, generator)
        if policy.beside is not None:
            made["values"] = policy.beside(context)[:, None].expand(-1, candidates)
        return made

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``advantages`` (scene, candidate), ``(A - mean) / std`` over the cycle, A being reward minus baseline.

        And ``returns``, the rewards, which the critic learns.
        """
        rewards = scores["score"]
        _, flat = group_advantages(rewards, self.config.spread_floor)
        if "values" in roll_outs:
            advantages = rewards - roll_outs["values"]
            centered = advantages - advantages.mean()
        else:  # their mean is 0
            centered = torch.where(flat[:, None], 0.0, rewards - rewards.mean(-1, keepdim=True))
        spread = centered.square().mean().sqrt().clamp_min(ZERO_SPREAD)
        return {"advantages": (centered / spread).float(), "returns": rewards.float()}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped ratio's, and half the squared error of the critic, where there is one."""
        loss, info = super().loss(policy, batch)
        if policy.beside is None:
            return loss, info
        errors = policy.beside(batch.context)[:, None] - batch.targets["returns"]
        value_loss = 0.5 * errors.square().mean()
        info["rl/loss_value"] = value_loss.detach()
        return loss + self.config.value_weight * value_loss, info

    def clip_widths(self, num_steps: int) -> list[float]:
        """From ``clip_base`` at the first step to ``clip`` at the last, growing as ``exp(clip_rate t)``, t to 1."""
        config = self.config
        grown = [math.expm1(config.clip_rate * step / (num_steps - 1)) for step in range(num_steps)]
        return [config.clip_base + (config.clip - config.clip_base) * part / grown[-1] for part in grown]
