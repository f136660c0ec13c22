"""Metrics of one's own, plugged in by name, evaluated and learned from by the real tools; and EPDMS as a reward."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from navsim_bridge.metric_cache import MetricCache, jobs
from navsim_bridge.metric_cache.cache import finish
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.registry import METRICS
from navsim_bridge.pdm import SUB_SCORES
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import select_scenes
from tests.paths import ROOT
from tests.tools.real_tools import call, refused

WEIGHTS = "adapters/positive/adapter_model.safetensors"
EXAMPLE = str(ROOT / "examples" / "metric.py")
RECIPE = {
    "split": "navtrain",
    "checkpoint": "runs/pre",
    "rollouts": {"group_size": 3, "cycles": 1, "epochs_per_cycle": 1, "scenes_per_cycle": 4, "batch_size": 2},
    "lora": {"rank": 4, "alpha": 4},
    "loop": {"lr": 1e-2, "log_every": 1, "save_every": 1, "trackers": []},
}
BRAVE = ("--plugin", str(ROOT / "tests/tools/plugins/toy_metric.py"), "--metric", "brave")


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Iterator[Path]:
    """A toy world and a pretrained policy; what plug-ins add to the metrics is gone afterwards."""
    (toy_place / "metric.yaml").write_text(yaml.safe_dump(RECIPE))
    kept = dict(METRICS)
    yield toy_place
    METRICS.clear()
    METRICS.update(kept)
    for module in ("metric", "toy_metric"):
        sys.modules.pop(module, None)


def scores(folder: Path) -> list[dict[str, str]]:
    with open(folder / "scores.csv") as file:
        return list(csv.DictReader(file))


def newest(place: Path, name: str) -> Path:
    return sorted((place / "runs" / name / "checkpoints").glob("step_*"))[-1]


def learn(place: Path, out: str, *options: str) -> dict[str, Any]:
    """Two updates with a stop in between, equal to two at a stretch; returns the buffer's scores."""
    words = ("--config", "metric.yaml", *options)
    text = call(
        "rl_finetune.py", *words, "--out", f"runs/{out}", "--loop.stop-after-step", "1", cwd=place, status=(130,)
    )
    assert "the same command goes on from there" in text
    call("rl_finetune.py", *words, "--out", f"runs/{out}", cwd=place)
    call("rl_finetune.py", *words, "--out", f"runs/{out}_whole", cwd=place)
    one, two = (load_file(newest(place, name) / WEIGHTS) for name in (out, f"{out}_whole"))
    assert newest(place, out).name.endswith("2") and all((one[key] == two[key]).all() for key in one)
    buffer = load_file(newest(place, out) / "trainer_state/buffer.safetensors")
    return {key.removeprefix("scores."): value for key, value in buffer.items() if key.startswith("scores.")}


def test_a_metric_of_plan_and_recording_alone_is_evaluated_with(place: Path) -> None:
    words = ("--plugin", EXAMPLE, "--metric", "ade", "--split", "navtest")
    text = call("evaluate.py", *words, "--agent", "human", "--out", "scores/human", cwd=place)
    assert "ADE 0.00 m  FDE 0.00 m  exp(-ADE) (scale 2.0) 100.0" in text
    call("evaluate.py", *words, "--agent", "stand_still", "--out", "scores/still", "--metric.scale", "4", cwd=place)
    root = place / "data/demo_world"
    records = select_scenes(load_split("navtest", root), root)
    for record, row in zip(records, scores(place / "scores/still"), strict=False):
        away = np.hypot(*record.plan()[:, :2].T)
        assert float(row["ade"]) == pytest.approx(away.mean()) and float(row["fde"]) == pytest.approx(away[-1])
        assert float(row["score"]) == pytest.approx(np.exp(-away.mean() / 4))
    summary = json.loads((place / "scores/still/summary.json").read_text())
    assert summary["metric"].items() >= {"name": "displacement from the recorded driver", "scale": 4.0}.items()
    assert summary["metric_cache"] is None and "reference" not in summary["metric"]
    other = refused("evaluate.py", *words, "--agent", "human", "--out", "scores/still", cwd=place)
    assert "scale 4.0" in other and "scale 2.0" in other


def test_a_metric_of_plan_and_recording_alone_is_learned_from(place: Path) -> None:
    found = learn(place, "ade", "--plugin", EXAMPLE, "--metric", "ade")
    assert sorted(found) == ["ade", "fde", "score"]
    assert (found["score"] - (-found["ade"] / 2).exp()).abs().max() < 1e-12
    content = yaml.safe_load((place / "runs/ade/run.yaml").read_text())
    assert content["config"]["metric"] == {"name": "ade", "scale": 2.0}
    words = ("--config", "metric.yaml", "--plugin", EXAMPLE, "--metric", "ade", "--out", "runs/none")
    text = refused("rl_finetune.py", *words, "--metric-cache", str(own_cache(place)), cwd=place)
    assert "--metric ade needs no metric scenes: leave out --metric-cache" in text
    assert "nothing to cache" in refused("cache_metrics.py", *words[2:6], "--split", "navtest", "--out", "x", cwd=place)
    call("evaluate.py", "--agent", "dpvla", "--checkpoint", "runs/ade", "--split", "navtest", "--out", "scores/of_ade",
         cwd=place)  # fmt: skip


def own_cache(place: Path) -> Path:
    return place / "data/demo_world/metric_cache/navtest_all"


def test_a_metric_with_scenes_of_its_own_is_cached_by_several_processes_and_evaluated_with(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SCENES_PER_PROCESS", 1)
    words = (*BRAVE, "--split", "navtrain")
    call("cache_metrics.py", *words, "--out", "caches/brave", "--workers", "2", cwd=place)
    cache = MetricCache(place / "caches/brave")
    assert (cache.metric, len(cache.index["logs"])) == ("the brave", 2)
    assert all(scene.v2 is not None for scene in cache.load(cache.tokens))
    options = ("--agent", "constant_velocity", "--split", "navtrain")
    call("evaluate.py", *words[:4], *options, "--metric-cache", "caches/brave", "--out", "scores/brave", cwd=place)
    call("evaluate.py", *words[:4], *options, "--out", "scores/built", cwd=place)
    assert scores(place / "scores/brave") == scores(place / "scores/built")
    call("evaluate.py", *options, "--out", "scores/plain", cwd=place)
    for brave, plain in zip(scores(place / "scores/brave"), scores(place / "scores/plain"), strict=True):
        row = {name: float(brave[name]) for name in SUB_SCORES}
        assert {k: v for k, v in row.items() if k != "score"} == {k: float(plain[k]) for k in SUB_SCORES[:-1]}
        if brave["token"] != "average":
            product = row["no_at_fault_collisions"] * row["drivable_area_compliance"]
            assert row["score"] == pytest.approx(product * row["ego_progress"])
    text = refused("evaluate.py", *options, "--metric-cache", "caches/brave", "--out", "scores/no", cwd=place)
    assert "holds scenes of the brave, not of PDMS v1" in text and "--metric pdms" in text


def test_epdms_is_learned_from(place: Path) -> None:
    found = learn(place, "epdms", "--metric", "epdms", "--metric.human-filter", "fixed")
    assert set(found) == {*(c.name for c in EPDMS.columns if not c.optional)}
    assert ((found["score"] >= 0) & (found["score"] <= 1)).all()
    cache = MetricCache(place / "data/demo_world/metric_cache/navtrain-epdms")
    assert cache.metric == EPDMS.version
    words = ("--config", "metric.yaml", "--out", "runs/none", "--metric-cache", str(cache.path))
    assert "choose another --metric" in refused("rl_finetune.py", *words, cwd=place)


def test_epdms_in_traffic_that_reacts_is_learned_from_and_evaluated_with(place: Path) -> None:
    """One stage; a cache of an earlier version, without what vehicles need to react, is refused with what to do."""
    idm = ("--metric", "epdms", "--metric.traffic", "idm")
    call("rl_finetune.py", "--config", "metric.yaml", *idm, "--out", "runs/idm", cwd=place)
    content = yaml.safe_load((place / "runs/idm/run.yaml").read_text())
    assert content["config"]["metric"]["traffic"] == "idm"
    of_agent = ("--agent", "dpvla", "--checkpoint", "runs/idm", "--split", "navtrain")
    text = call("evaluate.py", *idm, *of_agent, "--out", "scores/idm", cwd=place)
    assert "EPDMS (human filter v2.1.2, traffic idm)" in text and "floors" not in text
    summary = json.loads((place / "scores/idm/summary.json").read_text())
    assert summary["metric"].items() >= {"traffic": "idm", "stages": 1, "human_filter": "v2.1.2"}.items()
    at = place / "data/demo_world/metric_cache/navtrain-epdms"
    old, fingerprint = place / "old", MetricCache(at).index["data_fingerprint"]
    made = {name: _without_traffic(old, name, entry, MetricCache(at)) for name, entry in _logs(at).items()}
    finish(old, made, {key: MetricCache(at).index[key] for key in ("metric", "split", "data_split", "reference")}, {})
    words = ("--config", "metric.yaml", "--out", "runs/none", "--metric-cache", str(old))
    refusal = refused("rl_finetune.py", *idm, *words, cwd=place)
    assert "make it anew: tools/cache_metrics.py --metric epdms --split navtrain" in refusal
    assert refusal.count("\n") == 0
    call("cache_metrics.py", *idm[:2], "--split", "navtrain", "--out", str(old), cwd=place)
    assert MetricCache(old).index["data_fingerprint"] == fingerprint, "a run that learned from it goes on"
    call("evaluate.py", *idm, *of_agent, "--out", "scores/new", "--metric-cache", str(old), cwd=place)
    assert scores(place / "scores/new") == scores(place / "scores/idm")


def _logs(cache: Path) -> dict[str, Any]:
    found: dict[str, Any] = MetricCache(cache).index["logs"]
    return found


def _without_traffic(folder: Path, name: str, entry: dict[str, Any], cache: MetricCache) -> dict[str, Any]:
    """The file of a log as an earlier version wrote it, and its entry."""
    scenes = [replace(scene, v2=scene.v2 and replace(scene.v2, traffic=None)) for scene in cache.load(entry["tokens"])]
    return {**jobs.log_entry(folder / entry["file"], entry["source"], len(scenes), lambda: scenes), **{
        key: entry[key] for key in ("stamp", "source_sha256")}}  # fmt: skip


def test_pretraining_is_validated_by_the_metric_it_is_told(place: Path) -> None:
    words = ("--config", "pretrain.yaml", "--validation-logs", "1", "--imitation.epochs", "1", "--loop.log-every", "1")
    call("pretrain.py", *words, "--out", "runs/validated", "--plugin", EXAMPLE, "--metric", "ade", cwd=place)
    header = (place / "runs/validated/metrics.csv").read_text()
    assert "validation/fde" in header and "validation/ego_progress" not in header
