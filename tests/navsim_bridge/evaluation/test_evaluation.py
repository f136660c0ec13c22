from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dpvla.training.run_directory import TrainedOn
from navsim_bridge.agents import constant_velocity, stand_still
from navsim_bridge.evaluation.metric_scenes import ScenesFromLogs, scenes_from_cache
from navsim_bridge.evaluation.results import describe, saw_split, write_evaluation
from navsim_bridge.evaluation.run import SceneFailureError, evaluate
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.reward import MetricReward
from navsim_bridge.pdm import SUB_SCORES
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.scenes import SceneRecord
from tests.navsim_bridge.conftest import FIXTURE, LOG, World
from tools import evaluate as tool


@pytest.fixture(scope="module")
def cache(world: World, tmp_path_factory: pytest.TempPathFactory) -> MetricCache:
    out = tmp_path_factory.mktemp("cache")
    return build_metric_cache(world.root, world.maps, world.split, out, progress=False)


def run(*arguments: str | Path) -> None:
    tool.main([str(a) for a in arguments])


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_tool_writes_scores_as_the_devkit_does(
    world: World, cache: MetricCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = ("--data-root", world.root, "--maps-root", world.maps)
    run("--agent", "constant_velocity", "--split", "small", "--out", tmp_path / "a", *roots)
    rows = read_rows(tmp_path / "a/scores.csv")
    assert tuple(rows[0]) == ("token", "valid", *SUB_SCORES, "reason")
    assert [row["token"] for row in rows] == [*(r.token for r in world.records), "average"]
    official = {row["token"]: row for row in read_rows(FIXTURE / "constant_velocity.csv")}
    for row in rows[:-1]:
        for name in set(SUB_SCORES) - {"ego_progress", "score"}:
            assert float(row[name]) == float(official[row["token"]][name])
        lost = [name for name in set(SUB_SCORES) - {"score"} if float(row[name]) < 1 - 1e-6]
        assert bool(row["reason"]) is bool(lost)
    assert any("collision" in row["reason"] or "drivable" in row["reason"] for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert scores[-1] == pytest.approx(np.mean(scores[:-1]))
    assert {row["valid"] for row in rows} == {"True"}

    run("--agent", "constant_velocity", "--split", world.split_file, "--out", tmp_path / "b",
        "--data-root", world.root, "--metric-cache", cache.path)  # fmt: skip
    assert (tmp_path / "b/scores.csv").read_text() == (tmp_path / "a/scores.csv").read_text()
    summary = json.loads((tmp_path / "b/summary.json").read_text())
    assert summary["scenes"] == 7
    assert summary["averages"]["score"] == pytest.approx(scores[-1])
    assert summary["metric"]["reference"] == {"PDM-Closed (navsim 1.1)": 7}
    assert summary["metric_cache"]["fingerprint"] == cache.fingerprint
    assert summary["metric"]["name"] == "PDMS v1 (navsim 1.1)"
    assert summary["candidates_per_scene"] == 1
    assert {"git_commit", "blas", "packages"} <= set(summary["provenance"])
    assert summary["trained_on_evaluation_split"] is False
    assert "PDMS" in capsys.readouterr().out


def test_an_agent_that_stands_still_scores_between_nothing_and_all(world: World, cache: MetricCache) -> None:
    result = evaluate(stand_still, world.records, scenes_from_cache(cache), progress=False)
    assert 0 < result.averages["score"] < 1
    assert result.averages["no_at_fault_collisions"] == 1


def test_scores_do_not_depend_on_where_the_metric_scenes_come_from(world: World, cache: MetricCache) -> None:
    from_cache = evaluate(constant_velocity, world.records, scenes_from_cache(cache), progress=False)
    from_logs = ScenesFromLogs(world.records, world.root, world.maps)
    built = evaluate(constant_velocity, world.records, from_logs, progress=False)
    np.testing.assert_array_equal(built.values, from_cache.values)
    assert built.metric == from_cache.metric


def test_a_token_that_the_cache_lacks_is_an_error(world: World, tmp_path: Path) -> None:
    fewer = dataclasses.replace(world.split, scene_filter=SceneFilter(frame_interval=8))
    build_metric_cache(world.root, world.maps, fewer, tmp_path, progress=False)
    with pytest.raises(SystemExit, match="3 of 7 scenes are not in the metric cache"):
        run("--agent", "stand_still", "--split", world.split_file, "--out", tmp_path / "out", "--data-root", world.root,
            "--metric-cache", tmp_path)  # fmt: skip
    with pytest.raises(CacheError, match=world.records[1].token):
        MetricReward(PDMS(), MetricCache(tmp_path), tokens=[world.records[1].token])


def broken(token: str) -> Callable[..., Any]:
    def agent(records: list[SceneRecord]) -> NDArray[Any]:
        plans = constant_velocity(records)
        for plan, record in zip(plans, records):
            if record.token == token:
                plan[3, 1] = np.nan
        return plans

    return agent


def test_a_scene_that_fails_stops_the_run_with_its_token(world: World, cache: MetricCache) -> None:
    token = world.records[3].token
    with pytest.raises(SceneFailureError, match=f"scene {token} .* failed: .*NaN"):
        evaluate(broken(token), world.records, scenes_from_cache(cache), progress=False)


def test_failed_scenes_are_counted_and_never_scored_zero(world: World, cache: MetricCache, tmp_path: Path) -> None:
    token = world.records[3].token
    load = scenes_from_cache(cache)
    result = evaluate(broken(token), world.records, load, allow_failures=True, progress=False)
    whole = evaluate(constant_velocity, world.records, load, progress=False)
    others = [i for i in range(7) if i != 3]
    np.testing.assert_array_equal(result.values[others], whole.values[others])
    assert result.averages["score"] == pytest.approx(whole.values[others, -1].mean())
    summary = write_evaluation(tmp_path, result, agent="x", split=world.split, records=world.records,
                               data_root=world.root, seed=0)  # fmt: skip
    assert summary["failed"] == 1
    assert "1 of 7 scenes FAILED" in describe(summary)
    rows = read_rows(tmp_path / "scores.csv")
    assert (rows[3]["valid"], rows[3]["score"]) == ("False", "")
    assert rows[-1]["valid"] == "False"


def test_a_scene_that_cannot_be_built_fails_alone(world: World, cache: MetricCache) -> None:
    lost = dataclasses.replace(world.records[3], route=("nowhere",))
    records = [lost if r.token == lost.token else r for r in world.records]
    load = ScenesFromLogs(records, world.root, world.maps)
    with pytest.raises(SceneFailureError, match=f"scene {lost.token} .*route names roadblock nowhere"):
        evaluate(constant_velocity, records, load, progress=False)
    result = evaluate(constant_velocity, records, load, allow_failures=True, progress=False)
    assert list(result.failures) == [lost.token]
    whole = evaluate(constant_velocity, world.records, scenes_from_cache(cache), progress=False)
    np.testing.assert_array_equal(np.delete(result.values, 3, axis=0), np.delete(whole.values, 3, axis=0))


def test_an_error_of_no_single_scene_is_not_hidden(world: World, cache: MetricCache) -> None:
    def out_of_memory(records: Sequence[SceneRecord]) -> NDArray[Any]:
        if len(records) > 1:
            raise MemoryError("too many")
        return constant_velocity(records)

    with pytest.raises(MemoryError):
        evaluate(out_of_memory, world.records, scenes_from_cache(cache), allow_failures=True, progress=False)


def test_weights_that_saw_the_split_or_its_logs_are_marked(world: World) -> None:
    def stage(split: str, *logs: str) -> list[dict[str, Any]]:
        return [dataclasses.asdict(TrainedOn("dipole", split, 1, logs))]

    assert saw_split(stage("small", "other"), world.split, world.records) is True
    assert saw_split(stage("other", LOG), world.split, world.records) is True
    assert saw_split(stage("other", "other"), world.split, world.records) is False
    assert saw_split([], Split("x", "mini", SceneFilter()), world.records) is False
    assert saw_split(None, world.split, world.records) is None
    listed = Split("scores", "mini", SceneFilter(), Path("other/scores.csv"))
    assert saw_split(stage("scores", "other"), listed, world.records) is False  # other scenes, by their logs
    assert saw_split(stage("scores", LOG), listed, world.records) is True
    unknown = dataclasses.asdict(TrainedOn.unknown())
    assert saw_split([unknown, *stage("other", "other")], world.split, world.records) is None
    assert saw_split([unknown, *stage("other", LOG)], world.split, world.records) is True


def test_dpvla_needs_a_checkpoint_and_others_take_none(tmp_path: Path) -> None:
    for arguments in (["--agent", "dpvla"], ["--agent", "human", "--checkpoint", str(tmp_path)]):
        with pytest.raises(SystemExit, match=r"--checkpoint belongs to --agent dpvla|--agent dpvla needs --checkpoint"):
            run(*arguments, "--split", "small", "--out", tmp_path)


def test_rewards_take_numpy_plans_and_no_single_text_as_tokens(world: World, cache: MetricCache) -> None:
    reward = MetricReward(PDMS(), cache)
    tokens = [r.token for r in world.records[:2]]
    plans = np.stack([constant_velocity(world.records[:2])], axis=1)
    plans.flags.writeable = False
    expected = reward(tokens, torch.from_numpy(plans.copy()))
    for name, values in reward(tokens, plans).items():
        assert torch.equal(values, expected[name])
    with pytest.raises(TypeError, match="plans must be a tensor or a numpy array, found list"):
        reward(tokens, plans.tolist())
    for call in (lambda: reward(tokens[0], plans), lambda: MetricReward(PDMS(), cache, tokens=tokens[0]),
                 lambda: cache.load(tokens[0])):  # fmt: skip
        with pytest.raises(TypeError, match=f"tokens must be a sequence of texts, found one: '{tokens[0]}'"):
            call()


def test_rewards_take_any_floats_and_any_iterable_of_tokens(world: World, cache: MetricCache) -> None:
    reward = MetricReward(PDMS(), cache)
    tokens = [r.token for r in world.records[:2]]
    plans = np.stack([constant_velocity(world.records[:2])], axis=1)
    expected = reward(tokens, plans)["score"]
    assert torch.equal(reward((token for token in tokens), plans)["score"], expected)
    kinds: tuple[tuple[Any, ...], ...] = ((">f4", ">f8", np.longdouble), (object, "U9"))
    for kind in kinds[0]:
        assert torch.equal(reward(tokens, plans.astype(kind))["score"], expected)
    for kind in kinds[1]:
        with pytest.raises(TypeError, match="plans must be floating point, found an array of "):
            reward(tokens, plans.astype(kind))
    with pytest.raises(ValueError, match="plans must be floating point, found"):
        reward(tokens, plans.astype(">i4"))
    with pytest.raises(ValueError, match="there are no scenes to score"):
        MetricReward(PDMS(), cache, tokens=[])


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_rewards_equal_the_evaluation_for_any_group_and_order(
    world: World, cache: MetricCache, keep_bytes: int
) -> None:
    reward = MetricReward(PDMS(), cache, keep_bytes=keep_bytes)
    order = [5, 2, 2, 0]
    records = [world.records[i] for i in order]
    plans = np.stack([constant_velocity(records), stand_still(records)], axis=1)
    scores = reward([r.token for r in records], torch.from_numpy(plans))
    assert tuple(scores) == SUB_SCORES
    load = scenes_from_cache(cache)
    for candidate, agent in enumerate((constant_velocity, stand_still)):
        expected = evaluate(agent, world.records, load, progress=False).values[order]
        for column, name in enumerate(SUB_SCORES):
            np.testing.assert_allclose(scores[name][:, candidate], expected[:, column], atol=1e-9)
    with pytest.raises(CacheError, match="beef"):
        reward(["beef"], torch.zeros(1, 1, 8, 3))
