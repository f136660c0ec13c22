"""DIPOLE fine-tuning (METHOD: roll out, score, normalise in groups, train both adapters, repeat)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.algorithms.dipole import ADAPTERS, dipole_loss
from dpvla.batch import RewardFunction, SceneSource
from dpvla.config import ConfigError, Count, NotNegative, Range, Whole, check
from dpvla.diffusion import combine
from dpvla.models import DPVLA, SceneContext
from dpvla.models.adapters import load_adapters, save_adapters
from dpvla.models.head import DiTHead
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.rollout import chunks, collect, encode_scenes
from dpvla.tensors import CheckpointError
from dpvla.training.checkpoint import checkpoint_step, latest_checkpoint, link_tree
from dpvla.training.order import epoch_batches, permutation, step_seed, steps_per_epoch
from dpvla.training.run_directory import read_run


@dataclass(frozen=True)
class DipoleConfig:
    """Roll-outs and the DIPOLE loss."""

    group_size: Annotated[Count, Range(least=2)] = 10  # g: plans of a scene (paper: 10 navtrain, 25 navtest)
    beta: NotNegative = 1.0  # temperature of the weights sigmoid(beta G + shift); not given by the paper
    shift: float = 0.0  # k of App. D.2; 0 in driving
    omega: NotNegative = 1.0  # w: greediness of the roll-outs, and of later sampling; not given by the paper
    cycles: Count = 1  # times the buffer is cleared and filled again
    epochs_per_cycle: Count = 9  # training epochs on one buffer (paper: 9 after 1 roll-out epoch)
    scenes_per_cycle: Whole = 0  # at most so many scenes are rolled out in a cycle; 0: all of the split
    control_variate: bool = False  # anchors the pair to the policy that rolled out (algorithms.dipole.dipole_loss)
    batch_size: Count = 56  # scenes in an update over all processes, each with its whole group (paper: 56 on each GPU)
    scenes_per_call: Count = 64  # scenes encoded, sampled and scored together
    rank: Count = 16  # of each LoRA adapter
    alpha: Count = 16  # LoRA scale is alpha / rank
    context_cache_gb: NotNegative = 8.0  # encoded scenes of a cycle stay in memory up to this size, else made anew


@dataclass(frozen=True)
class RolloutBatch:
    """Scenes of one update with their groups."""

    context: SceneContext
    plans: Tensor  # (scene, candidate, 8, 3)
    advantages: Tensor  # (scene, candidate)


class DipoleStep(nn.Module):
    """The differentiable part of an update; ``forward`` is what accelerate wraps."""

    def __init__(self, policy: DPVLA, config: DipoleConfig) -> None:
        super().__init__()
        self.policy: DPVLA = policy
        self.config = config
        self._behaviour: tuple[DiTHead, ...] = ()  # in a tuple: neither trained nor saved with the module

    @property
    def behaviour(self) -> DiTHead | None:
        """The head that sampled the buffer, where ``control_variate`` asks for it."""
        return self._behaviour[0] if self._behaviour else None

    def follow(self, head: DiTHead) -> None:
        """Plans from now on were sampled with this head."""
        self._behaviour = (head,)

    def forward(self, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 9 at one random noise level per plan."""
        policy, config = self.policy, self.config
        t, noise = policy.draw(*batch.plans.shape[:2])
        sampled = None
        if self.behaviour is not None:
            with torch.no_grad():
                output, _ = policy.denoise_plans(batch.context, batch.plans, t, noise, ADAPTERS, self.behaviour)
                sampled = combine(output[0], output[1], config.omega)
        return dipole_loss(
            policy, batch.context, batch.plans, batch.advantages, t, noise, config.beta, config.shift, sampled
        )


class DipoleStage:
    """A ``Stage`` of ``training.loop``: both adapters of ``policy`` learn from scored roll-outs."""

    def __init__(
        self,
        policy: DPVLA,
        source: SceneSource,
        reward: RewardFunction,
        config: DipoleConfig,
        accelerator: Accelerator,
        seed: int,
        model_directory: Path | None,
        describe: Callable[[Path], None],
    ) -> None:
        """``model_directory``: files of the frozen model, where there are any; ``describe`` writes ``run.yaml``."""
        check(config, "dipole")
        processes = accelerator.num_processes
        if config.batch_size % processes:
            raise ConfigError(
                f"dipole.batch_size {config.batch_size} cannot be shared by {processes} processes: it counts the "
                "scenes of an update over all of them, take a multiple"
            )
        policy.freeze_base()
        policy.omega = config.omega
        self.policy, self.source, self.reward, self.config, self.seed = policy, source, reward, config, seed
        self._step = DipoleStep(policy, config)
        self.module: nn.Module = self._step
        self.accelerator, self.model_directory, self.describe = accelerator, model_directory, describe
        self.buffer: RolloutBuffer | None = None
        self._contexts: list[SceneContext] | None = None
        scenes = min(config.scenes_per_cycle or len(source), len(source))
        self._local, self._batch = scenes // processes, config.batch_size // processes
        if self._local == 0:
            raise ConfigError(f"{scenes} scenes cannot be shared by {processes} processes: take fewer processes")

    @property
    def steps_per_cycle(self) -> int:
        """Updates between two roll-outs."""
        return self.config.epochs_per_cycle * steps_per_epoch(self._local, self._batch)

    @property
    def steps(self) -> int:
        """Updates of all cycles."""
        return self.config.cycles * self.steps_per_cycle

    def batches(self, first_step: int, log: Callable[[int, Mapping[str, float]], None]) -> Iterator[RolloutBatch]:
        """Batches from ``first_step`` on; a new cycle rolls out with the weights of that moment."""
        step = first_step
        while True:
            cycle, place = divmod(step, self.steps_per_cycle)
            if place == 0 or self.buffer is None or self.buffer.cycle != cycle:
                self.buffer = self._roll_out(cycle).gathered(self.accelerator)
                log(step, self.buffer.statistics())
            mine = self.buffer.part(self._rank)
            plans, advantages = self.buffer.plans[mine], self.buffer.advantages()[mine]
            order = epoch_batches(self._local, self._batch, place, self.seed, cycle, self._rank)
            for _, rows in zip(range(place, self.steps_per_cycle), order):
                chosen = torch.as_tensor(rows)
                yield RolloutBatch(
                    self._context_of(chosen),
                    plans[chosen].to(self.accelerator.device),
                    advantages[chosen].to(self.accelerator.device),
                )
                step += 1

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Nothing beyond the roll-outs' own scores; ``tools/evaluate.py`` scores the result."""
        return {}

    def save(self, directory: Path) -> None:
        """``model/`` (unchanged), ``adapters/``, ``run.yaml``, and the buffer of this cycle."""
        newest = latest_checkpoint(directory.parent.parent)
        model = self.model_directory if newest is None else newest / "model"
        if model is not None and model.is_dir():
            link_tree(model, directory / "model")
        else:
            self.policy.save_pretrained(directory / "model")
        self.policy.save_adapters(directory / "adapters")
        self.describe(directory)
        if self.buffer is not None:
            self.buffer.save(directory / "trainer_state" / "buffer.safetensors")
        if self._step.behaviour is not None:
            save_adapters(self._step.behaviour, directory / "trainer_state" / "behaviour")

    def restore(self, directory: Path) -> None:
        """Take up the buffer; the encoded scenes are made again in the same portions."""
        path = directory / "trainer_state" / "buffer.safetensors"
        buffer = RolloutBuffer.load(path)
        made = read_run(directory).get("provenance") or {}
        if buffer.processes > 1 and "processes" not in made:
            raise CheckpointError(
                f"{directory} is of version 0.1.0, whose dipole.batch_size counted the scenes of each of its "
                f"{buffer.processes} processes: start a new run from these weights (--checkpoint {directory})"
            )
        if buffer.processes != self.accelerator.num_processes:
            raise CheckpointError(
                f"{directory} is of a run with {buffer.processes} processes, this one has "
                f"{self.accelerator.num_processes}: launch as many, or start a new run from these weights"
            )
        cycle = (checkpoint_step(directory) - 1) // self.steps_per_cycle
        if buffer.cycle != cycle:
            raise CheckpointError(f"{path} is of cycle {buffer.cycle}, its checkpoint of cycle {cycle}: it is damaged")
        self.buffer, self._contexts = buffer, self._encode_all(buffer.indices[buffer.part(self._rank)])
        if self.config.control_variate:
            behaviour = self.policy.snapshot_head()
            load_adapters(behaviour, directory / "trainer_state" / "behaviour")
            self._step.follow(behaviour)

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    def _roll_out(self, cycle: int) -> RolloutBuffer:
        if self.config.control_variate:
            self._step.follow(self.policy.snapshot_head())
        scenes = permutation(len(self.source), self.seed, cycle)[: self._local * self.accelerator.num_processes]
        indices = torch.as_tensor(scenes[self._rank :: self.accelerator.num_processes].copy())
        self._contexts = self._encode_all(indices)
        kept = self._contexts
        size = self.config.scenes_per_call

        def contexts(rows: range) -> SceneContext:
            if kept is not None:
                return kept[rows.start // size].to(self.accelerator.device)
            return self._encode(indices[rows.start : rows.stop])

        return collect(
            self.policy,
            self.source,
            self.reward,
            indices,
            contexts,
            cycle=cycle,
            group_size=self.config.group_size,
            omega=self.config.omega,
            scenes_per_call=size,
            seed=step_seed(self.seed, cycle, self._rank),
            progress=self.accelerator.is_main_process,
        )

    def _encode(self, indices: Tensor) -> SceneContext:
        return encode_scenes(self.policy, self.source, indices.tolist(), self.accelerator)

    def _encode_all(self, indices: Tensor) -> list[SceneContext] | None:
        """The frozen encoder's tokens of a whole cycle, in portions, or None when they exceed the limit."""
        kept: list[SceneContext] = []
        for rows in chunks(len(indices), self.config.scenes_per_call):
            context = self._encode(indices[rows.start : rows.stop])
            if not kept:
                total = context.tokens.nbytes / len(rows) * len(indices)
                if total > self.config.context_cache_gb * 2**30:
                    self.accelerator.print(
                        f"encoded scenes would take {total / 2**30:.1f} GiB of memory, more than "
                        f"context_cache_gb = {self.config.context_cache_gb}: encoding every batch afresh"
                    )
                    return None
                if total > 2**30:
                    self.accelerator.print(f"keeping {total / 2**30:.1f} GiB of encoded scenes in memory")
            kept.append(context.to("cpu"))
        return kept

    def _context_of(self, chosen: Tensor) -> SceneContext:
        assert self.buffer is not None
        if self._contexts is None:
            return self._encode(self.buffer.indices[self.buffer.part(self._rank)][chosen])
        if len(self._contexts) > 1:
            self._contexts = [SceneContext.cat(self._contexts)]
        return self._contexts[0].select(chosen).to(self.accelerator.device)
