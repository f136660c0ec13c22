"""EPDMS from logs and maps: equal to the devkit's own scores, and what is written about them."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvla.training.run_directory import TrainedOn
from navsim_bridge.agents import constant_velocity
from navsim_bridge.evaluation import results
from navsim_bridge.evaluation import run as evaluating
from navsim_bridge.evaluation.metric_scenes import ScenesFromLogs
from navsim_bridge.evaluation.results import describe, write_evaluation
from navsim_bridge.evaluation.run import SceneFailureError, evaluate
from navsim_bridge.files.logs import read_log
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache, build_scenes
from navsim_bridge.metric_cache.store import write_scenes
from navsim_bridge.metrics.config import EPDMSConfig
from navsim_bridge.metrics.epdms import EPDMS, previous_frames
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.splits.scene_filter import SceneFilter, Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from tests.navsim_bridge.conftest import FIXTURE, LOG, World
from tools import cache_metrics
from tools import evaluate as tool

NAMES = tuple(column.name for column in EPDMS.columns)
"""Sub-scores and score, in the devkit's order."""
FIXED = EPDMS(EPDMSConfig(human_filter="fixed"))
TWO_FRAMES_DECIDE = ("two_frame_extended_comfort", "score")
SPLIT = """
data_split: mini
scene_filter: {num_history_frames: 4, num_future_frames: 10, frame_interval: 1, has_route: true, max_scenes: 12}
"""


@pytest.fixture(scope="module")
def split_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("splits") / "adjacent.yaml"
    path.write_text(SPLIT)
    return path


@pytest.fixture(scope="module")
def records(world: World) -> list[SceneRecord]:
    rules = SceneFilter(num_history_frames=4, num_future_frames=10, frame_interval=1, max_scenes=12)
    return select_scenes(Split("adjacent", "mini", rules), world.root)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("agent", ["human", "constant_velocity"])
def test_every_score_equals_the_devkits(
    agent: str, world: World, split_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(["--metric", "epdms", "--agent", agent, "--split", str(split_file), "--out", str(tmp_path),
               "--data-root", str(world.root), "--maps-root", str(world.maps)])  # fmt: skip
    ours = rows_of(tmp_path / "scores.csv")
    assert tuple(ours[0]) == ("token", "valid", *NAMES, "reason")
    official = {row["token"]: row for row in rows_of(FIXTURE / f"v2_{agent}.csv")}
    assert len(ours) == 13
    for index, row in enumerate(ours[:-1]):
        expected = official[row["token"]]
        for name in NAMES:
            if index == 0 and name in TWO_FRAMES_DECIDE:  # this log starts later than the devkit's did
                assert name == "score" or row[name] == ""
            else:
                assert float(row[name]) == pytest.approx(float(expected[name]), abs=1e-6), (row["token"], name)
    assert ours[-1]["token"] == "average_all_frames"
    found = [float(row["two_frame_extended_comfort"]) for row in ours[1:-1]]
    assert float(ours[-1]["two_frame_extended_comfort"]) == pytest.approx(np.mean(found))
    assert "EPDMS (human filter v2.1.2)" in capsys.readouterr().out


def test_a_lost_sub_score_has_a_reason(world: World, records: list[SceneRecord]) -> None:
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    result = evaluate(constant_velocity, records, load, metric=FIXED, progress=False)
    for token, row in zip(result.tokens, result.values):
        terms = dict(zip(result.columns, row))
        if terms["drivable_area_compliance"] == 0:
            assert "leaves the drivable area at" in result.reasons[token]
    assert (result.values[:, 1] == 0).any()


def test_the_summary_says_what_the_numbers_are(world: World, records: list[SceneRecord], tmp_path: Path) -> None:
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    result = evaluate(constant_velocity, records[:2], load, metric=FIXED, progress=False)
    summary = write_evaluation(tmp_path, result, agent="x", split=world.split, records=records[:2],
                               data_root=world.root, seed=3)  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["metric"]["name"].startswith("EPDMS v2 (navsim 2.1.2")
    assert summary["metric"]["human_filter"] == "fixed"
    assert len(summary["metric"]["scenes_fingerprint"]) == 64
    assert (summary["split"], summary["scenes"], summary["candidates_per_scene"], summary["seed"]) == ("small", 2, 1, 3)
    assert {"git_commit", "blas", "packages"} <= set(summary["provenance"])
    assert {"numpy", "torch"} <= set(summary["provenance"]["packages"])


def test_without_any_previous_frame_the_average_of_its_term_is_missing(
    world: World, records: list[SceneRecord], tmp_path: Path
) -> None:
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    result = evaluate(constant_velocity, records[::2], load, metric=EPDMS(), progress=False)
    summary = write_evaluation(tmp_path, result, agent="x", split=world.split, records=records[::2],
                               data_root=world.root, seed=0)  # fmt: skip
    assert summary["averages"]["two_frame_extended_comfort"] is None
    assert rows_of(tmp_path / "scores.csv")[-1]["two_frame_extended_comfort"] == ""
    assert 0 <= summary["averages"]["score"] <= 1


def test_order_and_chunks_of_the_records_do_not_matter(
    world: World, records: list[SceneRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    whole = evaluate(constant_velocity, records, load, metric=EPDMS(), progress=False)
    monkeypatch.setattr(evaluating, "SCENES_AT_ONCE", 5)
    order = np.random.default_rng(0).permutation(len(records))
    shuffled = evaluate(constant_velocity, [records[i] for i in order], load, metric=EPDMS(), progress=False)
    np.testing.assert_allclose(shuffled.values, whole.values[order], rtol=0, atol=1e-9)


def test_a_frame_follows_the_one_half_a_second_before_it_in_its_log(records: list[SceneRecord]) -> None:
    other_log = dataclasses.replace(records[2], log_name="other")
    synthetic = dataclasses.replace(records[4], token="f" * 17)
    index, seconds = previous_frames([records[1], records[0], other_log, records[3], synthetic])
    assert index[0] == 1
    assert seconds[0] == pytest.approx(0.5, abs=0.01)
    assert seconds[1:].isnan().all()


def test_weights_trained_on_the_split_are_said_and_stored_to_be(
    world: World, records: list[SceneRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = dataclasses.asdict(TrainedOn("dipole", "navtrain", 1, (LOG,)))
    monkeypatch.setattr(results, "training_stages", lambda checkpoint: [stage])
    monkeypatch.setattr(results, "weights_of", lambda checkpoint: ("weights", "no"))
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    result = evaluate(constant_velocity, records[:1], load, metric=EPDMS(), progress=False)
    summary = write_evaluation(tmp_path, result, agent="dpvla", split=world.split, records=records[:1],
                               data_root=world.root, seed=0, checkpoint=tmp_path)  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["trained_on_evaluation_split"] is True
    assert summary["trained_on"] == [stage]
    assert "trained_on_evaluation_split: true" in describe(summary, EPDMS())


def test_a_log_without_traffic_lights_cannot_be_scored(
    world: World, records: list[SceneRecord], tmp_path: Path
) -> None:
    source = world.root / f"navsim_logs/mini/{LOG}.pkl"
    frames = pickle.loads(source.read_bytes())  # our own fixture
    for frame in frames:
        del frame["traffic_lights"]
    target = tmp_path / f"navsim_logs/mini/{LOG}.pkl"
    target.parent.mkdir(parents=True)
    target.write_bytes(pickle.dumps(frames))
    assert set(read_log(target).red_lights) == {None}
    with pytest.raises(ValueError, match=f"scene {records[0].token} .*no 'traffic_lights', which the reference"):
        list(build_scenes(records[:1], tmp_path, world.maps, NAVSIM_V2))
    with pytest.raises(SceneFailureError, match=records[0].token):
        evaluate(
            constant_velocity, records[:1], ScenesFromLogs(records, tmp_path, world.maps, NAVSIM_V2), metric=EPDMS()
        )


def test_bad_traffic_lights_are_refused_by_frame(tmp_path: Path, frame: Callable[..., Any]) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps([frame(0, traffic_lights=[(7, True), 8])]))
    with pytest.raises(ValueError, match=r"frame 0 .*traffic_lights.*lane connector id, is red"):
        read_log(path)
    path.write_bytes(pickle.dumps([frame(0, traffic_lights=[(7, True), (8, False)])]))
    assert read_log(path).red_lights == (("7",),)


def test_the_human_filter_of_the_other_metric_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--agent", "human", "--split", "x", "--out", "y", "--human-filter", "fixed"])
    assert "--metric.human-filter belongs to --metric epdms" in capsys.readouterr().err


@pytest.fixture(scope="module")
def packed(world: World, split_file: Path, tmp_path_factory: pytest.TempPathFactory) -> MetricCache:
    out = tmp_path_factory.mktemp("packed")
    cache_metrics.main(["--metric", "epdms", "--split", str(split_file), "--out", str(out),
                        "--data-root", str(world.root), "--maps-root", str(world.maps)])  # fmt: skip
    return MetricCache(out)


def test_scenes_of_epdms_are_stored_exactly(world: World, records: list[SceneRecord], packed: MetricCache) -> None:
    built = list(build_scenes(records, world.root, world.maps, NAVSIM_V2))
    assert any(scene.v2 and len(scene.v2.light_tokens) for scene in built)
    for scene, loaded in zip(built, packed.load([r.token for r in records])):
        assert scene.v2 is not None and loaded.v2 is not None
        pairs: list[tuple[Any, Any]] = [(scene, loaded), (scene.v2, loaded.v2), (scene.v2.traffic, loaded.v2.traffic)]
        for one, two in pairs:
            for name in (f.name for f in dataclasses.fields(one) if f.name not in ("v2", "traffic")):
                mine, theirs = getattr(one, name), getattr(two, name)
                np.testing.assert_array_equal(mine, theirs, err_msg=name)
                assert np.asarray(mine).dtype == np.asarray(theirs).dtype, name


def test_four_seconds_of_future_are_enough(world: World, records: list[SceneRecord]) -> None:
    rules = SceneFilter(num_history_frames=4, num_future_frames=8, frame_interval=1, max_scenes=12)
    shorter = select_scenes(Split("adjacent", "mini", rules), world.root)
    long, short = (
        evaluate(constant_velocity, some, ScenesFromLogs(some, world.root, world.maps, NAVSIM_V2), metric=EPDMS(),
                 progress=False)
        for some in (records, shorter)
    )  # fmt: skip
    assert short.tokens == long.tokens
    np.testing.assert_array_equal(short.values, long.values)


def test_a_packed_cache_gives_the_scores_of_the_logs(
    world: World, records: list[SceneRecord], packed: MetricCache, split_file: Path, tmp_path: Path
) -> None:
    tool.main(["--metric", "epdms", "--agent", "constant_velocity", "--split", str(split_file), "--out", str(tmp_path),
               "--data-root", str(world.root), "--metric-cache", str(packed.path)])  # fmt: skip
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    expected = evaluate(constant_velocity, records, load, metric=EPDMS(), progress=False)
    assert (tmp_path / "scores.csv").read_text() == expected.to_csv()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metric_cache"]["metric"] == summary["metric"]["name"]


def test_a_cache_of_the_other_metric_is_refused(
    world: World, packed: MetricCache, split_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"holds scenes of EPDMS .*, not of PDMS v1 .*--metric pdms"):
        tool.main(["--agent", "human", "--split", str(split_file), "--out", str(tmp_path),
                   "--data-root", str(world.root), "--metric-cache", str(packed.path)])  # fmt: skip
    with pytest.raises(CacheError, match="holds scenes of EPDMS"):
        packed.require_metric(PDMS())
    with pytest.raises(CacheError, match=r"holds scenes of EPDMS .*choose another folder for PDMS v1"):
        build_metric_cache(world.root, world.maps, load_split(split_file), packed.path, progress=False)


def test_scenes_of_both_metrics_do_not_share_a_file(world: World, records: list[SceneRecord], tmp_path: Path) -> None:
    scenes = list(build_scenes(records[:1], world.root, world.maps, NAVSIM_V2))
    scenes += build_scenes(records[1:2], world.root, world.maps)
    with pytest.raises(ValueError, match=f"scene {records[1].token} was made by other rules than scene "):
        write_scenes(tmp_path / "x.scenes", scenes, "test")
    with pytest.raises(ValueError, match="one file holds scenes of one metric"):
        write_scenes(tmp_path / "x.scenes", [scenes[0], dataclasses.replace(scenes[1], v2=scenes[0].v2)], "test")
