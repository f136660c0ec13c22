"""RL fine-tuning in cycles: roll out, score, learn for some epochs, repeat. What is learned is the algorithm's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.batch import RewardFunction, SceneSource
from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.config import ConfigError, check, one_line
from dpvla.device import to_device
from dpvla.manifest import MANIFEST, write_manifest
from dpvla.models import DPVLA
from dpvla.models.adapter_files import load_adapters, save_adapters
from dpvla.models.adapters import update_sizes
from dpvla.models.flops import on_meta
from dpvla.models.head import DiTHead
from dpvla.random_rows import RandomRows, mix
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.checks import check_loss, check_targets, check_weights, refuse_constant
from dpvla.rl.config import RolloutConfig, TokensConfig
from dpvla.rl.flops import scene_flops
from dpvla.rl.held_out import HeldOut
from dpvla.rl.kept import KeptRollOuts
from dpvla.rl.measures import effective_share
from dpvla.rl.rollout import collect
from dpvla.rl.time_split import TimeSplit
from dpvla.rl.token_cache import TokenCache
from dpvla.rl.token_files import Maker, TokenFiles
from dpvla.rl.watching import Watch
from dpvla.sub_scores import ScoringRule
from dpvla.tensors import CheckpointError
from dpvla.training.checkpoint import checkpoint_step, latest_checkpoint, link_tree
from dpvla.training.order import lane_batches, permutation, steps_per_epoch
from dpvla.training.run_directory import read_run
from dpvla.training.shares import lanes, refuse_uneven, share, weighted
from dpvla.training.stage import Track, WholeWeights
from dpvla.training.strategies.saving import is_sharded


class Describe(Protocol):
    """Puts ``run.yaml`` into a checkpoint."""

    def __call__(self, directory: Path, *, cycles: int) -> None:
        """``cycles``: of roll-outs behind its weights, in all rounds."""


class RolloutStep(nn.Module):
    """The differentiable part of an update; ``forward`` is what accelerate wraps."""

    def __init__(self, policy: DPVLA, algorithm: Algorithm) -> None:
        super().__init__()
        self.policy: DPVLA = policy
        self.algorithm = algorithm

    def forward(self, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The algorithm's loss."""
        given = self.algorithm.loss(self.policy, batch)
        check_loss(self.algorithm, given)
        return weighted(batch, *given)


class RolloutStage:
    """A ``Stage`` of ``training.loop``: the head of ``policy``, or its adapters, learn from scored roll-outs."""

    token_files: TokenFiles | None
    """Encoded scenes on disk, from ``open_tokens``: set before training. None: they stay in memory or are made anew."""

    def __init__(
        self,
        policy: DPVLA,
        algorithm: Algorithm,
        source: SceneSource,
        reward: RewardFunction,
        config: RolloutConfig,
        accelerator: Accelerator,
        seed: int,
        model_directory: Path | None,
        describe: Describe,
        tokens: TokensConfig | None = None,
        watch: Watch | None = None,
        held_out: HeldOut | None = None,
        cycles_before: int = 0,
    ) -> None:
        """``policy`` carries the algorithm's adapters already; ``describe`` writes ``run.yaml`` and counts cycles.

        Args:
            model_directory: files of the model, where there are any and only adapters are trained.
            tokens: how encoded scenes are read.
            watch: looks at the roll-outs. held_out: scenes that ``evaluate`` scores.
            cycles_before: of earlier rounds behind the weights; a new round draws other scenes and noise than they did.
        """
        check(config, "rollouts")
        processes = accelerator.num_processes
        refuse_uneven("rollouts.batch_size", config.batch_size, processes)
        if policy.head.adapters != algorithm.adapters:
            raise ConfigError(
                f"algorithm {algorithm.config.name} trains {', '.join(algorithm.adapters) or 'the whole head'}, the "
                f"policy's adapters are {', '.join(policy.head.adapters) or 'none'}"
            )
        if algorithm.needs_behavior and not algorithm.adapters:
            raise ConfigError(f"algorithm {algorithm.config.name} needs the head that rolled out, so it needs adapters")
        with torch.device(policy.plan_coding.mean.device):
            policy.beside = algorithm.networks(policy)
        policy.freeze_encoder()
        if policy.has_adapters and model_directory is not None:  # else checkpoints would hold rounded weights
            policy.hold_frozen()
        policy.sampling = algorithm.sampling()
        self.policy, self.algorithm, self.source, self.reward = policy, algorithm, source, reward
        self.config, self.cycles_before = config, cycles_before
        self.seed = mix(seed, cycles_before) if cycles_before else seed
        self.module: nn.Module = RolloutStep(policy, algorithm)
        self.accelerator, self.model_directory, self.describe = accelerator, model_directory, describe
        self.tokens = tokens or TokensConfig()
        self.watch, self.held_out = watch, held_out
        self.token_files = None
        self._kept: KeptRollOuts | None = None
        self._shapes = on_meta(policy)  # before a strategy divides the weights
        self._rolled_out_once: bool | None = None
        """Whether the cycle's roll-outs took equal policies for one; None where they were not made here."""
        self._spent: TimeSplit | None = None
        """Where the cycle's time goes; None where its roll-outs were not made here."""
        self.buffer: RolloutBuffer | None = None
        self._tokens: TokenCache | None = None
        self._behavior: DiTHead | None = None
        self._scenes = min(config.scenes_per_cycle or len(source), len(source))
        if self._scenes < processes:
            raise ConfigError(f"{self._scenes} scenes cannot be shared by {processes} processes: take fewer processes")
        self._mine = lanes(self._scenes, config.batch_size, accelerator.process_index, processes)
        """Rows of a cycle's buffer that this process rolls out and learns from."""

    @property
    def steps_per_cycle(self) -> int:
        """Updates between two roll-outs."""
        return self.config.epochs_per_cycle * steps_per_epoch(self._scenes, self.config.batch_size)

    @property
    def steps(self) -> int:
        """Updates of all cycles."""
        return self.config.cycles * self.steps_per_cycle

    def keep_roll_outs(self, folder: Path, rule: ScoringRule) -> None:
        """Have every cycle's plans and scores written to ``folder``, of the reward that ``rule`` states.

        Called before training, on all processes. Raises OSError where the folder cannot be made, or has not the room,
        which is found out before anything is written.
        """
        self._kept = KeptRollOuts(folder, Maker.of(self.policy).as_dict(), rule, tuple(self.source.tokens))
        if self.accelerator.is_main_process:
            print(self._kept.begin(self.config.cycles, self._scenes, self.config.group_size))

    def batches(self, first_step: int, track: Track, whole_weights: WholeWeights) -> Iterator[RolloutBatch]:
        """Batches from ``first_step`` on; a new cycle rolls out with the weights of that moment."""
        step, device = first_step, self.accelerator.device
        while True:
            cycle, place = divmod(step, self.steps_per_cycle)
            watched: dict[str, float] | None = None
            if place == 0 or self.buffer is None or self.buffer.cycle != cycle:
                with whole_weights():
                    self.buffer, watched = self._roll_out(cycle)
                if self._kept is not None and self.accelerator.is_main_process:
                    self._kept.write(self.buffer)
            targets = self.algorithm.targets(self.buffer.scores, self.buffer.roll_outs)
            check_targets(self.algorithm, targets, *self.buffer.scores["score"].shape)
            if watched is not None:
                track(step, {**watched, **self._effective_sizes(targets)})
            order = lane_batches(self._scenes, self.config.batch_size, place, self.seed, cycle)
            processes, idle = self.accelerator.num_processes, int(self._mine[0])
            shares = [
                share(together, self._rank, processes, idle)
                for _, together in zip(range(place, self.steps_per_cycle), order)
            ]
            tokens = self._tokens_of(self.buffer, whole_weights)
            contexts = tokens.batches(
                [torch.searchsorted(self._mine, torch.tensor(rows)).tolist() for rows, _ in shares]
            )
            began, waited = time.perf_counter(), 0.0
            for chosen, weight in shares:
                rows, before = torch.as_tensor(chosen), time.perf_counter()
                with whole_weights() if tokens.encodes_batches else nullcontext():
                    context = next(contexts)
                waited += time.perf_counter() - before
                if (step + 1) % self.steps_per_cycle == 0:
                    torch.zeros((), device=device).item()  # waits for the updates before, once a cycle
                    passed = time.perf_counter() - began
                    times = {"speed/token_wait": waited / passed, **self._finished(cycle, passed, len(shares))}
                    track(step + 1, {**times, **self._cost(tokens)})
                yield RolloutBatch(
                    context,
                    {name: to_device(value[rows], device) for name, value in self.buffer.roll_outs.items()},
                    {name: to_device(value[rows], device) for name, value in targets.items()},
                    self._behavior,
                    RandomRows.of(self.buffer.indices[rows].tolist(), self.seed, step),
                    weight,
                )
                step += 1

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Sub-scores of the held-out scenes, where there are any."""
        return {} if self.held_out is None else self.held_out.score(self.policy)

    def save(self, directory: Path) -> None:
        """``model/`` (linked where it is unchanged), ``adapters/``, ``run.yaml``, and the buffer of this cycle."""
        layout, newest = CheckpointLayout(directory), latest_checkpoint(directory.parent.parent)
        model = self.model_directory if newest is None else CheckpointLayout(newest).model
        if self.policy.has_adapters and model is not None and model.is_dir():
            link_tree(model, layout.model)
            if not (layout.model / MANIFEST).exists():  # of an earlier version
                write_manifest(layout.model)
        else:
            self.policy.save_pretrained(layout.model)
        if self.policy.has_adapters:
            self.policy.save_adapters(layout.adapters)
        self.describe(directory, cycles=self.cycles_before + (0 if self.buffer is None else self.buffer.cycle + 1))
        if self.buffer is not None:
            self.buffer.save(layout.buffer)
        if self._behavior is not None:
            save_adapters(self._behavior, layout.behavior)

    def restore(self, directory: Path) -> None:
        """Take up the buffer; the encoded scenes are made again in the same portions."""
        layout = CheckpointLayout(directory)
        buffer = RolloutBuffer.load(layout.buffer)
        made = read_run(directory).get("provenance") or {}
        if buffer.processes > 1 and "processes" not in made:
            raise CheckpointError(
                f"{directory} is of version 0.1.0, whose batch_size counted the scenes of each of its "
                f"{buffer.processes} processes: start a new run from these weights (--checkpoint {directory})"
            )
        if len(buffer) != self._scenes:
            raise CheckpointError(
                f"{layout.buffer} holds {len(buffer)} scenes, a cycle has {self._scenes}: an earlier version left out "
                f"those that its {buffer.processes} processes could not share equally, so its updates are counted "
                f"otherwise; start a new run from these weights (--checkpoint {directory})"
            )
        cycle = (checkpoint_step(directory) - 1) // self.steps_per_cycle
        buffer.refuse_other(layout.buffer, cycle, self._of_cycle(cycle), self.config.group_size)
        self.buffer, self._tokens, self._spent = buffer, None, None
        if self.algorithm.needs_behavior:
            self._behavior = self._snapshot()
            load_adapters(self._behavior, self.algorithm.adapters, layout.behavior)

    def _snapshot(self) -> DiTHead:
        return self.policy.snapshot_head(shared=not is_sharded(self.module))

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    def _of_cycle(self, cycle: int) -> Tensor:
        """The scenes of a cycle, in the order of its buffer."""
        return torch.as_tensor(permutation(len(self.source), self.seed, cycle)[: self._scenes])

    def _roll_out(self, cycle: int) -> tuple[RolloutBuffer, dict[str, float]]:
        """The roll-outs of a cycle, and what is logged of them."""
        spent = self._spent = TimeSplit()
        if self.algorithm.needs_behavior:
            self._behavior = self._snapshot()
        if self.watch is not None:
            self.watch.begin()
        indices = self._of_cycle(cycle)
        self._tokens = self._encoded(indices[self._mine], cycle)
        spent.lap("encode")
        with self.policy.knowing_equals() as self._rolled_out_once:
            buffer = collect(
                self.algorithm,
                self.policy,
                self._tokens,
                self.source,
                self.reward,
                cycle=cycle,
                group_size=self.config.group_size,
                seed=mix(self.seed, cycle),
                progress=self.accelerator.is_main_process,
                watch=self.watch,
                spent=spent,
            ).gathered(self.accelerator, self._mine)
        if cycle == 0 and self.algorithm.learns_from_rewards:
            self._refuse_constant(buffer)
        values = buffer.statistics(self.algorithm.spread_floor) | {"rollout/cycle": self.cycles_before + cycle + 1.0}
        if self.policy.has_adapters:
            values |= {f"rl/update_size_{name}": size for name, size in update_sizes(self.policy.head).items()}
        if self.watch is not None:
            values |= self.watch.values(cycle)
        spent.lap("watch")
        return buffer, values | {f"speed/{what}_s": seconds for what, seconds in spent.seconds.items()}

    def _refuse_constant(self, buffer: RolloutBuffer) -> None:
        looked_at = buffer.indices[: self.config.scenes_per_call].tolist()
        scores = buffer.scores["score"]
        _, flat = group_advantages(scores)
        refuse_constant(self.reward, [self.source.tokens[i] for i in looked_at], scores[: len(looked_at)], flat)

    def _effective_sizes(self, targets: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the cycle's weights, by adapter."""
        assert self.buffer is not None
        weights = self.algorithm.weights(targets)
        check_weights(self.algorithm, weights, *self.buffer.scores["score"].shape)
        return {f"rl/ess_{name}": effective_share(value) for name, value in weights.items()}

    def _finished(self, cycle: int, passed: float, updates: int) -> dict[str, float]:
        """The time of a cycle's updates, of which the last is not made yet: it counts as the others do."""
        if self._spent is None or updates < 2:
            return {}
        self._spent.seconds["train"] = passed * updates / (updates - 1)
        if self.accelerator.is_main_process:
            tqdm.write(f"cycle {cycle + 1} of {self.config.cycles}: {self._spent}")
        return {"speed/train_s": self._spent.seconds["train"]}

    def _encoded(self, indices: Tensor, cycle: int) -> TokenCache:
        config = self.config
        return TokenCache(
            self.policy,
            self.source,
            indices,
            self.accelerator,
            config.scenes_per_call,
            config.context_cache_gb,
            self.tokens,
            self.token_files,
            visits=(config.cycles - cycle) * (1 + config.epochs_per_cycle),
        )

    def _tokens_of(self, buffer: RolloutBuffer, whole_weights: WholeWeights) -> TokenCache:
        """Of this process's rows."""
        if self._tokens is None:  # of a run that goes on
            with whole_weights():
                self._tokens = self._encoded(buffer.indices[self._mine], buffer.cycle)
        return self._tokens

    def _cost(self, tokens: TokenCache) -> dict[str, float]:
        """TFLOP a scene of the cycle that ends, where all of it was made here."""
        equals_once = self._rolled_out_once
        if not self.accelerator.is_main_process or self.buffer is None or equals_once is None:
            return {}
        try:
            scores = [*self.buffer.scores]
            flops = scene_flops(self._shapes, self.algorithm, self.config.group_size, scores, equals_once)
        except (RuntimeError, TypeError, ValueError) as error:  # an algorithm of a plug-in that looks at values
            self.accelerator.print(
                f"speed/tflop_per_scene is not logged: {self.algorithm.config.name}: {one_line(error)}"
            )
            return {}
        encodings = tokens.encodings / len(self._mine)
        return {"speed/tflop_per_scene": flops.cycle(self.config.epochs_per_cycle, encodings) / 1e12}
