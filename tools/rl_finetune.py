"""DIPOLE fine-tuning: `python tools/rl_finetune.py --split navtest [--config configs/NAME.yaml]`.

The encoder is frozen; two LoRA adapters on the head learn from roll-outs scored by PDMS. navtest is the adaptation
setting (reward only, scored on the scenes it is trained on), navtrain the generalisation one. Without --config it
runs the demo recipe on the newest checkpoint of runs/pretrain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dpvla.config import parse, reporting_errors
from dpvla.models import DPVLA
from dpvla.rl.finetune import DipoleConfig, DipoleStage
from dpvla.training.checkpoint import resolve_checkpoint
from dpvla.training.loop import LoopConfig, make_accelerator, train
from dpvla.training.run_directory import describe_training, open_run, read_trained_on
from navsim_bridge.training_data import DataConfig, open_training_data

DEMO = Path(__file__).parent.parent / "configs" / "dipole_demo.yaml"


@dataclass(frozen=True)
class FinetuneConfig(DataConfig):
    """DIPOLE fine-tuning of a pretrained DP-VLA. Defaults: the paper's navtrain variant (g 10, batch 56, lr 1e-4)."""

    checkpoint: str = "runs/pretrain"  # pretraining run or checkpoint to start from
    out: str | None = None  # run directory; the same command goes on in it (default: runs/dipole_SPLIT)
    restart: bool = False  # discard what --out holds
    dipole: DipoleConfig = field(default_factory=DipoleConfig)  # roll-outs and loss
    loop: LoopConfig = field(default_factory=LoopConfig)  # optimiser, logging, checkpoints


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and say where the checkpoint is."""
    config = parse(FinetuneConfig, argv, __doc__, default_config=DEMO)
    config = replace(config, out=config.out or f"runs/dipole_{Path(config.split).stem}")
    seed = config.loop.seed
    accelerator = make_accelerator(config.loop, str(config.out))
    start = resolve_checkpoint(config.checkpoint)
    policy = DPVLA.from_pretrained(start / "model").to(accelerator.device)
    size = (policy.config.encoder.image_width, policy.config.encoder.image_height)
    data = open_training_data(config, size, accelerator, reward_on="source")
    assert data.reward is not None
    out = open_run(str(config.out), config, seed, config.restart, accelerator)
    torch.manual_seed(seed)
    policy.add_adapters(config.dipole.rank, config.dipole.alpha)
    stage = DipoleStage(
        policy,
        data.source,
        data.reward,
        config.dipole,
        accelerator,
        seed,
        start / "model",
        describe_training(config, seed, [*read_trained_on(start), data.trained_on("dipole")]),
    )
    loop = config.loop if config.loop.steps else replace(config.loop, steps=stage.steps)
    accelerator.print(f"checkpoint: {train(stage, loop, out, accelerator)}")


if __name__ == "__main__":
    main()
