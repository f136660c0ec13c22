"""Scenes that are not learned from: one plan each, as an evaluation makes it, scored again and again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from dpvla.batch import RewardFunction, SceneSource
from dpvla.config import ConfigError
from dpvla.models import DPVLA
from dpvla.plan import NUM_POSES
from dpvla.random_rows import scene_noise
from dpvla.rl.config import RolloutConfig, TokensConfig
from dpvla.rl.means import Means
from dpvla.rl.token_cache import TokenCache

SCORE = "heldout/score"
"""What checkpoints are judged by."""
SEED = 0
"""Of the sampling noise: what tools/evaluate.py takes when none is given, so that its scores are the same."""


class HeldOut:
    """Held-out scenes, shared by the processes. Their encoded images stay in memory where they fit."""

    def __init__(
        self,
        source: SceneSource,
        metrics: Mapping[str, RewardFunction],
        config: RolloutConfig,
        tokens: TokensConfig,
        accelerator: Accelerator,
        visits: int = 1,
    ) -> None:
        """``metrics``: by name, and the reward under "". ``visits``: how often they will be scored."""
        if len(source) < accelerator.num_processes:
            raise ConfigError(
                f"{len(source)} held-out scenes cannot be shared by {accelerator.num_processes} processes: hold out "
                "more, or take fewer processes"
            )
        self.source, self.metrics, self.config, self.tokens = source, metrics, config, tokens
        self.accelerator, self.visits = accelerator, visits
        self._mine = torch.arange(len(source))[accelerator.process_index :: accelerator.num_processes]
        self._cache: TokenCache | None = None

    @torch.no_grad()
    def score(self, policy: DPVLA) -> dict[str, float]:
        """Means of all sub-scores as ``heldout/COLUMN``, of further metrics as ``heldout/METRIC/COLUMN``.

        Plans are sampled as the policy's own ``sampling`` says. Called on every process, with whole weights.
        """
        policy.eval()
        if self._cache is None:
            self._cache = TokenCache(
                policy, self.source, self._mine, self.accelerator, self.config.scenes_per_call,
                self.config.context_cache_gb, self.tokens, visits=self.visits,
            )  # fmt: skip
        means = Means()
        for rows, context in self._cache.portions():
            names = [self.source.tokens[row] for row in self._mine[rows.start : rows.stop].tolist()]
            channels = policy.plan_coding.num_channels
            noise = torch.stack([scene_noise(SEED, name, (1, NUM_POSES, channels)) for name in names])
            plans = policy.sample(context, 1, noise=noise).cpu()
            for metric, scores in self.metrics.items():
                for column, value in scores(names, plans).items():
                    means.add("/".join(filter(None, ("heldout", metric, column))), value.cpu())
        return means.over_processes(self.accelerator)
