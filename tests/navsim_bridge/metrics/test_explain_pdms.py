"""Every lost point is explained, with the official scorer's times."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

from navsim_bridge.golden.v1 import GoldenScene, read_golden
from navsim_bridge.metrics.explain_pdms import Loss, explain
from navsim_bridge.pdm import SUB_SCORES, SceneBatch, score_plans, simulate_plans
from navsim_bridge.pdm.geometry import ego_points
from navsim_bridge.pdm.terms.comfort import BOUNDS
from tests.paths import GOLDEN_V1

FIXTURES = sorted(GOLDEN_V1.glob("*.npz"))


@pytest.fixture(scope="module")
def golden() -> tuple[Any, ...]:
    """Every fixture with its scores and explanations."""
    files = [read_golden(path) for path in FIXTURES]
    batch = SceneBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals for file in files]))
    scores = score_plans(batch, plans)
    return files, batch, plans, scores, explain(batch, plans, scores)


def losses(golden: tuple[Any, ...], sub_score: str) -> list[tuple[GoldenScene, int, int, Loss]]:
    """(file, scene row, candidate, loss) of every loss in a sub-score."""
    files, _, _, _, explained = golden
    return [
        (files[row], row, candidate, loss)
        for row, plans in enumerate(explained)
        for candidate, explanation in enumerate(plans)
        for loss in explanation.losses
        if loss.sub_score == sub_score
    ]


@pytest.mark.parametrize("name", SUB_SCORES[:-1])
def test_exactly_the_lost_sub_scores_are_named(golden: tuple[Any, ...], name: str) -> None:
    *_, scores, explained = golden
    lost = getattr(scores, name) < 1 - 1e-6
    named = torch.tensor([[any(loss.sub_score == name for loss in plan.losses) for plan in row] for row in explained])
    assert lost.any() and torch.equal(lost, named)
    for _, row, candidate, loss in losses(golden, name):
        assert loss.value == getattr(scores, name)[row, candidate] and loss.cause


def test_the_text_is_one_line_and_empty_when_nothing_was_lost(golden: tuple[Any, ...]) -> None:
    *_, scores, explained = golden
    texts = np.array([[plan.text for plan in row] for row in explained])
    whole = torch.stack([getattr(scores, name) for name in SUB_SCORES[:-1]]).amin(0) >= 1 - 1e-6
    assert ((texts == "") == whole.numpy()).all() and whole.any()
    assert not any("\n" in text or "edge of the rule" in text for text in texts.flat)


@pytest.mark.parametrize(
    "name, index",
    [("no_at_fault_collisions", "dbg_collision_time_idx"), ("time_to_collision_within_bound", "dbg_ttc_time_idx")],
)
def test_the_named_time_is_the_official_one_and_the_object_is_there(
    golden: tuple[Any, ...], name: str, index: str
) -> None:
    found = losses(golden, name)
    assert len(found) > 20
    for file, _, candidate, loss in found:
        if file.results["dbg_fragile"][candidate].any():
            continue
        assert loss.time is not None and loss.time == pytest.approx(0.1 * file.results[index][candidate])
        track = file.scene.track_tokens.index(loss.object_token)
        assert loss.object_type == file.scene.track_types[track]
        frame = round(10 * loss.time)
        reach = 1 if name == "no_at_fault_collisions" else 10
        rows = slice(file.scene.frame_offsets[frame], file.scene.frame_offsets[frame + reach])
        assert track in file.scene.object_track[rows]
        assert f"{loss.object_type} {loss.object_token}" in loss.cause and f"t = {loss.time:.1f} s" in loss.cause


def test_a_static_hit_before_a_worse_one_names_both(golden: tuple[Any, ...]) -> None:
    worse = [loss for *_, loss in losses(golden, "no_at_fault_collisions") if loss.cause.count("hits ") == 2]
    static = ("TRAFFIC_CONE", "BARRIER", "CZONE_SIGN", "GENERIC_OBJECT")
    assert worse and all(loss.value == 0 and loss.object_type in static for loss in worse)


def test_the_corner_off_the_road_is_where_the_text_says(golden: tuple[Any, ...]) -> None:
    _, batch, plans, scores, _ = golden
    states = simulate_plans(batch, plans)[:, 1:]
    for file, row, candidate, loss in losses(golden, "drivable_area_compliance"):
        frame = int(scores.ego_areas[row, candidate, :, 1].nonzero()[0])
        assert loss.time == pytest.approx(0.1 * frame)
        told = np.array([float(value) for value in re.findall(r"[xy] = (-?[\d.]+)", loss.cause)])
        heading = file.scene.ego_state[2]
        turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        corners = ego_points(states[row, candidate, frame])[:4].numpy() @ turn.T
        names = ("front left", "rear left", "rear right", "front right")
        first = min((loss.cause.find(name), i) for i, name in enumerate(names) if name in loss.cause)[1]
        np.testing.assert_allclose(told, corners[first], atol=0.006)
        assert loss.polygon_token is None or loss.polygon_token in file.scene.polygon_tokens


def test_the_broken_comfort_bounds_are_the_official_ones(golden: tuple[Any, ...]) -> None:
    for file, _, candidate, loss in losses(golden, "comfort"):
        official = file.results["dbg_comfort_flags"][candidate]
        for bound, kept in zip(BOUNDS, official):
            said = re.search(
                rf"(?:^| and ){re.escape(bound.quantity)} (\S+) {re.escape(bound.unit)} beyond (\S+)", loss.cause
            )
            assert (said is None) == kept
            if said:
                value, limit = map(float, said.groups())
                assert limit in (bound.low, bound.high) and abs(value) >= abs(limit) * (1 - 1e-3)


def test_progress_is_told_against_what_it_was_measured_by(golden: tuple[Any, ...]) -> None:
    _, batch, plans, scores, _ = golden
    pool = score_plans(batch, plans, normalize="pool")
    for result, explained in ((scores, golden[-1]), (pool, explain(batch, plans, pool))):
        told = 0
        for row, candidate in (result.ego_progress < 1 - 1e-6).nonzero().tolist():
            (loss,) = [each for each in explained[row][candidate].losses if each.sub_score == "ego_progress"]
            meters = re.fullmatch(r"([\d.]+) m along.*?(0\.5)?(?: for the collision)? against ([\d.]+) m", loss.cause)
            if meters is None:
                assert loss.value == 0 and "failed multiplier" in loss.cause
                continue
            done, factor, scale = (float(group or 1) for group in meters.groups())
            assert done * factor / scale == pytest.approx(loss.value, abs=0.02)
            told += 1
        assert told > 50


def test_scores_are_computed_when_not_given_and_checked_when_given(golden: tuple[Any, ...]) -> None:
    _, batch, plans, scores, explained = golden
    some = batch.select([1, 3])
    again = explain(some, plans[[1, 3]])
    assert [[plan.text for plan in row] for row in again] == [[plan.text for plan in explained[row]] for row in (1, 3)]
    with pytest.raises(ValueError, match="scores are of"):
        explain(some, plans[[1, 3]], scores)
    with pytest.raises(ValueError, match="names"):
        explain(dataclasses.replace(some, names=None), plans[[1, 3]])


def test_a_verdict_that_does_not_come_again_is_said_to_hang_on_the_edge(golden: tuple[Any, ...]) -> None:
    _, batch, plans, scores, _ = golden
    row, candidate = (scores.score > 0.9).nonzero()[0].tolist()
    lost = {
        name: torch.zeros_like(getattr(scores, name))
        for name in ("no_at_fault_collisions", "drivable_area_compliance", "time_to_collision_within_bound", "comfort")
    }
    times = {name: torch.full_like(scores.score, 7.0) for name in ("collision_time_index", "ttc_time_index")}
    text = explain(batch, plans, dataclasses.replace(scores, **lost, **times))[row][candidate].text
    assert text.count("on the very edge of the rule") == 4 and text.count("t = 0.7 s") == 2
