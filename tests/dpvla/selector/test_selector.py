"""A selector: what its outputs mean, which plan it takes, its files, and whom it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpvla import files
from dpvla.manifest import renew_manifests
from dpvla.models import SceneContext
from dpvla.rl.token_files import Maker
from dpvla.selector.config import SelectorConfig
from dpvla.selector.held_out import auc, quality
from dpvla.selector.selector import Output, Selector, SelectorError, find_selector, selector_hash
from dpvla.sub_scores import ScoringRule, SubScore
from tests.dpvla.selector.test_network import context, some_plans
from tests.gpu.tiny_driving import make_policy

RULE = ScoringRule({"metric": "toy", "limit": 3}, (SubScore("safe", multiplies=True), SubScore("far", weight=5.0)))
OUTPUTS = (Output("safe", "share"), Output("far", "value", 20.0, 5.0), Output("score", "value", 10.0, 4.0))
MAKER = {"encoder": {}, "architecture": "a", "weights": "w", "precision": "no"}


def selector(maker: Mapping[str, Any] = MAKER) -> Selector:
    torch.manual_seed(0)
    made = Selector(SelectorConfig(width=16, heads=2, layers=1), RULE, OUTPUTS, maker, 12)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


class Scripted(Selector):
    """Predicts what a test says."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__(SelectorConfig(width=16, heads=2, layers=1), ScoringRule({}, ()), [Output("score", "value")],
                         MAKER, 12)  # fmt: skip
        self.score = score

    def forward(self, context: SceneContext, plans: Tensor) -> Tensor:
        return self.score(plans)[..., None]


def test_what_outputs_mean_is_as_by_hand() -> None:
    raw = torch.tensor([[[0.0, 1.0, -1.0]]])
    found = selector().predicted(raw)
    assert found["safe"].item() == pytest.approx(0.5) and found["far"].item() == pytest.approx(25.0)
    assert found["score"].item() == pytest.approx((6.0 + 0.5 * 25.0) / 2)


def test_errors_of_outputs_are_as_by_hand() -> None:
    share, value = Output("a", "share"), Output("b", "value", 20.0, 5.0)
    assert share.error(torch.tensor(0.0), torch.tensor(0.3)).item() == pytest.approx(0.693147, rel=1e-5)
    assert value.error(torch.tensor(0.5), torch.tensor(25.0)).item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.0, 0.5, 1.0], "share"), ([0.0, 1.2], "value"), ([-0.1, 0.3], "value"), ([3.0, 3.0], "value")],
)
def test_scores_from_0_to_1_are_shares_and_others_values(values: list[float], kind: str) -> None:
    output = Output.of("x", torch.tensor(values))
    assert output.kind == kind and output.std > 0


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, float("nan"), float("inf")]), min_size=2, max_size=6))
def test_the_first_of_the_best_finite_plans_is_chosen(ends: list[float]) -> None:
    """The predicted score is the end of a plan; a plan that is not finite is never taken where another is."""
    plans = torch.zeros(1, len(ends), 8, 3)
    plans[0, :, -1, 0] = torch.tensor(ends)
    chosen = int(Scripted(lambda seen: seen[:, :, -1, 0]).choose(context(1), plans))
    finite = [end for end in ends if end in (0.0, 1.0)]
    assert chosen == (ends.index(max(finite)) if finite else 0)


def test_predictions_that_are_not_numbers_are_the_last_to_be_taken() -> None:
    scores = torch.tensor([[torch.nan, 0.2, torch.inf, 0.3]])
    assert int(Scripted(lambda plans: scores).choose(context(1), some_plans(1, 4))) == 3


def test_what_is_saved_is_read_back_and_chooses_the_same(tmp_path: Path) -> None:
    made = selector()
    made.save_pretrained(tmp_path / "selector")
    read = Selector.from_pretrained(tmp_path / "selector")
    scenes, plans = context(3), some_plans(3, 4)
    assert torch.equal(made(scenes, plans), read(scenes, plans)) and not read.training
    assert (read.rule, read.outputs, read.maker, read.config) == (made.rule, made.outputs, made.maker, made.config)
    made.save_pretrained(tmp_path / "again")
    assert selector_hash(tmp_path / "selector") == selector_hash(tmp_path / "again")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("weights", "selector.safetensors is damaged"),
        ("config", "config.json is damaged"),
        ("other size", "does not fit this model: 1 of another shape"),
        ("format", "format 9, this code reads 1"),
        ("output", "outputs are not the sub-scores"),
        ("missing", "config.json is missing"),
        ("huge", "more than any has"),
    ],
)
def test_a_folder_that_is_no_selector_is_refused_with_what_is_wrong(tmp_path: Path, fault: str, says: str) -> None:
    selector().save_pretrained(tmp_path)
    (path, weights) = tmp_path / "config.json", tmp_path / "selector.safetensors"
    content = files.read_json(path)
    if fault == "weights":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    elif fault == "missing":
        path.unlink()
    elif fault == "config":
        files.write_json(path, content | {"dpvla_version": "other"})
    else:
        changed = {
            "format": {"format": 9},
            "output": {"outputs": content["outputs"][1:]},
            "other size": {"context_width": 13},
            "huge": {"selector": {"width": 16384, "heads": 1, "layers": 64, "mlp_ratio": 64}},
        }[fault]
        files.write_json(path, content | changed)
        renew_manifests(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        Selector.from_pretrained(tmp_path)


def test_only_the_encoder_that_it_reads_is_taken() -> None:
    policy, _ = make_policy()
    own = selector(Maker.of(policy).as_dict())
    own.refuse_other_encoder(policy, "here")
    with torch.no_grad():
        next(policy.encoder.parameters()).add_(0.1)
    with pytest.raises(SelectorError, match=r"here reads the tokens of another encoder \(other encoder weights\)"):
        own.refuse_other_encoder(policy, "here")


def test_a_selector_is_found_in_itself_in_a_checkpoint_and_in_a_run(tmp_path: Path) -> None:
    for step in (1, 12):
        selector().save_pretrained(tmp_path / "checkpoints" / f"step_{step:08d}" / "selector")
    newest = tmp_path / "checkpoints" / "step_00000012"
    assert find_selector(tmp_path) == find_selector(newest) == find_selector(newest / "selector") == newest / "selector"
    with pytest.raises(SelectorError, match="no selector at"):
        find_selector(tmp_path / "checkpoints")


def test_a_rule_makes_the_total_of_its_metric() -> None:
    values = {"safe": torch.tensor([1.0, 0.0]), "far": torch.tensor([0.5, 0.5])}
    assert RULE.total(values).tolist() == [0.5, 0.0]
    assert ScoringRule.of(RULE.as_dict()) == RULE  # type: ignore[arg-type]


def test_what_choosing_is_worth_is_as_by_hand() -> None:
    """One scene of three plans and one of two: the choice gets the best of the first and the worse of the second."""
    true = [torch.tensor([[[0.0], [0.3], [0.9]]]), torch.tensor([[[1.0], [0.5]]])]
    guessed = [{"score": torch.tensor([[0.1, 0.2, 0.3]])}, {"score": torch.tensor([[0.0, 1.0]])}]
    found = quality(guessed, true, ["score"])
    assert found["one"] == pytest.approx((0.4 + 0.75) / 2) and found["oracle"] == pytest.approx(0.95)
    assert found["selected"] == pytest.approx(0.7) and found["share"] == pytest.approx((0.7 - 0.575) / (0.95 - 0.575))
    assert "score_correlation" in found


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12))
def test_auc_counts_pairs_and_ties_half(pairs: list[tuple[int, bool]]) -> None:
    guesses, full = torch.tensor([float(g) for g, _ in pairs]), torch.tensor([f for _, f in pairs])
    wins = [float(a > b) + 0.5 * float(a == b) for a in guesses[full] for b in guesses[~full]]
    found = auc(guesses.double(), full)
    assert (found is None) == (not wins)
    assert found is None or found == pytest.approx(sum(wins) / len(wins))


def test_a_config_whose_heads_do_not_divide_the_width_is_refused() -> None:
    with pytest.raises(ValueError, match="not divisible by heads"):
        replace(SelectorConfig(), width=100, heads=3)
