"""Native metric scenes must give the scores that the official devkit gave for the same logs and maps."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from navsim_bridge.agents import find_agent
from navsim_bridge.metric_cache import build_scenes
from navsim_bridge.pdm import SUB_SCORES
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import score_plans
from navsim_bridge.splits.scenes import SceneRecord
from tests.navsim_bridge.conftest import FIXTURE, World


@pytest.fixture(scope="module")
def scenes(world: World) -> list[MetricScene]:
    return list(build_scenes(world.records, world.root, world.maps))


@pytest.fixture(scope="module")
def references() -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]]:
    """Reference plan and centerline of the official metric cache, by token."""
    with np.load(FIXTURE / "official_references.npz") as file:
        lines = np.split(file["centerlines"], np.cumsum(file["centerline_counts"])[:-1])
        return dict(zip(file["tokens"].tolist(), zip(file["states"], file["times_us"], lines)))


def official(agent: str, records: list[SceneRecord]) -> dict[str, NDArray[np.float64]]:
    with open(FIXTURE / f"{agent}.csv") as file:
        rows = {row["token"]: row for row in csv.DictReader(file)}
    return {name: np.array([float(rows[r.token][name]) for r in records]) for name in SUB_SCORES}


def ours(agent: str, records: list[SceneRecord], scenes: list[MetricScene]) -> dict[str, NDArray[np.float64]]:
    plans = torch.from_numpy(np.asarray(find_agent(agent)(records), dtype=np.float64))
    scores = score_plans(SceneBatch.from_scenes(scenes), plans[:, None])
    return {name: getattr(scores, name)[:, 0].numpy() for name in SUB_SCORES}


@pytest.mark.parametrize("agent", ["human", "constant_velocity"])
def test_scores_equal_the_devkits_on_every_scene(agent: str, world: World, scenes: list[MetricScene]) -> None:
    found, expected = ours(agent, world.records, scenes), official(agent, world.records)
    for name in SUB_SCORES:
        tolerance = 1e-6 if name in ("ego_progress", "score") else 0.0
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_reference_plans_and_centerlines_equal_the_devkits(
    scenes: list[MetricScene], references: dict[str, tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]]
) -> None:
    for scene in scenes:
        states, times, line = references[scene.token]
        np.testing.assert_allclose(scene.reference_states, states, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(scene.reference_times_us, times)
        np.testing.assert_allclose(scene.centerline, line, rtol=0, atol=1e-9)
        assert scene.provenance == {
            "reference": "PDM-Closed (navsim 1.1)",
            "centerline": "lanes of the corrected route to its end",
        }
