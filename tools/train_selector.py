"""Train a selector: `python tools/train_selector.py --roll-outs RUN [RUN ...] --checkpoint RUN [--config FILE]`.

It learns to predict what plans score, from roll-outs that tools/rl_finetune.py kept (--rollouts.keep), and then chooses
the best of several sampled plans: tools/evaluate.py --select 16 --selector OUT. Without --config it trains the demo
recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.cli import parse, reporting_errors
from dpvla.config import ConfigError, Whole
from dpvla.recipes import RECIPES
from dpvla.rl.config import TokensConfig
from dpvla.selector.config import SelectorConfig, SelectorTrainingConfig
from dpvla.training.config import LoopConfig
from navsim_bridge.data.config import DataConfig

if TYPE_CHECKING:
    from dpvla.rl.kept import KeptRollOuts

DEMO = RECIPES / "selector_demo.yaml"


@dataclass(frozen=True)
class TrainSelector(DataConfig):
    """A selector that chooses among a policy's plans."""

    roll_outs: tuple[str, ...] = ()  # runs of tools/rl_finetune.py --rollouts.keep, of scenes of --split
    checkpoint: str = "runs/pretrain"  # run, checkpoint or model directory whose frozen encoder makes the tokens
    out: str = "runs/selector"  # run directory; the same command goes on in it
    restart: bool = False  # discard what --out holds
    validation_logs: Whole = 8  # the last so many logs of the split are held out, as by tools/pretrain.py
    selector: SelectorConfig = field(default_factory=SelectorConfig)  # the network
    training: SelectorTrainingConfig = field(default_factory=SelectorTrainingConfig)  # batches and loss
    tokens: TokensConfig = field(default_factory=TokensConfig)  # where the frozen encoder's tokens lie
    yes: bool = False  # write a token cache of more than tokens.limit_gb
    loop: LoopConfig = field(default_factory=LoopConfig)  # optimizer, logging, checkpoints


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and say where the selector is."""
    config = parse(TrainSelector, argv, __doc__, default_config=DEMO)
    if not config.roll_outs:
        raise ConfigError("--roll-outs is needed: runs of tools/rl_finetune.py that kept theirs (--rollouts.keep)")
    if len(set(config.roll_outs)) < len(config.roll_outs):
        raise ConfigError("--roll-outs names a run twice")
    import torch

    from dpvla.rl.kept import KeptRollOuts
    from dpvla.rl.token_store import open_tokens
    from dpvla.selector.pool import PlanPool, same_rule
    from dpvla.selector.selector import Output, Selector
    from dpvla.selector.stage import SelectorStage
    from dpvla.training.launch import make_accelerator
    from dpvla.training.loop import train
    from dpvla.training.run_directory import FREE, open_run
    from dpvla.training.start import open_start, refuse_other_start
    from navsim_bridge.data.training_data import hold_out, open_training_data
    from navsim_bridge.demo_world import make_demo_world_if_needed

    seed = config.loop.seed
    accelerator = make_accelerator(config.loop, config.out)
    with open_run(config.out, config, config.restart, accelerator, free=(*FREE, "checkpoint")) as run:
        runs = {path: KeptRollOuts.read(path) for path in config.roll_outs}
        rule = same_rule(runs)
        start = open_start(config.checkpoint)
        if run.last is not None:
            refuse_other_start(run, "checkpoint", config.checkpoint)
        policy = start.load_dpvla(accelerator.device)
        for path, kept in runs.items():
            kept.refuse_other_encoder(policy, path)
        if accelerator.is_main_process:
            make_demo_world_if_needed(config.data_root, config.maps_root)
        whole = replace(config, validation_logs=0)  # one token cache for all
        data = open_training_data(whole, policy.encoder.sensors, accelerator, reward_on="nothing")
        scenes = data.source.tokens
        for path, kept in runs.items():
            kept.require_scenes(scenes, path, f"--split {data.split}")
        apart = {record.token for record in hold_out(data.source.records, config.validation_logs)[1]}
        pool = PlanPool.of(list(runs.values()), scenes, [i for i, name in enumerate(scenes) if name in apart])
        torch.manual_seed(seed)
        if run.last is None:
            outputs = [Output.of(name, pool.learned_scores[:, i]) for i, name in enumerate(pool.names)]
            maker = runs[config.roll_outs[0]].maker
            selector = Selector(config.selector, rule, outputs, maker, policy.head.context_width)
        else:
            selector = Selector.from_pretrained(CheckpointLayout(run.last).selector).requires_grad_(True)
        token_files = open_tokens(
            config.tokens, policy, data.source, accelerator, config.training.scenes_per_call, config.yes
        )
        stage = SelectorStage(
            selector.to(accelerator.device),
            policy,
            data.source,
            pool,
            config.training,
            accelerator,
            seed,
            run.describe,
            config.tokens,
            token_files,
        )
        loop = config.loop if config.loop.steps else replace(config.loop, steps=stage.steps)
        learned = replace(
            data.trained_on("selector"), scenes=len(stage.scenes), logs=data.logs_of(stage.scenes.tolist())
        )
        about = {"path": str(start.path), "weights_sha256": start.weights_hash()}
        trained_on = [*start.without_adapters().trained_on, learned]
        run.begin(seed, trained_on, loop.steps, _with_roll_outs(data.about, runs), about)
        accelerator.print(f"checkpoint: {train(stage, loop, run.path, accelerator)}")


def _with_roll_outs(about: Mapping[str, Any], runs: Mapping[str, KeptRollOuts]) -> dict[str, Any]:
    """What ``run.yaml`` says of the data, the roll-outs among it: a run that goes on must find the same ones."""
    found = {path: kept.fingerprint() for path, kept in runs.items()}
    whole = hashlib.sha256("".join([str(about["fingerprint"]), *found.values()]).encode()).hexdigest()
    return {**about, "roll_outs": found, "fingerprint": whole}


if __name__ == "__main__":
    main()
