"""Several workers that share the scenes plan and score as one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dpvla.parallel import Processes, ProcessesConfig
from dpvla.parallel.ray_cluster import RayCluster, RayConfig
from dpvla.parallel.registry import EXECUTORS
from navsim_bridge.agents import crew
from navsim_bridge.agents.agent import Proposer
from navsim_bridge.agents.crew import Crew, plan_together
from navsim_bridge.agents.options import OpenAgent, SharedAgentOptions
from navsim_bridge.evaluation import run as evaluation
from navsim_bridge.evaluation.metric_scenes import scenes_from_cache
from navsim_bridge.evaluation.run import evaluate_each, evaluate_together
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache
from tests.navsim_bridge.conftest import World
from tests.paths import ROOT
from tools import evaluate

TWO = Crew(Processes(ProcessesConfig(), 2), "cpu")


@pytest.fixture
def opener(checkpoint: Path) -> OpenAgent:
    return OpenAgent("dpvla", (), str(checkpoint), checkpoint, "cpu", (), 3, 2)


def test_two_processes_score_as_one(
    opener: OpenAgent, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SCENES_AT_ONCE", 2)
    cache = build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False)
    cache.load([world.records[0].token])  # files that are open stay with this process
    several = cast("Callable[[], Proposer]", dataclasses.replace(opener, omegas=(0.0, 2.0)))
    load = scenes_from_cache(cache)
    one, two = (evaluate_each(several, world.records, load, who, 2, progress=False) for who in (Crew.alone(), TWO))
    for alone, together in zip(one, two, strict=True):
        assert together.to_csv() == alone.to_csv()
        assert together.about == alone.about
        assert [part.rows for part in together.parts] == [(0, 1), (2, 3), (4, 5), (6,)]
    greedy = dataclasses.replace(opener, omegas=(2.0,))
    assert evaluate_together(greedy, world.records, load, Crew.alone(), progress=False).to_csv() == two[1].to_csv()


def test_shares_of_the_scenes_are_planned_as_the_whole(
    opener: OpenAgent, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "SCENES_AT_ONCE", 3)  # made whole batches of 2: four scenes, then three
    whole = [opener().with_seed(seed)(world.records) for seed in (0, 1)]  # type: ignore[attr-defined]
    plans = plan_together(opener, world.records, Crew.alone(), seeds=(0, 1), batch_size=2, progress=False)
    for mine, theirs in zip(plans, whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_cache_that_was_made_anew_is_not_taken_for_the_same(world: World, tmp_path: Path) -> None:
    cache = build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False)
    function, (path, size, fingerprint) = cache.__reduce__()
    assert isinstance(function(path, size, fingerprint), MetricCache)
    with pytest.raises(CacheError, match="has changed since this was started; start again"):
        function(path, size, "another")


def test_the_executor_to_copy_scores_as_processes_do(world: World, tmp_path: Path) -> None:
    common = ["--agent", "human", "--split", str(world.split_file), "--data-root", str(world.root), "--maps-root",
              str(world.maps)]  # fmt: skip
    example = ["--plugin", str(ROOT / "examples/executor.py"), "--executor", "threads", "--executor.per-core", "2"]
    try:
        evaluate.main([*common, *example, "--out", str(tmp_path / "threads")])
    finally:
        EXECUTORS.pop("threads", None)
    evaluate.main([*common, "--out", str(tmp_path / "one")])
    assert (tmp_path / "threads/scores.csv").read_bytes() == (tmp_path / "one/scores.csv").read_bytes()


def options(**given: Any) -> SharedAgentOptions:
    return SharedAgentOptions(agent="stand_still", **given)


def test_a_crew_is_one_process_unless_it_is_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(device="cpu").crew().is_alone and options(device="cpu", workers=1).crew().is_alone
    monkeypatch.setattr(Processes, "num_gpus", 2)
    for workers in (0, 2):
        assert options(workers=workers).crew().gpu_each
        assert not options(workers=workers, device="cpu").crew().gpu_each
    monkeypatch.setattr(RayCluster, "num_gpus", 8)  # though there is none where it is started
    shared = options(executor=RayConfig()).crew()
    assert shared.device == "cuda" and shared.gpu_each and shared.executor.workers == 0


def test_what_a_crew_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="--device cuda:1 is one GPU, where each worker has its own: give --device cuda"
    ):
        options(device="cuda:1", workers=2).crew()
    with pytest.raises(ValueError, match="--device cuda: there is no GPU"):
        options(device="cuda", workers=2).crew()
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        options(device="gpu", workers=2).crew()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start this without a launcher; --workers N shares the scenes"):
        options().crew()
