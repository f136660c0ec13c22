"""How tokens of a split of two stages come to its score: the devkit's results on made-up rows, and by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navsim_bridge.golden.two_stage import PRODUCT, AggregationCase, aggregation_cases
from navsim_bridge.metrics.two_stage import TwoStageScores, aggregate, pair_comfort, tokens_of
from navsim_bridge.pdm.epdms import EXTENDED_COMFORT
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, total
from navsim_bridge.splits.two_stage import Group
from tests.paths import FIXTURES

CASES = {case.name: case for case in aggregation_cases(FIXTURES / "two_stage")}
PAIRS = tuple((f"{n}n", f"{n}p") for n in "abc")
GROUP = Group("now", "before", PAIRS)


def scored(case: AggregationCase) -> tuple[dict[str, np.ndarray], TwoStageScores]:
    """Columns with comfort and score, and what they come to."""
    comfort = pair_comfort(case.groups, case.tokens, torch.from_numpy(case.motion), case.times_us)
    values = {name: torch.from_numpy(column) for name, column in case.values.items()}
    product = values.pop(PRODUCT)
    values[EXTENDED_COMFORT] = comfort
    weighted = [dataclasses.replace(c, multiplies=False) for c in EXTENDED_PDM_SCORE if c.weight]
    values["score"] = product * total(weighted, values)
    columns = {name: column.numpy() for name, column in values.items()}
    return columns, aggregate(case.groups, case.tokens, columns, case.ends, case.starts)


@pytest.mark.parametrize("name", CASES)
def test_made_up_rows_come_to_what_the_devkit_makes_of_them(name: str) -> None:
    case = CASES[name]
    columns, found = scored(case)
    assert not found.excluded
    weights = {token: weight for group in found.weights for token, weight in group.items()}
    for row, token in enumerate(case.tokens):
        official = case.official["rows"][token]
        assert columns[EXTENDED_COMFORT][row] == official[EXTENDED_COMFORT]
        assert columns["score"][row] == pytest.approx(official["score"], abs=1e-12)
        assert weights.get(token, 1.0) == pytest.approx(official["weight"], abs=1e-12)
    for part in ("combined", "stage_one", "stage_two"):
        assert getattr(found, part) == pytest.approx(case.official[part], abs=1e-12), part


def one_group(ends: float, scores: dict[str, float]) -> TwoStageScores:
    """The group with follow-ups 0, 1 and 2 m ahead, of a plan that ends ``ends`` m ahead."""
    tokens = tokens_of(GROUP)
    place = {token: float("abc".index(token[0])) if token[0] in "abc" and len(token) == 2 else 0.0 for token in tokens}
    starts = np.array([[place[token], 0.0] for token in tokens])
    values = np.array([scores.get(token, 1.0) for token in tokens])
    return aggregate([GROUP], tokens, {"score": values}, np.tile([ends, 0.0], (len(tokens), 1)), starts)


def test_the_nearest_follow_up_counts_most_and_halves_are_multiplied_before_they_are_averaged() -> None:
    found = one_group(0.0, {"now": 0.5, "before": 0.8, "an": 0.4, "ap": 0.6})
    near, next_, far = 1.0, np.exp(-5.0), np.exp(-20.0)
    share = near / (near + next_ + far)
    now, before = share * 0.4 + (1 - share), share * 0.6 + (1 - share)
    assert found.stage_one["score"] == pytest.approx(0.65)
    assert found.stage_two["score"] == pytest.approx((now + before) / 2)
    assert found.combined["score"] == pytest.approx((0.5 * now + 0.8 * before) / 2)
    assert found.weights[0]["an"] == pytest.approx(share)


def test_follow_ups_count_the_same_when_all_are_far() -> None:
    near, far = one_group(4.0, {"cn": 0.0}), one_group(3.9, {"cn": 0.0})  # exp(-20) = 2.1e-9, exp(-18.05) = 1.4e-8
    assert near.weights[0] == pytest.approx(dict.fromkeys([token for pair in PAIRS for token in pair], 1 / 3))
    assert far.weights[0]["cn"] == pytest.approx(1.0, abs=1e-6)
    assert near.stage_two["score"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_token_without_a_score_is_named_and_takes_its_groups_out_of_the_total() -> None:
    groups = [GROUP, Group("later", "before_later", (("dn", "dp"), PAIRS[0]))]  # the first pair serves both
    tokens = [token for token in dict.fromkeys(t for group in groups for t in tokens_of(group)) if token != "bn"]
    values = np.where(np.array(tokens) == "later", 0.5, 1.0)
    nowhere = np.zeros((len(tokens), 2))
    found = aggregate(groups, tokens, {"score": values}, nowhere, nowhere)
    assert found.excluded == {0: ("bn",)} and found.lacking == {"bn": 1}
    assert found.combined["score"] == 0.75

    values[tokens.index("an")] = np.nan
    found = aggregate(groups, tokens, {"score": values}, nowhere, nowhere)
    assert found.lacking == {"an": 2, "bn": 1}
    assert np.isnan(found.combined["score"]) and found.stage_one["score"] == 0.875


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0.0, 5.0))
def test_means_lie_between_the_values_and_weights_of_a_half_sum_to_one(seed: int, count: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    groups = [
        Group(f"{g}", f"{g}b", tuple((f"{g}_{p}n", f"{g}_{p}p") for p in range(rng.integers(1, 5))))
        for g in range(count)
    ]
    tokens = rng.permutation([token for group in groups for token in tokens_of(group)]).tolist()
    values = {"score": rng.random(len(tokens)), "one": np.ones(len(tokens))}
    ends, starts = (rng.normal(scale=spread, size=(len(tokens), 2)) for _ in range(2))
    found = aggregate(groups, tokens, values, ends, starts)
    for part in (found.combined, found.stage_one, found.stage_two):
        assert part["one"] == pytest.approx(1.0) and 0 <= part["score"] <= 1
    for group, weights in zip(groups, found.weights):
        for half in (0, 1):
            assert sum(weights[pair[half]] for pair in group.pairs) == pytest.approx(1.0)


def test_a_pair_that_is_too_far_apart_or_in_reverse_has_no_comfort() -> None:
    tokens, motion = ("now", "before", "an", "ap"), torch.zeros((4, 41, 3), dtype=torch.float64)
    group = Group("now", "before", PAIRS[:1])
    for apart, known in ((500_000, True), (549_000, True), (551_000, False), (20_000, False), (-500_000, False)):
        times = np.array([apart, 0, 500_000, 0]) + 1_600_000_000_000_000
        comfort = pair_comfort([group], tokens, motion, times)
        assert comfort[:2].isnan().tolist() == [not known] * 2, apart
        assert comfort[2:].tolist() == [1.0, 1.0]
