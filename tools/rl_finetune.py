"""RL fine-tuning: `python tools/rl_finetune.py --split navtest [--algorithm dipole] [--config configs/NAME.yaml]`.

The encoder is frozen; the head, or LoRA adapters on it, learns from roll-outs scored by a metric. navtest is the
adaptation setting (reward only, scored on the scenes it is trained on), navtrain the generalization one. Without
--config it runs the demo recipe on the newest checkpoint of runs/pretrain. From a checkpoint that has adapters, a
second round goes on with them; --adapters merge or discard does otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dpvla.algorithms.config import OMEGA, DipoleConfig
from dpvla.algorithms.registry import AnyAlgorithm, make_algorithm
from dpvla.checkpoint_layout import ADAPTERS, BEST, KEPT_ROLL_OUTS, MODEL, CheckpointLayout
from dpvla.cli import parse, reporting_errors
from dpvla.costs.options import PLAN_KEYS, PlanOptions
from dpvla.models.config import LoRAConfig
from dpvla.recipes import RECIPES
from dpvla.rl.config import HeldoutConfig, RolloutConfig, TokensConfig, WatchConfig
from dpvla.training.config import LoopConfig, WhatOfAdapters
from navsim_bridge.data.config import DataConfig

if TYPE_CHECKING:
    from dpvla.costs.plan import Plan
    from dpvla.models import DPVLA
    from dpvla.rl.stage import RolloutStage
    from dpvla.training.best import Judge
    from dpvla.training.run_directory import Run
    from dpvla.training.start import StartingPoint

DEMO = RECIPES / "dipole_demo.yaml"
OF_ROLLOUTS = (
    "group_size", "cycles", "epochs_per_cycle", "scenes_per_cycle", "batch_size", "scenes_per_call", "context_cache_gb",
)  # fmt: skip


@dataclass(frozen=True)
class FinetuneConfig(PlanOptions, DataConfig):
    """RL fine-tuning of a pretrained DP-VLA. Defaults: the paper's navtrain variant on one GPU (g 10, batch 56)."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        **{f"dipole.{key}": f"algorithm.{key}" for key in ("beta", "shift", "omega", "control_variate")},
        **{f"dipole.{key}": f"rollouts.{key}" for key in OF_ROLLOUTS},
        **{f"dipole.{key}": f"lora.{key}" for key in ("rank", "alpha")},
    }

    checkpoint: str = "runs/pretrain"  # run, checkpoint or model directory to start from
    adapters: WhatOfAdapters = "keep"  # those of --checkpoint, if any: go on, fold into the model, leave out
    out: str | None = None  # run directory; the same command goes on in it (default: runs/ALGORITHM_SPLIT)
    restart: bool = False  # discard what --out holds
    algorithm: AnyAlgorithm = field(default_factory=DipoleConfig)  # what is learned from the roll-outs
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)  # cycles and batches
    tokens: TokensConfig = field(default_factory=TokensConfig)  # where the frozen encoder's tokens lie
    yes: bool = False  # write a token cache of more than tokens.limit_gb
    lora: LoRAConfig = field(default_factory=LoRAConfig)  # size of the algorithm's adapters
    watch: WatchConfig = field(default_factory=WatchConfig)  # what is looked at beside the reward
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)  # scenes that are scored and not learned from
    loop: LoopConfig = field(default_factory=LoopConfig)  # optimizer, logging, checkpoints


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and say where the checkpoint is."""
    config = parse(FinetuneConfig, argv, __doc__, default_config=DEMO)
    config.check_plan()
    if config.plan:
        return print_plan(config)
    from dpvla.training.launch import make_accelerator
    from dpvla.training.run_directory import FREE, open_run
    from navsim_bridge.data.watching import refuse_vain_heldout, watched_metrics

    refuse_vain_heldout(config, config.heldout)
    watched_metrics(config, config.watch)
    config = replace(config, out=config.out or f"runs/{config.algorithm.name}_{Path(config.split).stem}")
    accelerator = make_accelerator(config.loop, str(config.out))
    with open_run(str(config.out), config, config.restart, accelerator, free=(*FREE, *PLAN_KEYS, "checkpoint")) as run:
        run, first = weights_before(run)
        fine_tune(run, first)


def weights_before(run: Run) -> tuple[Run, StartingPoint]:
    """The policy that the run starts or goes on with, with adapters, on its device; and the run, which follows it."""
    import torch

    from dpvla.models import DPVLA
    from dpvla.models.adapter_files import saved_size
    from dpvla.training.start import StartingPoint, open_start, refuse_other_start, starting_point

    config: FinetuneConfig = run.config
    algorithm = make_algorithm(config.algorithm)
    size: tuple[int, float] = config.lora.of(algorithm.adapters)
    if run.last is None:
        first = starting_point(open_start(config.checkpoint), config.adapters, algorithm.adapters, config.lora)
        run = run.following("algorithm.omega", first.about.get("omega", OMEGA))
    else:
        refuse_other_start(run, "checkpoint", config.checkpoint)
        layout = CheckpointLayout(run.last)
        if algorithm.adapters:  # an earlier version gave one alone the size of each of two
            size = saved_size(layout.adapters, algorithm.adapters)
        first = StartingPoint(DPVLA.from_pretrained(layout.model), (), run.before.get("start") or {}, layout.model)
    policy = first.policy.to(run.accelerator.device)
    torch.manual_seed(config.loop.seed)
    if algorithm.adapters and not policy.has_adapters:
        policy.add_adapters(algorithm.adapters, *size)
    return run, first


def fine_tune(run: Run, first: StartingPoint) -> None:
    """Open what is learned from, check it all, then train."""
    from dpvla.costs.plan import outlined_from, require_room
    from dpvla.rl.held_out import SCORE, HeldOut
    from dpvla.rl.stage import RolloutStage
    from dpvla.rl.token_store import open_tokens
    from dpvla.rl.watching import Watch
    from dpvla.training.best import Judge
    from dpvla.training.start import open_start
    from navsim_bridge.data.training_data import open_training_data
    from navsim_bridge.data.watching import open_watching
    from navsim_bridge.demo_world import make_demo_world_if_needed
    from navsim_bridge.metrics.registry import make_metric

    config: FinetuneConfig = run.config
    accelerator, seed, metric = run.accelerator, config.loop.seed, make_metric(config.metric)
    algorithm, policy = make_algorithm(config.algorithm), first.policy
    policy.precision = config.loop.precision
    if accelerator.is_main_process:
        make_demo_world_if_needed(config.data_root, config.maps_root)
    data = open_training_data(config, policy.encoder.sensors, accelerator, reward_on="source")
    assert data.reward is not None
    model = open_start(config.checkpoint).model if run.last is None else CheckpointLayout(run.last).model
    require_room(
        lambda options: planned(config, outlined_from(model), options, len(data.source)), accelerator, str(config.out)
    )
    watched, scenes = open_watching(config, config.watch, config.heldout, data, policy.encoder.sensors, accelerator)
    held_out = judge = None
    if scenes is not None:
        visits = config.rollouts.cycles // config.heldout.every + 2
        held_out = HeldOut(scenes.source, scenes.metrics, config.rollouts, config.tokens, accelerator, visits)
        judge = Judge(SCORE, scenes.what, config.heldout.stop_below)
    stage = RolloutStage(
        policy,
        algorithm,
        data.source,
        data.reward,
        config.rollouts,
        accelerator,
        seed,
        first.model,
        run.describe,
        config.tokens,
        Watch(config.watch, watched, accelerator, seed),
        held_out,
        first.about.get("cycles", 0),
    )
    loop = replace(
        config.loop,
        steps=config.loop.steps or stage.steps,
        evaluate_every=config.loop.evaluate_every or config.heldout.every * stage.steps_per_cycle,
    )
    if run.step < loop.steps:
        portion = config.rollouts.scenes_per_call
        stage.token_files = open_tokens(config.tokens, policy, data.source, accelerator, portion, config.yes)
    moved = ADAPTERS if algorithm.adapters else MODEL
    trained_on = replace(data.trained_on(config.algorithm.name, metric.title), weights=moved)
    run.begin(seed, [*first.trained_on, trained_on], loop.steps, data.about, first.about)
    if config.rollouts.keep:
        stage.keep_roll_outs(run.path / KEPT_ROLL_OUTS, metric.rule)
    if run.last is None:
        before = f" (sampled with omega {first.about['omega']:g} before)" if "omega" in first.about else ""
        accelerator.print(f"start: {first.about['path']}; adapters: {first.about['adapters']}{before}")
    train_and_draw(stage, loop, run, judge)


def train_and_draw(stage: RolloutStage, loop: LoopConfig, run: Run, judge: Judge | None) -> None:
    """Train; the picture is drawn however it ends, as far as rows are logged."""
    from dpvla.rl.picture import draw_run
    from dpvla.training.best import FallenError
    from dpvla.training.loop import train

    draws = run.config.watch.picture and run.accelerator.is_main_process
    try:
        last = train(stage, loop, run.path, run.accelerator, judge=judge)
    except (KeyboardInterrupt, FallenError, FloatingPointError):
        if draws:
            draw_run(run.path)
        raise
    if draws:
        draw_run(run.path)
    run.accelerator.print(f"checkpoint: {last}")
    if judge is not None and judge.best is not None:
        run.accelerator.print(f"best: {run.path / BEST} (step {judge.best_step}, {judge.score} {judge.best:.4f})")


def print_plan(config: FinetuneConfig) -> None:
    """What the run would take; nothing else is done."""
    from dpvla.costs.plan import outlined, outlined_from, report, scene_count
    from dpvla.models import DPVLA, DPVLAConfig
    from dpvla.training.start import open_start

    if Path(config.checkpoint).exists():
        policy = outlined_from(open_start(config.checkpoint).model)
    else:
        print(f"there is no {config.checkpoint} yet: planned for the paper's model")
        made = outlined(DPVLAConfig())
        assert isinstance(made, DPVLA)
        policy = made
    plan = planned(config, policy, config, scene_count(config, config.split))
    report(plan, config, config.out or f"runs/{config.algorithm.name}_{Path(config.split).stem}")


def planned(config: FinetuneConfig, policy: DPVLA, options: PlanOptions, scenes: int) -> Plan:
    """The run from ``policy``, which is outlined, on what ``options`` say."""
    from dpvla.costs.plan import plan_fine_tuning

    algorithm = make_algorithm(config.algorithm)
    return plan_fine_tuning(
        policy, algorithm, config.rollouts, config.tokens, config.lora, config.loop, options, scenes
    )


if __name__ == "__main__":
    main()
