"""DIPOLE fine-tuning: `python tools/rl_finetune.py --split navtest [--config configs/NAME.yaml]`.

The encoder is frozen; two LoRA adapters on the head learn from roll-outs scored by PDMS. navtest is the adaptation
setting (reward only, scored on the scenes it is trained on), navtrain the generalisation one. Without --config it
runs the demo recipe on the newest checkpoint of runs/pretrain. From a checkpoint that has adapters, a second round goes
on with them; --adapters merge or discard does otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dpvla.cli import parse, reporting_errors
from dpvla.models import DPVLA
from dpvla.rl.stage import DipoleConfig, DipoleStage
from dpvla.training.loop import LoopConfig, make_accelerator, train
from dpvla.training.run_directory import FREE, open_run
from dpvla.training.start import StartingPoint, WhatOfAdapters, open_start, refuse_other_start, starting_point
from navsim_bridge.data.training_data import DataConfig, open_training_data

DEMO = Path(__file__).parent.parent / "configs" / "dipole_demo.yaml"


@dataclass(frozen=True)
class FinetuneConfig(DataConfig):
    """DIPOLE fine-tuning of a pretrained DP-VLA. Defaults: the paper's navtrain variant on one GPU (g 10, batch 56)."""

    checkpoint: str = "runs/pretrain"  # run, checkpoint or model directory to start from
    adapters: WhatOfAdapters = "keep"  # those of --checkpoint, if any: go on, fold into the model, leave out
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
    settings = config.dipole
    with open_run(str(config.out), config, config.restart, accelerator, free=(*FREE, "checkpoint")) as run:
        if run.last is None:
            first = starting_point(open_start(config.checkpoint), config.adapters, settings.rank, settings.alpha)
        else:
            refuse_other_start(run, "checkpoint", config.checkpoint)
            first = StartingPoint(DPVLA.from_pretrained(run.last / "model"), (), run.before.get("start") or {}, None)
        policy = first.policy.to(accelerator.device)
        policy.precision = config.loop.precision
        size = (policy.config.encoder.image_width, policy.config.encoder.image_height)
        data = open_training_data(config, size, accelerator, reward_on="source")
        assert data.reward is not None
        torch.manual_seed(seed)
        if not policy.has_adapters:
            policy.add_adapters(settings.rank, settings.alpha)
        stage = DipoleStage(policy, data.source, data.reward, settings, accelerator, seed, first.model, run.describe)
        loop = config.loop if config.loop.steps else replace(config.loop, steps=stage.steps)
        trained_on = replace(data.trained_on("dipole"), weights="adapters")
        run.begin(seed, [*first.trained_on, trained_on], loop.steps, data.about, first.about)
        if run.last is None:
            before = f" (sampled with omega {first.about['omega']:g} before)" if "omega" in first.about else ""
            accelerator.print(f"start: {first.about['path']}; adapters: {first.about['adapters']}{before}")
        accelerator.print(f"checkpoint: {train(stage, loop, run.path, accelerator)}")


if __name__ == "__main__":
    main()
