"""PDM and EPDMS scores on a GPU: CUDA's device rules, the CPU's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from navsim_bridge.golden.v1 import GoldenScene, read_golden
from navsim_bridge.golden.v2 import GoldenEPDMS, read_golden_epdms
from navsim_bridge.metric_cache.official import OfficialCache
from navsim_bridge.metrics import reward
from navsim_bridge.metrics.config import EPDMSConfig
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.pdm import (
    EPDMSBatch,
    SceneBatch,
    constants,
    epdms_scores,
    epdms_terms,
    score_plans,
    two_frame_extended_comfort,
)
from navsim_bridge.pdm.compiled import choice
from tests.gpu.pretended import PretendedGPU, value
from tests.navsim_bridge.conftest import two_stages
from tests.navsim_bridge.two_stage_results import plans
from tests.navsim_bridge.two_stage_world import TwoStageWorld
from tests.paths import FIXTURES

__all__ = ["two_stages"]

V1 = ("public_008_straight", "public_021_carpark", "public_076_intersection")
V2 = ("public_076_intersection", "public_101_carpark")  # the first has red lights
CANDIDATES = 3


@pytest.fixture(autouse=True)
def _filters() -> Iterator[None]:
    """Constants are kept for each device; those of a pretended one must not outlive it."""
    with choice.using("torch"):
        yield
    constants.forget()


@pytest.fixture(scope="module")
def golden() -> list[GoldenScene]:
    return [read_golden(FIXTURES / "golden_v1" / f"{name}.npz") for name in V1]


@pytest.fixture(scope="module")
def golden_v2() -> list[GoldenEPDMS]:
    return [read_golden_epdms(FIXTURES / "golden_v2" / f"{name}.npz") for name in V2]


def plans_of(files: list) -> torch.Tensor:
    return torch.from_numpy(np.stack([file.proposals[:CANDIDATES] for file in files]))


def assert_equal(found: object, expected: object) -> None:
    for field in dataclasses.fields(expected):  # type: ignore[arg-type]
        one, two = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(two, torch.Tensor):
            torch.testing.assert_close(value(one), two, rtol=0, atol=0, equal_nan=True, msg=field.name)


@pytest.mark.parametrize("normalize", ["pair", "pool"])
def test_pdm_scores_on_a_gpu_equal_those_on_the_cpu(golden: list[GoldenScene], normalize: str) -> None:
    batch, plans = SceneBatch.from_scenes([file.scene for file in golden]), plans_of(golden)
    expected = score_plans(batch, plans, normalize=normalize)  # type: ignore[arg-type]
    gpu = PretendedGPU()
    with gpu():
        moved = batch.to(gpu.device)
        scores = score_plans(moved, plans, normalize=normalize)  # type: ignore[arg-type]
        assert scores.score.device == gpu.device
    assert_equal(scores, expected)


def test_plans_of_another_sampling_on_a_gpu_score_as_on_the_cpu(golden_v2: list[GoldenEPDMS]) -> None:
    """In EPDMS, where the recorded driver's plan keeps its own."""
    batch, plans = EPDMSBatch.from_scenes([golden_v2[0].scene]), plans_of(golden_v2[:1])[:, :, :5]
    expected = epdms_terms(batch, plans, interval=0.25)
    gpu = PretendedGPU()
    with gpu():
        terms = epdms_terms(batch.to(gpu.device), plans, interval=0.25)
        assert terms.values.device == gpu.device
    assert_equal(terms, expected)


def test_the_number_of_times_scoring_waits_does_not_grow_with_the_plans(golden: list[GoldenScene]) -> None:
    """Places where a GPU is waited for (which objects and edges are near) are passed once a call."""
    batch, plans = SceneBatch.from_scenes([golden[0].scene]), plans_of(golden[:1])
    waits = []
    for count in (1, CANDIDATES):
        constants.forget()
        gpu = PretendedGPU()
        with gpu():
            moved, some = batch.to(gpu.device), plans[:, :count].to(gpu.device)
            gpu.forget()
            score_plans(moved, some)
            waits.append((sum(gpu.syncs.values()), gpu.copies_in))
    assert waits[0] == waits[1]


def test_epdms_on_a_gpu_equals_that_on_the_cpu(golden_v2: list[GoldenEPDMS]) -> None:
    batch, plans = EPDMSBatch.from_scenes([file.scene for file in golden_v2]), plans_of(golden_v2)
    seconds = torch.tensor([0.5, torch.nan], dtype=torch.float64)
    expected = epdms_terms(batch, plans)
    change = two_frame_extended_comfort(expected.motion, expected.motion.roll(1, 1), seconds)
    total = epdms_scores(expected, "fixed", change)
    gpu = PretendedGPU()
    with gpu():
        terms = epdms_terms(batch.to(gpu.device), plans)
        assert terms.values.device == gpu.device
        change = two_frame_extended_comfort(terms.motion, terms.motion.roll(1, 1), seconds.to(gpu.device))
        scores = epdms_scores(terms, "fixed", change)
    assert_equal(terms, expected)
    assert_equal(scores, total)


def test_epdms_in_traffic_that_reacts_on_a_gpu_equals_that_on_the_cpu(two_stages: TwoStageWorld) -> None:
    """A recorded scene and a synthetic one; vehicles are moved on the CPU."""
    cache = OfficialCache(two_stages.official_cache)
    scenes = [cache.read(token, two_stages.maps) for token in ("30ee9b806e291aa2", "00f32ab94de711d90")]
    given = plans()
    metric, batch = EPDMS(EPDMSConfig(traffic="idm")), EPDMSBatch.from_scenes(scenes)
    one = torch.from_numpy(np.stack([given[token][None] for token in batch.tokens])).double()
    expected = metric.judge(batch, one)
    assert expected.human[0].isfinite().all() and expected.human[1].isnan().all()
    gpu = PretendedGPU()
    with gpu():
        terms = metric.judge(batch.to(gpu.device), one)
        assert terms.values.device == gpu.device
    assert_equal(terms, expected)


@pytest.mark.parametrize("metric", [PDMS(), EPDMS()], ids=["pdms", "epdms"])
def test_an_evaluation_scores_and_explains_on_a_gpu(
    metric: Any, golden: list[GoldenScene], golden_v2: list[GoldenEPDMS]
) -> None:
    files: list[Any] = golden if isinstance(metric, PDMS) else golden_v2
    packed, plans = metric.pack([file.scene for file in files]), plans_of(files)[:, 1:2]
    expected = metric.judge(packed, plans)
    gpu = PretendedGPU()
    with gpu():
        on_device = packed.to(gpu.device)
        terms = metric.judge(on_device, plans)
        values, reasons = metric.values(terms), metric.explain(on_device, plans.to(gpu.device), terms)
    for name, score in metric.values(expected).items():
        np.testing.assert_array_equal(value(values[name]), score, err_msg=name)
    assert reasons == metric.explain(packed, plans, expected)


class Scenes:
    """As much of a metric cache as the reward asks for."""

    def __init__(self, files: list[GoldenScene]) -> None:
        self._scenes = {file.scene.token: file.scene for file in files}
        self.tokens = tuple(self._scenes)

    def load(self, tokens: Sequence[str]) -> list[Any]:
        return [self._scenes[token] for token in tokens]

    def require(self, tokens: Sequence[str]) -> None: ...


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_the_reward_scores_on_a_gpu(golden: list[GoldenScene], keep_bytes: int) -> None:
    cache, plans = Scenes(golden), plans_of(golden[:2])
    expected = reward.MetricReward(PDMS(), cache, keep_bytes=keep_bytes)(cache.tokens[:2], plans)
    gpu = PretendedGPU()
    with gpu():
        scores = reward.MetricReward(PDMS(), cache, gpu.device, keep_bytes=keep_bytes)(cache.tokens[:2], plans)
        assert all(score.device == gpu.device for score in scores.values())
    for name, score in expected.items():
        assert torch.equal(value(scores[name]), score), name
