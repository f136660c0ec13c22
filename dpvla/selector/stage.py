"""Training a selector on kept roll-outs: it learns to predict every score of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.batch import SceneSource
from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.config import ConfigError, check
from dpvla.device import to_device
from dpvla.models import DPVLA, SceneContext
from dpvla.random_rows import RandomRows
from dpvla.rl.config import TokensConfig
from dpvla.rl.token_cache import TokenCache
from dpvla.rl.token_files import TokenFiles
from dpvla.selector.config import SelectorTrainingConfig
from dpvla.selector.held_out import quality
from dpvla.selector.pool import PlanPool
from dpvla.selector.selector import Selector
from dpvla.training.order import lane_batches, steps_per_epoch
from dpvla.training.shares import lanes, refuse_uneven, share, weighted
from dpvla.training.stage import Track, WholeWeights


@dataclass(frozen=True)
class PlanBatch:
    """Scenes of one update, each with some of its plans."""

    context: SceneContext
    plans: Tensor  # (scene, plan, 8, 3)
    scores: Tensor  # (scene, plan, output) float32
    weight: float = 1.0  # of this mean over scenes in the mean over processes, see training.shares

    def __len__(self) -> int:
        return len(self.context)

    def select(self, index: Tensor) -> PlanBatch:
        """The scenes at ``index`` (int64 tensor on the CPU), in that order."""
        rows = to_device(index, self.context.device)
        return replace(self, context=self.context.select(rows), plans=self.plans[rows], scores=self.scores[rows])


class SelectorStep(nn.Module):
    """The differentiable part of an update; ``forward`` is what accelerate wraps."""

    def __init__(self, selector: Selector) -> None:
        super().__init__()
        self.selector = selector

    def forward(self, batch: PlanBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean error of all predicted scores.

        Nothing is asked of the order among a scene's plans: a ranking loss beside it made choices worse.
        """
        raw = self.selector(batch.context, batch.plans)
        errors = [output.error(raw[..., i], batch.scores[..., i]) for i, output in enumerate(self.selector.outputs)]
        named = {
            f"selector/{output.name}": error.detach().mean() for output, error in zip(self.selector.outputs, errors)
        }
        return weighted(batch, torch.stack(errors).mean(), named)


class SelectorStage:
    """A ``Stage`` of ``training.loop``: a selector learns from the plans of a pool."""

    def __init__(
        self,
        selector: Selector,
        policy: DPVLA,
        source: SceneSource,
        pool: PlanPool,
        config: SelectorTrainingConfig,
        accelerator: Accelerator,
        seed: int,
        describe: Callable[[Path], None],
        tokens: TokensConfig | None = None,
        token_files: TokenFiles | None = None,
    ) -> None:
        """
        Args:
            policy: whose encoder, frozen, makes the tokens; on the accelerator's device.
            pool: of the scenes of ``source``.
            describe: writes ``run.yaml``.

        Raises ConfigError: no scene with plans is left to learn from, or a batch cannot be shared by the processes.
        """
        check(config, "training")
        processes = accelerator.num_processes
        refuse_uneven("training.batch_size", config.batch_size, processes)
        self._held_out = pool.held_out_rows
        self._rows = pool.rows[~torch.isin(pool.rows, self._held_out)]
        if len(self._rows) < processes:
            raise ConfigError(
                f"the roll-outs leave {len(self._rows)} scenes to learn from and {len(self._held_out)} held out, for "
                f"{processes} processes: hold out fewer logs, or give more roll-outs"
            )
        policy.freeze_encoder()
        policy.eval()
        self.selector, self.policy, self.source, self.pool = selector, policy, source, pool
        self.config, self.seed, self.accelerator, self.describe = config, seed, accelerator, describe
        self.module: nn.Module = SelectorStep(selector)
        self._tokens_config, self._token_files = tokens or TokensConfig(), token_files
        self._mine = lanes(len(self._rows), config.batch_size, accelerator.process_index, processes)
        self._tokens_held_out: TokenCache | None = None

    @property
    def scenes(self) -> Tensor:
        """(scene,) int64, rows of the source that are learned from."""
        return self._rows

    @property
    def steps(self) -> int:
        """Updates of all epochs."""
        return self.config.epochs * steps_per_epoch(len(self._rows), self.config.batch_size)

    def batches(self, first_step: int, track: Track, whole_weights: WholeWeights) -> Iterator[PlanBatch]:
        """Batches from ``first_step`` on: scenes in an order of their own in every epoch, plans drawn for each."""
        device, mine = self.accelerator.device, self._mine
        tokens = self._encoded(self._rows[mine], self.config.epochs)
        contexts = tokens.batches(
            [torch.searchsorted(mine, torch.tensor(rows)).tolist() for rows, _ in self._shares(first_step)]
        )
        for step, (chosen, weight) in enumerate(self._shares(first_step), first_step):
            rows = self._rows[torch.as_tensor(chosen)]
            random = RandomRows.of(rows.tolist(), self.seed, step)
            plans, scores = self.pool.draw(rows, self.config.plans_per_scene, random)
            yield PlanBatch(next(contexts), to_device(plans, device), to_device(scores, device), weight)

    def _shares(self, first_step: int) -> Iterator[tuple[list[int], float]]:
        """This process's scenes of every update, and their weight."""
        order = lane_batches(len(self._rows), self.config.batch_size, first_step, self.seed)
        processes, idle = self.accelerator.num_processes, int(self._mine[0])
        for _, together in zip(range(first_step, self.steps), order):
            yield share(together, self.accelerator.process_index, processes, idle)

    @torch.no_grad()
    def evaluate(self, step: int) -> Mapping[str, float]:
        """How well scores of held-out scenes are predicted, and what choosing by them is worth; see ``quality``."""
        if not len(self._held_out):
            return {}
        if self._tokens_held_out is None:
            self._tokens_held_out = self._encoded(self._held_out, 1)
        raws = [torch.zeros_like(group.scores) for group in self.pool.held_out]
        device = self.accelerator.device
        for rows, context in self._tokens_held_out.portions():
            wanted = self._held_out[rows.start : rows.stop]
            for group, raw in zip(self.pool.held_out, raws):
                there = torch.isin(group.scenes, wanted).nonzero().flatten()
                if len(there):
                    places = torch.searchsorted(wanted, group.scenes[there])
                    plans = to_device(group.plans[there], device)
                    raw[there] = self.selector(context.select(to_device(places, device)), plans).cpu()
        predicted = [self.selector.predicted(raw) for raw in raws]
        true = [group.scores for group in self.pool.held_out]
        return {f"heldout/{name}": value for name, value in quality(predicted, true, self.pool.names).items()}

    def save(self, directory: Path) -> None:
        """``selector/`` and ``run.yaml``."""
        self.selector.save_pretrained(CheckpointLayout(directory).selector)
        self.describe(directory)

    def restore(self, directory: Path) -> None:
        """The loop's own state is all there is."""

    def _encoded(self, rows: Tensor, visits: int) -> TokenCache:
        config = self.config
        return TokenCache(
            self.policy,
            self.source,
            rows,
            self.accelerator,
            config.scenes_per_call,
            config.context_cache_gb,
            self._tokens_config,
            self._token_files,
            visits=visits,
        )
