"""Native metric scenes must give the scores that the official devkit gave for the same logs and maps."""

import csv
import dataclasses

import numpy as np
import pytest
import torch

from navsim_bridge.agents import BASELINES
from navsim_bridge.metric_cache import build_scenes
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import score_plans
from navsim_bridge.reward import SUB_SCORES
from tests.navsim_bridge.conftest import FIXTURE

PROGRESS = ("ego_progress", "score")  # these depend on the reference plan


@pytest.fixture(scope="module")
def scenes(world):
    return list(build_scenes(world.records, world.root, world.maps))


@pytest.fixture(scope="module")
def scenes_with_official_reference(scenes):
    """The same scenes with the reference plan and centreline of the official metric cache."""
    with np.load(FIXTURE / "official_references.npz") as file:
        lines = np.split(file["centerlines"], np.cumsum(file["centerline_counts"])[:-1])
        official = dict(zip(file["tokens"].tolist(), zip(file["states"], file["times_us"], lines)))
    return [
        dataclasses.replace(s, reference_states=states, reference_times_us=times, centerline=line)
        for s, (states, times, line) in ((s, official[s.token]) for s in scenes)
    ]


def official(agent, records):
    with open(FIXTURE / f"{agent}.csv") as file:
        rows = {row["token"]: row for row in csv.DictReader(file)}
    return {name: np.array([float(rows[r.token][name]) for r in records]) for name in SUB_SCORES}


def ours(agent, records, scenes):
    plans = torch.from_numpy(np.asarray(BASELINES[agent](records), dtype=np.float64))
    scores = score_plans(SceneBatch.from_scenes(scenes), plans[:, None])
    return {name: getattr(scores, name)[:, 0].numpy() for name in SUB_SCORES}


@pytest.mark.parametrize("agent", ["human", "constant_velocity"])
def test_sub_scores_equal_the_devkits_on_every_scene(agent, world, scenes):
    found, expected = ours(agent, world.records, scenes), official(agent, world.records)
    for name in set(SUB_SCORES) - set(PROGRESS):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("agent", ["human", "constant_velocity"])
def test_scores_equal_the_devkits_given_its_reference_plan(agent, world, scenes_with_official_reference):
    found, expected = ours(agent, world.records, scenes_with_official_reference), official(agent, world.records)
    for name in SUB_SCORES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6, err_msg=name)


def test_the_recorded_driver_is_its_own_reference(world, scenes):
    found = ours("human", world.records, scenes)
    passed = found["no_at_fault_collisions"] * found["drivable_area_compliance"] == 1
    assert passed.any()
    np.testing.assert_allclose(found["ego_progress"][passed], 1.0)
    assert all(s.provenance["reference"] == "recorded driver" for s in scenes)


def test_the_centreline_runs_along_the_recorded_path_and_beyond(world, scenes):
    for record, scene in zip(world.records, scenes):
        assert scene.provenance["centerline"] == "on-route lanes nearest to the recorded path"
        line = scene.centerline[:, :2]
        future = record.poses[record.now :, :2]
        away = np.linalg.norm(future[:, None] - line[None], axis=-1).min(axis=1)
        assert away.max() < 3.0
        steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
        assert steps.sum() > 100.0
        assert steps.min() > 0.0
