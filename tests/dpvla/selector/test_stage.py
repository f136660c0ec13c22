"""Training a selector: it learns which plans are good, goes on exactly after a stop, and reports on held-out scenes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.checkpoint_layout import KEPT_ROLL_OUTS
from dpvla.config import ConfigError
from dpvla.random_rows import RandomRows
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.kept import KeptRollOuts
from dpvla.rl.token_files import Maker
from dpvla.selector.config import SelectorConfig, SelectorTrainingConfig
from dpvla.selector.pool import PlanPool, same_rule
from dpvla.selector.selector import Output, Selector
from dpvla.selector.stage import SelectorStage
from dpvla.sub_scores import ScoringRule
from dpvla.training.loop import train
from tests.dpvla.training.test_resume import LOOP, assert_same_files, describe
from tests.gpu.tiny_driving import make_policy
from tests.scenes_in_memory import ScenesInMemory, prefer_left

RULE = ScoringRule({"metric": "left"}, ())
SCENES, HELD_OUT = 12, (9, 10, 11)
TRAINING = SelectorTrainingConfig(epochs=2, batch_size=4, plans_per_scene=6, scenes_per_call=4)


def kept(folder: Path, cycles: int = 2, scenes: int = SCENES, group: int = 8, rule: ScoringRule = RULE) -> KeptRollOuts:
    """Plans that scatter sideways, of all scenes but one in each cycle."""
    policy, _ = make_policy()
    source = ScenesInMemory(scenes, policy.encoder.sensors)
    made = KeptRollOuts(folder, Maker.of(policy).as_dict(), rule, tuple(source.tokens))
    made.begin(cycles, scenes, group)
    for cycle in range(cycles):
        generator = torch.Generator().manual_seed(cycle)
        indices = torch.randperm(scenes, generator=generator)[1:]
        plans = source.plans()[indices, None] + torch.zeros(group, 1, 1)
        plans[..., 1] += torch.randn(len(indices), group, 1, generator=generator) * torch.linspace(0, 2, 8)
        made.write(RolloutBuffer(cycle, indices, {"plans": plans}, dict(prefer_left([], plans))))
    return KeptRollOuts.read(folder)


@pytest.fixture(scope="module")
def roll_outs(tmp_path_factory: pytest.TempPathFactory) -> KeptRollOuts:
    return kept(tmp_path_factory.mktemp("roll_outs") / KEPT_ROLL_OUTS)


def make_stage(roll_outs: KeptRollOuts, **changes: Any) -> SelectorStage:
    policy, _ = make_policy()
    source = ScenesInMemory(SCENES, policy.encoder.sensors)
    pool = PlanPool.of([roll_outs], source.tokens, HELD_OUT)
    torch.manual_seed(1)
    outputs = [Output.of(name, pool.learned_scores[:, i]) for i, name in enumerate(pool.names)]
    config = SelectorConfig(width=16, heads=2, layers=1, dropout=0.0)
    selector = Selector(config, RULE, outputs, roll_outs.maker, policy.head.context_width)
    training = replace(TRAINING, **changes)
    return SelectorStage(selector, policy, source, pool, training, Accelerator(cpu=True), 7, describe)


def test_it_learns_which_of_several_plans_is_best(roll_outs: KeptRollOuts, tmp_path: Path) -> None:
    """Of scenes that it has not learned from: the leftmost plan scores best."""
    stage = make_stage(roll_outs, epochs=30)
    before = stage.evaluate(0)
    train(stage, replace(LOOP, steps=stage.steps, lr=1e-2, save_every=1000), tmp_path, stage.accelerator)
    after = stage.evaluate(stage.steps)
    assert before["heldout/oracle"] == after["heldout/oracle"] > after["heldout/one"] == before["heldout/one"]
    assert after["heldout/share"] > 0.9 and after["heldout/score_correlation"] > 0.9


def test_a_run_that_is_stopped_twice_ends_bit_for_bit_as_in_one_go(roll_outs: KeptRollOuts, tmp_path: Path) -> None:
    ends = []
    for name, stops in (("straight", [0]), ("broken", [2, 5, 0])):
        for stop in stops:
            stage = make_stage(roll_outs)
            config = replace(LOOP, steps=stage.steps, stop_after_step=stop)
            with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
                ends.append(train(stage, config, tmp_path / name, stage.accelerator))
    assert_same_files(*ends)
    assert (ends[0] / "selector" / "selector.safetensors").is_file()


def test_without_roll_outs_to_learn_from_or_with_a_batch_that_cannot_be_shared_nothing_begins(tmp_path: Path) -> None:
    few = kept(tmp_path / KEPT_ROLL_OUTS, cycles=1, scenes=2)
    with pytest.raises(ConfigError, match="leave 0 scenes to learn from and 1 held out"):
        stage_on(few, held_out=(0, 1))


def stage_on(roll_outs: KeptRollOuts, held_out: tuple[int, ...]) -> SelectorStage:
    policy, _ = make_policy()
    source = ScenesInMemory(SCENES, policy.encoder.sensors)
    pool = PlanPool.of([roll_outs], source.tokens, held_out)
    selector = Selector(SelectorConfig(width=16, heads=2), RULE, [Output("score", "share")], {}, 12)
    return SelectorStage(selector, policy, source, pool, TRAINING, Accelerator(cpu=True), 7, describe)


def test_the_loss_is_the_mean_error_of_all_scores(roll_outs: KeptRollOuts) -> None:
    """A selector that has learned nothing says one half: ln 2 of a share."""
    stage = make_stage(roll_outs)
    batch = next(stage.batches(0, lambda step, values: None, nullcontext))
    loss, info = stage.module(batch)
    assert float(loss) == pytest.approx(0.6931472, rel=1e-5) == float(info["selector/score"])


def test_nothing_of_held_out_scenes_is_drawn(roll_outs: KeptRollOuts) -> None:
    stage = make_stage(roll_outs, epochs=1)
    assert not set(stage.scenes.tolist()) & set(HELD_OUT)
    assert {row for group in stage.pool.held_out for row in group.scenes.tolist()} == set(HELD_OUT)
    learned = stage.pool.learned_scores
    total = sum(len(buffer.scores["score"].flatten()) for buffer in roll_outs.cycles())
    assert len(learned) + sum(group.scores.numel() for group in stage.pool.held_out) == total


def test_plans_of_one_group_are_drawn_with_their_scores_each_once_while_there_are_enough(
    roll_outs: KeptRollOuts,
) -> None:
    pool = PlanPool.of([roll_outs], ScenesInMemory(SCENES, make_policy()[0].encoder.sensors).tokens)
    rows = pool.rows
    plans, scores = pool.draw(rows, 8, RandomRows.of(rows.tolist(), 3))
    torch.testing.assert_close(scores[..., 0], prefer_left([], plans)["score"].float())
    assert all(len(group.flatten(1).unique(dim=0)) == 8 for group in plans)
    again, _ = pool.draw(rows[2:4], 8, RandomRows.of(rows[2:4].tolist(), 3))
    assert torch.equal(again, plans[2:4])
    many, _ = pool.draw(rows, 40, RandomRows.of(rows.tolist(), 3))
    assert all(len(group.flatten(1).unique(dim=0)) == 8 for group in many)
    groups = {tuple(plans.flatten().tolist()) for buffer in roll_outs.cycles() for plans in sorted_(buffer)}
    assert all(tuple(group.flatten(1).unique(dim=0).flatten().tolist()) in groups for group in plans)


def sorted_(buffer: RolloutBuffer) -> list[Tensor]:
    """The groups of a cycle, the plans of each in an order that does not depend on its own."""
    return [group.flatten(1).unique(dim=0) for group in buffer.roll_outs["plans"]]


def test_roll_outs_of_other_scenes_encoders_and_metrics_are_refused(roll_outs: KeptRollOuts, tmp_path: Path) -> None:
    policy, _ = make_policy()
    roll_outs.refuse_other_encoder(policy, "here")
    with torch.no_grad():
        next(policy.encoder.parameters()).add_(0.1)
    with pytest.raises(
        ValueError, match=r"the roll-outs of here were made with another encoder \(other encoder weights"
    ):
        roll_outs.refuse_other_encoder(policy, "here")
    with pytest.raises(ValueError, match="are of 12 scenes that --split x does not hold, first scene0000"):
        roll_outs.require_scenes(["other"], "here", "--split x")
    other = kept(tmp_path / KEPT_ROLL_OUTS, cycles=1, rule=ScoringRule({"metric": "right"}, ()))
    with pytest.raises(ConfigError, match="the roll-outs of b were scored by another metric than those of a"):
        same_rule({"a": roll_outs, "b": other})
