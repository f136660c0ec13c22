"""Policies that give one plan a scene, learned by regression: what NAVSIM's learned baselines are.

With the encoder ``ego_status`` and no decoder layers it is the devkit's ``EgoStatusMLPAgent``, with
``latent_transfuser`` its ``TransfuserAgent`` with ``latent: true``, without that agent's two auxiliary tasks (boxes of
other road users, a semantic map): only the plan is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.batch import DrivingBatch
from dpvla.encoders.encoder import Encoder, width_of
from dpvla.models.config import DPVLAConfig
from dpvla.models.driving_policy import DrivingPolicy, recorded_plans
from dpvla.models.head_configs import RegressionConfig
from dpvla.models.regression_head import RegressionHead
from dpvla.models.sampling import Sampling
from dpvla.models.scene_context import SceneContext


class RegressionPolicy(DrivingPolicy):
    """Scene encoder and regression head; the loss is the mean absolute error of all poses in m and rad."""

    Config = RegressionConfig
    noise_channels = 0
    head: RegressionHead

    def __init__(self, config: DPVLAConfig, encoder: Encoder[Any]) -> None:
        super().__init__(config, encoder)
        assert isinstance(config.head, RegressionConfig)
        self.head = RegressionHead(config.head, width_of(encoder))

    def head_layers(self) -> list[nn.Module]:
        """The layers of the decoder."""
        return [*self.head.layers]

    def imitation_loss(
        self, batch: DrivingBatch, draws: int = 1, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 of the one plan; nothing is drawn."""
        recorded = recorded_plans(batch)
        context = self.encode(batch)
        loss = F.l1_loss(self.head(context.tokens, context.mask).float(), recorded)
        return loss, {"imitation/loss": loss.detach()}

    @torch.no_grad()
    def sample_each(self, context: SceneContext, draws: Iterable[tuple[Sampling, Tensor]]) -> Iterator[Tensor]:
        """The same plan for every candidate (scene, candidate, 8, 3): its noise has no numbers."""
        with self.autocast():
            plan = self.head(context.tokens, context.mask).float()
        for _, noise in draws:
            yield plan[:, None].expand(-1, noise.shape[1], -1, -1)
