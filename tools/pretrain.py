"""Imitation pretraining: `accelerate launch tools/pretrain.py [--config configs/NAME.yaml]`.

Without --config it trains the demo recipe, on the built-in demo world (made if absent) unless
OPENSCENE_DATA_ROOT or --data-root points to NAVSIM's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.cli import parse, reporting_errors
from dpvla.config import ConfigError
from dpvla.costs.options import PLAN_KEYS, PlanOptions
from dpvla.models.config import DPVLAConfig
from dpvla.recipes import RECIPES
from dpvla.training.config import ImitationConfig, LoopConfig
from navsim_bridge.data.config import DataConfig

if TYPE_CHECKING:
    from dpvla.costs.plan import Plan
    from dpvla.models import DrivingPolicy
    from dpvla.training.run_directory import Run
    from dpvla.training.start import Start

DEMO = RECIPES / "pretrain_demo.yaml"


@dataclass(frozen=True)
class PretrainConfig(PlanOptions, DataConfig):
    """Imitation pretraining on a NAVSIM split. Defaults: the paper's DP-VLA (100 epochs, batch 16, lr 1e-4)."""

    out: str = "runs/pretrain"  # run directory; the same command goes on in it
    restart: bool = False  # discard what --out holds
    init_from: str | None = None  # start from the weights of this run, checkpoint or model directory
    model: DPVLAConfig = field(default_factory=DPVLAConfig)  # encoder, head, diffusion
    imitation: ImitationConfig = field(default_factory=ImitationConfig)  # epochs, batches
    loop: LoopConfig = field(default_factory=LoopConfig)  # optimizer, logging, checkpoints


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and say where the checkpoint is."""
    config = parse(PretrainConfig, argv, __doc__, default_config=DEMO)
    config.check_plan()
    if config.plan:
        return print_plan(config)
    from dpvla.costs.plan import require_room
    from dpvla.training.imitation import ImitationStage
    from dpvla.training.launch import make_accelerator
    from dpvla.training.loop import train
    from dpvla.training.run_directory import FREE, open_run
    from dpvla.training.start import open_start, refuse_other_start
    from navsim_bridge.data.training_data import open_training_data
    from navsim_bridge.demo_world import make_demo_world_if_needed

    seed = config.loop.seed
    accelerator = make_accelerator(config.loop, config.out)
    sources = ("init_from", *(f"model.encoder.{key}" for key in config.model.encoder.SOURCES))
    with open_run(config.out, config, config.restart, accelerator, free=(*FREE, *PLAN_KEYS, *sources)) as run:
        start = open_start(config.init_from) if config.init_from and run.last is None else None
        if run.last is not None:
            refuse_other_start(run, "init_from", config.init_from)
        with accelerator.main_process_first():  # one process fetches released weights for all
            policy = initial_policy(config, run, start)
        if accelerator.is_main_process:
            make_demo_world_if_needed(config.data_root, config.maps_root)
        data = open_training_data(config, policy.encoder.sensors, accelerator, reward_on="validation")
        require_room(lambda options: planned(config, options, len(data.source)), accelerator, config.out)
        if run.last is None and start is None:
            policy.fit(data.source.plans(), data.source.ego_status())
        stage = ImitationStage(
            policy.to(accelerator.device),
            data.source,
            config.imitation,
            accelerator,
            seed,
            run.describe,
            data.validation,
            data.reward,
        )
        loop = config.loop if config.loop.steps else replace(config.loop, steps=stage.steps)
        run.begin(
            seed,
            [*(start.trained_on if start else ()), data.trained_on("imitation")],
            loop.steps,
            data.about,
            None if start is None else {"path": str(start.path), "weights_sha256": start.weights_hash()},
        )
        accelerator.print(f"checkpoint: {train(stage, loop, run.path, accelerator)}")


def print_plan(config: PretrainConfig) -> None:
    """What the run would take; nothing else is done."""
    from dpvla.costs.plan import report, scene_count

    report(planned(config, config, scene_count(config, config.split)), config, config.out)


def planned(config: PretrainConfig, options: PlanOptions, scenes: int) -> Plan:
    """The run on what ``options`` say."""
    from dpvla.costs.plan import outlined, plan_pretraining

    return plan_pretraining(outlined(config.model), config.imitation, config.loop, options, scenes)


def initial_policy(config: PretrainConfig, run: Run, start: Start | None) -> DrivingPolicy:
    """The policy before this call's first update: of the run that goes on, of --init-from, or new."""
    import torch

    from dpvla.models.policies import new_policy, open_policy

    torch.manual_seed(config.loop.seed)
    if run.last is not None:
        policy = open_policy(CheckpointLayout(run.last).model, config=config.model)
    elif start is None:
        policy = new_policy(config.model)
    else:
        if start.adapters is not None:
            raise ConfigError(
                f"--init-from {start.path} has adapters, which pretraining does not train: give {start.model} to leave "
                "them out"
            )
        policy = open_policy(start.model, config=config.model)
    policy.precision = config.loop.precision
    return policy


if __name__ == "__main__":
    main()
