"""Plans of any number of poses and any interval, equal to the official scorer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.golden.v1 import GoldenScene, read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.pdm import SUB_SCORES, EPDMSBatch, SceneBatch, epdms_terms, score_plans, simulate_plans
from navsim_bridge.pdm.simulate import interpolate, plan_knots, plan_times_us, query_times_us
from tests.paths import FIXTURES, GOLDEN_V2

FOLDER = FIXTURES / "other_horizons_v1"


@pytest.fixture(scope="module")
def stored() -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / "plans.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def scenes() -> dict[str, GoldenScene]:
    return {path.stem: read_golden(path) for path in sorted(FOLDER.glob("shared_*.npz"))}


def groups(stored: dict[str, NDArray[Any]], stems: list[str]) -> Iterator[tuple[float, Tensor, NDArray[Any]]]:
    """By sampling its interval, the plans (scene, candidate, pose, 3) and their official results."""
    assert stored["columns"].tolist() == list(SUB_SCORES)
    for row, (count, interval) in enumerate(stored["samplings"].tolist()):
        mine = [np.flatnonzero(stored[f"{stem}/sampling"] == row) for stem in stems]
        plans = np.stack([[stored[f"{stem}/plan{k}"] for k in ks] for stem, ks in zip(stems, mine)])
        assert plans.shape[2] == count
        yield interval, torch.from_numpy(plans), np.stack([stored[f"{s}/results"][ks] for s, ks in zip(stems, mine)])


def test_seven_columns_of_every_sampling_equal_the_official_ones(
    stored: dict[str, NDArray[Any]], scenes: dict[str, GoldenScene]
) -> None:
    batch = SceneBatch.from_scenes([golden.scene for golden in scenes.values()])
    compared = 0
    for interval, plans, official in groups(stored, list(scenes)):
        scores = score_plans(batch, plans, interval=interval)
        for column, name in enumerate(SUB_SCORES):
            tolerance = 1e-6 if name in ("ego_progress", "score") else 0.0
            ours = getattr(scores, name).numpy()
            np.testing.assert_allclose(ours, official[..., column], rtol=0, atol=tolerance, err_msg=name)
            compared += ours.size
    assert compared == 3 * 24 * 7


def test_the_metric_scores_and_explains_them(stored: dict[str, NDArray[Any]], scenes: dict[str, GoldenScene]) -> None:
    metric = PDMS()
    packed = metric.pack([golden.scene for golden in scenes.values()])
    for interval, plans, official in groups(stored, list(scenes)):
        sampled = metric.sampled_every(interval)
        terms = sampled.judge(packed, plans)
        np.testing.assert_allclose(sampled.values(terms)["score"], official[..., -1], rtol=0, atol=1e-6)
        reasons = np.array([[bool(text) for text in row] for row in sampled.explain(packed, plans.double(), terms)])
        np.testing.assert_array_equal(reasons, (official[..., :6] < 1 - 1e-6).any(-1))
    assert metric.interval is None


def track_by_hand(pose: NDArray[Any], time_us: int, plan: NDArray[Any], interval: float) -> NDArray[Any]:
    """Poses (41, 3) of one plan as the devkit makes them: in numpy, one by one."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    knots = [pose] + [
        np.array([pose[0] + cos * x - sin * y, pose[1] + sin * x + cos * y, pose[2] + turn]) for x, y, turn in plan
    ]
    steps = np.arange(0.0, len(plan) * interval, interval)[: len(plan)] + interval + time_us * 1e-6
    stamps = np.array([time_us] + [int(seconds * 1e6) for seconds in steps])
    queries = np.clip([int(s * 1e6) for s in np.arange(0, 4.1, 0.1)[:41] + time_us * 1e-6], stamps[0], stamps[-1])
    columns = np.array(knots)
    wrapped = np.mod(columns[:, 2] + np.pi, 2 * np.pi) - np.pi
    seconds, at = stamps - time_us, queries - time_us
    rows = [np.interp(at, seconds, column) for column in (columns[:, 0], columns[:, 1], np.unwrap(wrapped))]
    return np.stack(rows, axis=-1)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    interval=st.sampled_from([2e-6, 0.01, 0.03, 0.1, 0.2, 0.25, 1 / 3, 0.5, 1.0, 4.0, 7.0, 1e6]) | st.floats(1e-5, 5.0),
    time_us=st.integers(1_300_000_000_000_000, 1_900_000_000_000_000),
    seed=st.integers(0, 2**32 - 1),
)
def test_poses_are_those_of_the_devkit_for_any_sampling(count: int, interval: float, time_us: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = np.array([*rng.uniform(-1000, 1000, 2), rng.uniform(-3.1, 3.1)])
    plans = np.cumsum(rng.uniform(-1, 1, (2, count, 3)) * [5, 1, 1.5], axis=1)
    start, times = torch.from_numpy(pose)[None], torch.tensor([time_us])
    stamps = plan_times_us(times, count, interval)
    assert (stamps.diff() > 0).all()
    found = interpolate(
        plan_knots(start, torch.from_numpy(plans)[None]), stamps, torch.tensor([count + 1]), query_times_us(times)
    )[0].numpy()
    for plan, ours in zip(plans, found):
        expected = track_by_hand(pose, time_us, plan, interval)
        turn = np.mod(ours[:, 2] - expected[:, 2] + np.pi, 2 * np.pi) - np.pi
        np.testing.assert_allclose(ours[:, :2], expected[:, :2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(turn, 0, atol=1e-6)


def test_a_plan_ends_at_its_last_pose_and_nothing_later_than_four_seconds_is_read() -> None:
    golden = [read_golden_epdms(path) for path in sorted(GOLDEN_V2.glob("*.npz"))[:3]]
    plans = torch.from_numpy(np.stack([item.proposals[:6] for item in golden]))
    stays = plans.clone()
    stays[:, :, 5:] = plans[:, :, 4:5]
    longer = torch.cat((plans, plans[:, :, -3:] + 20.0), dim=2)
    v1 = SceneBatch.from_scenes([read_golden(FIXTURES / "golden_v1" / f"{g.scene.log_name}.npz").scene for g in golden])
    v2 = EPDMSBatch.from_scenes([item.scene for item in golden])
    for short, same in ((plans[:, :, :5], stays), (longer, plans), (plans, plans)):
        assert torch.equal(simulate_plans(v1, short, 0.5), simulate_plans(v1, same))
        assert torch.equal(score_plans(v1, short, interval=0.5).score, score_plans(v1, same).score)
        here, there = epdms_terms(v2, short, interval=0.5), epdms_terms(v2, same)
        assert torch.equal(here.values, there.values)
        torch.testing.assert_close(here.human, there.human, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(here.motion, there.motion)
        sampled = EPDMS().sampled_every(0.5).judge(v2, short)
        assert torch.equal(sampled.values, there.values)


def test_the_recorded_driver_of_epdms_keeps_its_own_sampling() -> None:
    """The human filter compares with the recorded plan, whatever the sampling of the plans that it filters."""
    golden = read_golden_epdms(sorted(GOLDEN_V2.glob("*.npz"))[0])
    batch = EPDMSBatch.from_scenes([golden.scene])
    usual = epdms_terms(batch, torch.from_numpy(golden.proposals)[None])
    other = epdms_terms(batch, torch.zeros((1, 2, 40, 3)), interval=0.1)
    torch.testing.assert_close(other.human, usual.human, rtol=0, atol=0, equal_nan=True)
    assert other.values.shape == (1, 2, 8)


@pytest.mark.parametrize(
    ("shape", "interval", "message"),
    [
        ((1, 1, 0, 3), 0.5, r"at least one pose, found \(1, 1, 0, 3\)"),
        ((1, 1, 8, 2), 0.5, r"\(scene, candidate, pose, 3\)"),
        ((1, 1, 40, 3), None, "with an interval any number of poses will do"),
        ((1, 1, 8, 3), 0.0, "the interval of a plan's poses must be a number of seconds from 2e-06 on, found 0.0"),
        ((1, 1, 8, 3), -0.5, "found -0.5"),
        ((1, 1, 8, 3), math.nan, "found nan"),
        ((1, 1, 8, 3), math.inf, "found inf"),
        ((1, 1, 8, 3), "0.5", "found '0.5'"),
        ((1, 1, 8, 3), True, "found True"),
        ((1, 1, 8, 3), 1e9, "plans must end within 1e[+]09 s, found 8 poses every 1e[+]09 s"),
    ],
)
def test_bad_samplings_are_refused(
    scenes: dict[str, GoldenScene], shape: tuple[int, ...], interval: Any, message: str
) -> None:
    batch = SceneBatch.from_scenes([next(iter(scenes.values())).scene])
    with pytest.raises(ValueError, match=message):
        score_plans(batch, torch.zeros(shape), interval=interval)
    if interval is not None and shape == (1, 1, 8, 3) and interval != 1e9:
        with pytest.raises(ValueError, match=message):
            PDMS().sampled_every(interval)


def test_poses_that_are_not_finite_are_named_in_plans_of_any_sampling(scenes: dict[str, GoldenScene]) -> None:
    batch = SceneBatch.from_scenes([next(iter(scenes.values())).scene])
    plans = torch.zeros((1, 3, 40, 3))
    plans[0, 2, 33, 1] = torch.nan
    with pytest.raises(ValueError, match=f"plan of scene {batch.tokens[0]!r}, candidate 2 holds NaN"):
        score_plans(batch, plans, interval=0.1)
