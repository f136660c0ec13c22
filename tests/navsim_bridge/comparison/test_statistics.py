"""Intervals over logs: what they cover, and what pairing buys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_bridge.comparison.statistics import over_logs, spread

finite = st.floats(-100, 100, allow_nan=False)


@given(st.lists(st.tuples(finite, st.sampled_from("abcdef")), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_interval_is_of_what_logs_can_give_whatever_they_are_called(
    scenes: list[tuple[float, str]],
) -> None:
    values, logs = np.array([value for value, _ in scenes]), [log for _, log in scenes]
    found = over_logs(values, logs, 200)
    of_logs = [values[[log == name for log in logs]].mean() for name in set(logs)]
    assert min(of_logs) - 1e-9 <= found.low <= found.high <= max(of_logs) + 1e-9
    assert found.mean == pytest.approx(values.mean())
    renamed = over_logs(values, [f"log {log}" for log in logs], 200)
    assert (renamed.low, renamed.high) == (found.low, found.high)


def drawn(random: np.random.Generator, logs: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores of two methods: logs differ much, scenes less; the second is better by 1 everywhere but for noise."""
    sizes = random.integers(3, 15, logs)
    names = [str(log) for log, size in enumerate(sizes) for _ in range(size)]
    of_log = np.repeat(random.normal(70, 20, logs), sizes)
    one = of_log + random.normal(0, 5, len(names))
    return one, one + 1 + np.repeat(random.normal(0, 1, logs), sizes) + random.normal(0, 1, len(names)), names


def test_nineteen_in_twenty_intervals_hold_the_truth_and_those_over_scenes_far_fewer() -> None:
    random, trials = np.random.default_rng(0), 200
    over, naive = 0, 0
    for _ in range(trials):
        one, _, logs = drawn(random, 60)
        found = over_logs(one, logs, 300)
        over += found.low <= 70 <= found.high
        alone = over_logs(one, [str(i) for i in range(len(one))], 100)
        naive += alone.low <= 70 <= alone.high
    assert 0.9 <= over / trials <= 0.98
    assert naive / trials < 0.75


def test_a_paired_difference_is_seen_where_two_intervals_overlap() -> None:
    random, trials = np.random.default_rng(1), 200
    held = 0
    for trial in range(trials):
        one, two, logs = drawn(random, 60)
        difference = over_logs(two - one, logs, 400)
        held += difference.low <= 1 <= difference.high
        if trial < 20:
            assert difference.low > 0
            assert over_logs(one, logs, 400).high > over_logs(two, logs, 400).low
    assert 0.9 <= held / trials <= 0.98


def test_what_is_equal_differs_by_exactly_nothing() -> None:
    difference = over_logs(np.zeros(7), list("aabbccc"), 100)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_the_same_numbers_give_the_same_interval() -> None:
    one, _, logs = drawn(np.random.default_rng(2), 20)
    assert over_logs(one, logs, 300) == over_logs(one, logs, 300)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0]])
def test_scenes_without_a_score_have_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="a finite value"):
        over_logs(np.array(values), ["a"] * min(2, len(values) * 2), 10)


def test_a_single_seed_has_no_spread() -> None:
    assert spread([3.0]) is None
    assert spread([1.0, 3.0]) == pytest.approx(np.sqrt(2))
