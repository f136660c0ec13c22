"""Imitation pretraining: `accelerate launch tools/pretrain.py [--config configs/NAME.yaml]`.

Without --config it trains the demo recipe, on the built-in demo world (made if absent) unless
OPENSCENE_DATA_ROOT or --data-root points to NAVSIM's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dpvla.config import parse, reporting_errors
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.training.imitation import ImitationConfig, ImitationStage
from dpvla.training.loop import LoopConfig, make_accelerator, train
from dpvla.training.run_directory import describe_training, open_run
from navsim_bridge.training_data import DataConfig, open_training_data

DEMO = Path(__file__).parent.parent / "configs" / "pretrain_demo.yaml"


@dataclass(frozen=True)
class PretrainConfig(DataConfig):
    """Imitation pretraining of DP-VLA on a NAVSIM split. Defaults: the paper's (100 epochs, batch 16, lr 1e-4)."""

    out: str = "runs/pretrain"  # run directory; the same command goes on in it
    restart: bool = False  # discard what --out holds
    model: DPVLAConfig = field(default_factory=DPVLAConfig)  # encoder, head, diffusion
    imitation: ImitationConfig = field(default_factory=ImitationConfig)  # epochs, batches
    loop: LoopConfig = field(default_factory=LoopConfig)  # optimiser, logging, checkpoints


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and say where the checkpoint is."""
    config = parse(PretrainConfig, argv, __doc__, default_config=DEMO)
    seed = config.loop.seed
    accelerator = make_accelerator(config.loop, config.out)
    size = (config.model.encoder.image_width, config.model.encoder.image_height)
    data = open_training_data(config, size, accelerator, reward_on="validation")
    out = open_run(config.out, config, seed, config.restart, accelerator)
    torch.manual_seed(seed)
    policy = DPVLA.from_config(config.model)
    policy.plan_coding.fit(data.source.plans(), data.source.ego_status())
    stage = ImitationStage(
        policy.to(accelerator.device),
        data.source,
        config.imitation,
        accelerator,
        seed,
        describe_training(config, seed, [data.trained_on("imitation")]),
        data.validation,
        data.reward,
    )
    loop = config.loop if config.loop.steps else replace(config.loop, steps=stage.steps)
    accelerator.print(f"checkpoint: {train(stage, loop, out, accelerator)}")


if __name__ == "__main__":
    main()
