"""Imitation pretraining: encoder and head learn the recorded plans, by denoising or by whatever a policy's loss is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.batch import DrivingBatch, RewardFunction, SceneSource
from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.config import ConfigError, check
from dpvla.models import DrivingPolicy
from dpvla.random_rows import RandomRows
from dpvla.training.augmentation import jitter_colors
from dpvla.training.config import ImitationConfig
from dpvla.training.order import epoch_batches, steps_per_epoch
from dpvla.training.reading import batches_ahead
from dpvla.training.shares import refuse_uneven, share, weighted
from dpvla.training.stage import Track, WholeWeights


class ImitationStep(nn.Module):
    """The differentiable part of an update; ``forward`` is what accelerate wraps."""

    def __init__(self, policy: DrivingPolicy, config: ImitationConfig) -> None:
        super().__init__()
        self.policy: DrivingPolicy = policy
        self.config = config

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss on the recorded plans."""
        seen = replace(batch, images=jitter_colors(batch.images, self.config.color_jitter, batch.random))
        return weighted(batch, *self.policy.imitation_loss(seen, draws=self.config.noise_draws))


class ImitationStage:
    """A ``Stage`` of ``training.loop``: all of ``policy`` learns from ``source``."""

    def __init__(
        self,
        policy: DrivingPolicy,
        source: SceneSource,
        config: ImitationConfig,
        accelerator: Accelerator,
        seed: int,
        describe: Callable[[Path], None],
        validation: SceneSource | None = None,
        reward: RewardFunction | None = None,
    ) -> None:
        """``describe`` writes ``run.yaml``; ``validation`` is scored with ``reward`` when both are given."""
        check(config, "imitation")
        if config.noise_draws > 1 and not policy.noise_channels:
            raise ConfigError(f"imitation.noise_draws {config.noise_draws}: a {policy.config.head.name} draws no noise")
        refuse_uneven("imitation.batch_size", config.batch_size, accelerator.num_processes)
        self.policy, self.source, self.config, self.seed = policy, source, config, seed
        self.module: nn.Module = ImitationStep(policy, config)
        self.accelerator, self.describe = accelerator, describe
        self.validation, self.reward = validation, reward

    @property
    def steps(self) -> int:
        """Updates of all epochs."""
        return self.config.epochs * steps_per_epoch(len(self.source), self.config.batch_size)

    def batches(self, first_step: int, track: Track, whole_weights: WholeWeights) -> Iterator[DrivingBatch]:
        """Shuffled batches from ``first_step`` on, decoded ahead by the workers."""
        mine, device = (rows for rows, _ in self._shares(first_step)), self.accelerator.device
        decoded = batches_ahead(self.source, mine, self.config.num_workers, device)
        for step, batch, (rows, weight) in zip(count(first_step), decoded, self._shares(first_step)):
            random = RandomRows.of(rows, self.seed, step)
            yield replace(batch.to(device), random=random, weight=weight)

    def _shares(self, first_step: int) -> Iterator[tuple[list[int], float]]:
        """This process's scenes of every update, and their weight."""
        for rows in epoch_batches(len(self.source), self.config.batch_size, first_step, self.seed):
            yield share(rows, self.accelerator.process_index, self.accelerator.num_processes, idle=rows[0])

    @torch.no_grad()
    def evaluate(self, step: int) -> Mapping[str, float]:
        """Loss at fixed noise and, where a reward is given, the sub-scores of one sample a scene."""
        if self.validation is None:
            return {}
        scenes = min(self.config.validation_scenes, len(self.validation))
        batch = self.validation.batch(range(scenes)).to(self.accelerator.device)
        generator = torch.Generator().manual_seed(self.seed)
        with self.policy.autocast():
            loss, _ = self.policy.imitation_loss(batch, draws=4, generator=generator)
            plans = self.policy.sample(self.policy.encode(batch), 1, generator=generator).cpu()
        values = {"validation/loss": float(loss)}
        if batch.plan is not None:
            off = (plans[:, 0, :, :2] - batch.plan[:, :, :2].cpu()).norm(dim=-1)
            values["validation/ade_m"] = float(off.mean())
        if self.reward is not None:
            scores = self.reward(batch.tokens, plans)
            values |= {f"validation/{name}": float(value.mean()) for name, value in scores.items()}
        return values

    def save(self, directory: Path) -> None:
        """``model/`` and ``run.yaml``."""
        self.policy.save_pretrained(CheckpointLayout(directory).model)
        self.describe(directory)

    def restore(self, directory: Path) -> None:
        """The loop's own state is all there is."""
