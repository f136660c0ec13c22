"""Results over a part of a split say so: scores, caches and training."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from dpvla.files import write_json
from navsim_bridge.agents import constant_velocity
from navsim_bridge.doctor import examine
from navsim_bridge.doctor.data import check_cache, check_split
from navsim_bridge.doctor.finding import ERROR, OK, WARNING
from navsim_bridge.evaluation import results
from navsim_bridge.evaluation import run as evaluation
from navsim_bridge.evaluation.metric_scenes import scenes_from_cache
from navsim_bridge.evaluation.results import check_results, describe, identity, write_evaluation
from navsim_bridge.evaluation.run import evaluate, evaluate_each
from navsim_bridge.files.logs import log_path
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache, merge_caches
from navsim_bridge.splits.coverage import Coverage, coverage_of, usable_scenes
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.shard import Shard
from tests.navsim_bridge.conftest import LOG, World
from tools import cache_metrics
from tools import doctor as doctor_tool
from tools import evaluate as tool


@pytest.fixture
def part(world: World) -> Split:
    """A split of nine scenes in two logs, of which one log and two scenes are missing."""
    tokens = (*(r.token for r in world.records), "beef", "cafe")
    rules = SceneFilter(frame_interval=4, tokens=tokens, log_names=(LOG, "gone"))
    return Split("part", "mini", rules, world.split_file)


@pytest.fixture
def split_file(world: World, part: Split, tmp_path: Path) -> Path:
    path = tmp_path / "part.yaml"
    rules = dataclasses.asdict(part.scene_filter)
    path.write_text(json.dumps({"data_split": "mini", "scene_filter": rules}))  # JSON is YAML
    return path


def test_scenes_that_are_left_out_are_counted_by_cause() -> None:
    def of(used: int, tokens: int | None = None, limit: int | None = None, absent: int = 0, logs: int = 0) -> Coverage:
        return coverage_of(used, used, tokens, limit, absent, logs)

    assert of(7) == Coverage.whole(7)
    assert of(7, tokens=9, absent=2, logs=1) == Coverage(7, 9, {"missing_logs": 1, "missing_scenes": 2})
    assert of(7, logs=1) == Coverage(7, None, {"missing_logs": 1})
    assert of(5, tokens=9, limit=5) == Coverage.whole(5)
    assert of(4, limit=5) == Coverage.whole(4)
    assert of(4, tokens=9, limit=5, absent=5) == Coverage(4, 5, {"missing_scenes": 5})
    assert of(4, limit=5, logs=1) == Coverage(4, None, {"missing_logs": 1})
    first = of(5, limit=5, logs=1)  # of those there are; others may come before them
    assert (first, str(first)) == (Coverage(5, 5, {"missing_logs": 1}), "5 scenes of a part")
    part = of(7, tokens=9, absent=2, logs=1).without("missing_images", 3).without("failed", 1)
    assert str(part) == "3 of 9 scenes"
    assert part.why == ("1 log is not there, 2 scenes are in no log, 3 scenes lack camera files, 1 scene failed")
    assert str(Coverage(7, None, {"missing_logs": 1})) == "7 scenes of a part"
    assert (str(Coverage.whole(1)), Coverage.whole(7).why) == ("1 scene", "")


def test_missing_images_are_counted_with_missing_scenes(world: World, part: Split, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "data")
    for record in world.records[:4]:
        path = tmp_path / "data/sensor_blobs/mini" / record.cameras["CAM_F0"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")
    records, found = usable_scenes(part, tmp_path / "data", ("CAM_F0",), allow_missing=True)
    assert len(records) == 4
    assert found == Coverage(4, 9, {"missing_logs": 1, "missing_scenes": 2, "missing_images": 3})


def test_a_score_of_a_part_is_not_printed_or_written_as_the_splits(
    world: World, split_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--agent", "human", "--split", str(split_file), "--data-root", str(world.root), "--maps-root",
               str(world.maps), "--out", str(tmp_path / "out")]  # fmt: skip
    with pytest.raises(SystemExit, match="1 of 2 logs are not in"):
        tool.main(options)
    tool.main([*options, "--allow-missing"])
    said = capsys.readouterr().out
    assert "human on part (7 of 9 scenes): " in said
    assert "NOT the score of part" in said
    assert "1 log is not there, 2 scenes are in no log" in said
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["scenes"], summary["scenes_scored"], summary["scenes_in_split"]) == (7, 7, 9)
    assert summary["left_out"] == {"missing_logs": 1, "missing_scenes": 2}
    assert summary["whole_split"] is False
    with open(tmp_path / "out/scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["valid"] for row in rows[:-1]} == {"True"}
    assert (rows[-1]["token"], rows[-1]["valid"]) == ("average", "False")


def test_failed_scenes_are_left_out_of_the_split_too(world: World, tmp_path: Path) -> None:
    cache = build_metric_cache(world.root, world.maps, world.split, tmp_path / "cache", progress=False)

    def failing(records: Sequence[SceneRecord]) -> NDArray[Any]:
        if any(r.token == world.records[2].token for r in records):
            raise ValueError("no plan")
        return constant_velocity(records)

    result = evaluate(failing, world.records, scenes_from_cache(cache), allow_failures=True, progress=False)
    summary = write_evaluation(tmp_path, result, agent="x", split=world.split, records=world.records,
                               data_root=world.root, seed=0)  # fmt: skip
    assert (summary["scenes"], summary["scenes_scored"], summary["left_out"]) == (7, 6, {"failed": 1})
    assert "x on small (6 of 7 scenes)" in describe(summary)
    assert "NOT the score of small" in describe(summary)


def test_a_cache_of_a_part_says_so_and_so_does_what_is_made_with_it(
    world: World, part: Split, split_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = ["--data-root", str(world.root), "--maps-root", str(world.maps)]
    cache_metrics.main(["--split", str(split_file), "--out", str(tmp_path / "cache"), "--allow-missing", *roots])
    said = capsys.readouterr().out
    assert "7 of 9 scenes of part in" in said
    assert "NOT the whole split: 1 log is not there, 2 scenes are in no log." in said
    cache = MetricCache(tmp_path / "cache")
    assert cache.coverage == Coverage(7, 9, {"missing_logs": 1, "missing_scenes": 2})
    with pytest.raises(CacheError, match=r"1 of 1 scenes are not in .*\(split part, of which it holds 7 of 9 scenes: "):
        cache.require(["beef"])
    tool.main(["--agent", "human", "--split", str(split_file), "--out", str(tmp_path / "out"), "--metric-cache",
               str(tmp_path / "cache"), "--allow-missing", *roots])  # fmt: skip
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["metric_cache"]["scenes_in_split"] == 9
    assert summary["metric_cache"]["whole_split"] is False


def test_scenes_that_a_given_cache_lacks_are_left_out_when_allowed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = tmp_path / "fewer.yaml"
    tokens = [r.token for r in world.records[:4]]
    fewer.write_text(json.dumps({"data_split": "mini", "scene_filter": {"frame_interval": 4, "tokens": tokens}}))
    roots = ["--data-root", str(world.root), "--maps-root", str(world.maps)]
    cache_metrics.main(["--split", str(fewer), "--out", str(tmp_path / "cache"), *roots])
    options = ["--agent", "human", "--split", str(world.split_file), "--out", str(tmp_path / "out"), "--metric-cache",
               str(tmp_path / "cache"), *roots]  # fmt: skip
    with pytest.raises(
        SystemExit, match=r"3 of 7 scenes are not in the metric cache .* ask for the rest \(--allow-mis"
    ):
        tool.main(options)
    tool.main([*options, "--allow-missing"])
    said = capsys.readouterr()
    assert "human on small (4 of 7 scenes)" in said.out
    assert "3 scenes are not in the metric cache" in said.out
    assert f"first {world.records[4].token}; they are left out" in said.err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["whole_split"], summary["left_out"]) == (False, {"missing_cached": 3})
    with pytest.raises(CacheError, match="1 of 1 scenes are not in the metric cache"):
        MetricCache(tmp_path / "cache").usable(world.records[6:], Coverage.whole(1), allow_missing=True)


def test_the_doctor_says_what_a_cache_is_part_of(world: World, part: Split, tmp_path: Path) -> None:
    build_metric_cache(world.root, world.maps, part, tmp_path / "part", allow_missing=True, progress=False)
    build_metric_cache(world.root, world.maps, world.split, tmp_path / "whole", progress=False)
    build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False, shard=Shard(1, 2))
    found = [next(iter(check_cache(str(tmp_path / name)))) for name in ("part", "whole", "shard-1-of-2")]
    assert [finding.level for finding in found] == [WARNING, OK, WARNING]
    assert "7 of 9 scenes of part, all bytes checked; NOT the whole split: 1 log is not there" in found[0].what
    assert found[1].what.endswith("7 scenes of small, all bytes checked")
    assert "shard 1/2 alone" in found[2].what


def test_the_doctor_looks_for_no_more_scenes_than_the_split_takes(world: World, tmp_path: Path) -> None:
    tokens = [r.token for r in world.records]
    split = tmp_path / "few.yaml"
    rules = {"frame_interval": 4, "tokens": tokens, "max_scenes": 3}
    split.write_text(json.dumps({"data_split": "mini", "scene_filter": rules}))
    assert "split few: 3 scenes" in {f.what for f in check_split(world.root, world.maps, str(split))}


def test_a_split_that_is_too_short_to_score_is_refused_before_the_work(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "short.yaml"
    split.write_text(json.dumps({"data_split": "mini", "scene_filter": {"num_future_frames": 8}}))
    common = ["--split", str(split), "--data-root", str(world.root), "--maps-root", str(world.maps), "--out",
              str(tmp_path / "out")]  # fmt: skip
    message = rf"split short: num_future_frames is 8, but scoring needs 10: set it in {split}$"
    with monkeypatch.context() as patched:
        patched.setattr(tool, "usable_scenes", lambda *_: pytest.fail("logs were read"))
        with pytest.raises(SystemExit, match=message):
            tool.main(["--agent", "human", *common])
    with pytest.raises(SystemExit, match=message):
        cache_metrics.main(common)
    tool.main(["--agent", "human", "--metric", "epdms", *common])  # looks at 8


def test_merged_shards_say_what_is_missing(world: World, part: Split, tmp_path: Path) -> None:
    for name in ("a", "b"):
        frames = pickle.loads(log_path(world.root, "mini", LOG).read_bytes())
        for frame in frames:
            frame["token"] = name + frame["token"][1:]
        path = log_path(tmp_path / "data", "mini", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(frames))
    split = Split("two", "mini", SceneFilter(frame_interval=8, log_names=("a", "b", "gone")))
    for k in (1, 2):
        build_metric_cache(tmp_path / "data", world.maps, split, tmp_path / "out", allow_missing=True, progress=False,
                           shard=Shard(k, 2))  # fmt: skip
    merged = merge_caches([tmp_path / "out"], tmp_path / "both")
    assert merged.coverage == Coverage(8, None, {"missing_logs": 1})
    shutil.rmtree(tmp_path / "out/shard-2-of-2")
    one = merge_caches([tmp_path / "out"], tmp_path / "one", allow_missing=True)
    assert one.coverage == Coverage(4, None, {"missing_logs": 1, "missing_shards": 1})


def test_scenes_of_missing_shards_are_not_said_to_be_in_no_log(world: World, tmp_path: Path) -> None:
    tokens = tuple(r.token for r in world.records)
    split = Split("listed", "mini", SceneFilter(frame_interval=4, tokens=(*tokens, "beef")))
    for name in ("x", "y"):
        path = log_path(tmp_path / "data", "mini", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = pickle.loads(log_path(world.root, "mini", LOG).read_bytes())
        path.write_bytes(pickle.dumps(frames[: 14 + 4] if name == "x" else frames[8:]))
    build_metric_cache(tmp_path / "data", world.maps, split, tmp_path / "out", progress=False, shard=Shard(1, 2))
    one = merge_caches([tmp_path / "out"], tmp_path / "one", allow_missing=True)
    assert one.coverage == Coverage(2, 8, {"missing_shards": 1})
    build_metric_cache(tmp_path / "data", world.maps, split, tmp_path / "out", progress=False, shard=Shard(2, 2))
    both = merge_caches([tmp_path / "out"], tmp_path / "both", allow_missing=True)
    assert both.coverage == Coverage(7, 8, {"missing_scenes": 1})


def test_results_of_another_evaluation_are_not_overwritten(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = ["--data-root", str(world.root), "--maps-root", str(world.maps)]
    common = ["--split", str(world.split_file), "--out", str(tmp_path / "out"), *roots]
    tool.main(["--agent", "human", *common])
    first = (tmp_path / "out/scores.csv").read_text()
    tool.main(["--agent", "human", *common])  # its own may be replaced
    assert (tmp_path / "out/scores.csv").read_text() == first
    copy = tmp_path / "other/small.yaml"
    copy.parent.mkdir()
    shutil.copy(world.split_file, copy)
    for options, message in (
        (["--agent", "stand_still", *common], "agent 'human' there, 'stand_still' asked for"),
        (["--agent", "human", *common, "--metric", "epdms"], "metric .*PDMS v1"),
        (["--agent", "human", *common, "--split", str(copy)], "split_file"),
    ):
        with pytest.raises(SystemExit, match=rf"holds the results of another evaluation \(.*{message}.*--overwrite"):
            tool.main(options)
    with pytest.raises(ValueError, match="seed 0 there, 1 asked for"):
        check_results(tmp_path / "out", identity("human", world.split, world.root, {"name": "x"}, 1))
    assert (tmp_path / "out/scores.csv").read_text() == first
    tool.main(["--agent", "stand_still", *common, "--overwrite"])
    assert json.loads((tmp_path / "out/summary.json").read_text())["agent"] == "stand_still"


def test_a_part_does_not_replace_results_of_the_whole_split(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.root, tmp_path / "data")
    split = tmp_path / "all.yaml"
    rules = {"frame_interval": 4, "log_names": [LOG, "more"]}
    split.write_text(json.dumps({"data_split": "mini", "scene_filter": rules}))
    frames = pickle.loads(log_path(world.root, "mini", LOG).read_bytes())
    for frame in frames:
        frame["token"] = "m" + frame["token"][1:]
    more = log_path(tmp_path / "data", "mini", "more")
    more.write_bytes(pickle.dumps(frames))
    options = ["--agent", "human", "--split", str(split), "--data-root", str(tmp_path / "data"), "--maps-root",
               str(world.maps), "--out", str(tmp_path / "out"), "--allow-missing"]  # fmt: skip
    tool.main(options)
    whole = (tmp_path / "out/scores.csv").read_text()
    more.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "evaluate_each", lambda *_, **__: pytest.fail("it was scored"))
        with pytest.raises(SystemExit, match=r"whole split, and now .* \(1 log is not there\); choose .*--overwrite"):
            tool.main(options)
    assert (tmp_path / "out/scores.csv").read_text() == whole
    tool.main([*options, "--overwrite"])
    assert (tmp_path / "out/scores.csv").read_text() != whole
    tool.main(options)  # a part again


def test_a_whole_result_is_kept_when_scenes_fail(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--agent", "human", "--split", str(world.split_file), "--data-root", str(world.root), "--maps-root",
               str(world.maps), "--out", str(tmp_path / "out"), "--allow-failures"]  # fmt: skip
    tool.main(options)
    whole = (tmp_path / "out/scores.csv").read_text()

    def with_a_failure(*arguments: Any, **keywords: Any) -> Any:
        found = evaluate_each(*arguments, **keywords)
        return [dataclasses.replace(one, failures={world.records[0].token: "x"}) for one in found]

    monkeypatch.setattr(evaluation, "evaluate_each", with_a_failure)
    with pytest.raises(SystemExit, match=r"now it would be 6 of 7 scenes \(1 scene failed\)"):
        tool.main(options)
    assert (tmp_path / "out/scores.csv").read_text() == whole


def test_results_of_other_weights_of_a_run_are_not_overwritten(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(step: int) -> Any:
        monkeypatch.setattr(results, "weights_of", lambda _: (f"/run/checkpoints/step_{step}", "no"))
        return identity("dpvla", world.split, world.root, {"name": "x"}, 0, None, "/run")

    write_json(tmp_path / "summary.json", at(2))
    check_results(tmp_path, at(2))
    with pytest.raises(ValueError, match=r"weights '/run/checkpoints/step_2' there, '/run/checkpoints/step_4' asked"):
        check_results(tmp_path, at(4))


def test_weights_are_printed_and_metrics_are_named_in_words(world: World, tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", identity("human", world.split, world.root, {"name": "A", "other": 1}, 0))
    with pytest.raises(ValueError, match=r"\(metric 'A' there, 'B, human_filter v2' asked for\)"):
        check_results(tmp_path, identity("human", world.split, world.root, {"name": "B", "human_filter": "v2"}, 0))
    summary = {"agent": "dpvla", "split": "s", "scenes": 1, "scenes_scored": 1, "scenes_in_split": 1, "left_out": {},
               "averages": {"score": 0.5}, "metric": {}, "odd": {}, "failed": 0, "failures": {},
               "weights": "/run/step_4", "trained_on_evaluation_split": False}  # fmt: skip
    assert describe(summary).splitlines()[1] == "weights: /run/step_4"
    assert "weights" not in describe({**summary, "weights": None})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"agent": "human", "metric": 3}'])
def test_results_that_do_not_say_whose_they_are_stay(world: World, tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    wanted = identity("human", world.split, world.root, {"name": "x"}, 0)
    with pytest.raises(ValueError, match=r"does not say which evaluation it is of; .*--overwrite"):
        check_results(tmp_path, wanted)
    check_results(tmp_path, wanted, overwrite=True)
    (tmp_path / "summary.json").unlink()
    check_results(tmp_path, wanted)
    (tmp_path / "scores.csv").write_text("token,score\n")  # of the devkit, say
    with pytest.raises(ValueError, match="does not say which evaluation"):
        check_results(tmp_path, wanted)


def test_the_doctor_names_an_empty_camera_file(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "data")
    for record in world.records:
        for camera in ("CAM_F0", "CAM_L0", "CAM_R0"):
            path = tmp_path / "data/sensor_blobs/mini" / record.cameras[camera]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"an image")
    findings = {f.what: f.level for f in check_split(tmp_path / "data", world.maps, "small")}
    assert findings["split small: all 21 camera files (CAM_L0, CAM_F0, CAM_R0)"] == OK
    path.write_bytes(b"")
    bad = [f for f in check_split(tmp_path / "data", world.maps, "small") if f.level == ERROR]
    assert len(bad) == 1
    assert bad[0].what == f"split small: 1 of 21 camera files are empty, for 1 of 7 scenes, first {path}"
    assert "--allow-missing leaves their scenes out" in bad[0].remedy


def test_two_evaluations_do_not_write_into_one_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpvla import files

    def taken(file: Any, directory: Any, wait: bool) -> Any:
        raise files.DirectoryInUseError(f"{directory} is being written by another process")

    monkeypatch.setattr(files, "_take", taken)
    with pytest.raises(SystemExit, match="is being written by another process"):
        tool.main(["--agent", "human", "--split", str(world.split_file), "--out", str(tmp_path / "out"), "--data-root",
                   str(world.root), "--maps-root", str(world.maps)])  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [
    (["--out", "FILE"], "FILE is a file, where a folder is to be written"),
    (["--out", "FILE/in"], "FILE is no folder"),
    (["--device", "gpu"], "--device gpu: expected auto, cpu, cuda or cuda:N"),
    (["--device", "cuda:99"], "--device cuda:99 is not there"),
])  # fmt: skip
def test_what_cannot_work_is_told_before_any_work(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(tool, "usable_scenes", lambda *_: pytest.fail("logs were read"))
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        tool.main(["--agent", "human", "--split", str(world.split_file), "--out", "out", "--data-root",
                   str(world.root), "--maps-root", str(world.maps), *options])  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--batch-size", "--seed"])
def test_counts_and_seeds_are_in_range(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as end:
        tool.main(["--agent", "human", "--split", "x", "--out", str(tmp_path / "out"), option, "-3"])
    assert end.value.code == 2
    assert f"{option[2:].replace('-', '_')} must be at least" in capsys.readouterr().err


def test_a_cache_is_not_written_over_a_file_or_by_minus_one_processes(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    roots = ["--data-root", str(world.root), "--maps-root", str(world.maps), "--split", str(world.split_file)]
    with pytest.raises(SystemExit, match="is a file, where a folder is to be written"):
        cache_metrics.main(["--out", str(tmp_path / "file"), *roots])
    with pytest.raises(SystemExit):
        cache_metrics.main(["--out", str(tmp_path / "cache"), "--workers", "-1", *roots])
    assert "workers must be at least 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--data-split belongs to --split"):
        cache_metrics.main(["--out", str(tmp_path / "cache"), "--merge", "x", "--data-split", "mini"])


def test_the_doctor_lists_the_scenes_of_both_stages_that_are_missing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in ("check_packages", "check_navsim", "check_torchvision", "check_linear_algebra", "check_scores"):
        monkeypatch.setattr(examine, check, lambda: iter(()))
    there, gone, unmade = world.records[0].token, "0" * 16, ["1" * 17, "2" * 17]
    rules = {"frame_interval": 4, "tokens": [there, gone], "reactive_synthetic_initial_tokens": unmade}
    first = {"data_split": "mini", "scene_filter": rules, "reactive_all_mapping": [[there, gone, [unmade]]]}
    second = {"data_split": "mini", "scene_filter": {"frame_interval": 4, "tokens": [there]}}
    (tmp_path / "first.yaml").write_text(json.dumps(first))
    (tmp_path / "second.yaml").write_text(json.dumps(second))
    shutil.copytree(world.root, tmp_path / "data")
    (tmp_path / "data/first/synthetic_scene_pickles").mkdir(parents=True)
    with pytest.raises(SystemExit):  # something is broken
        doctor_tool.main(
            ["--data-root", str(tmp_path / "data"), "--maps-root", str(world.maps), "--missing",
             str(tmp_path / "m.csv"), "--split", str(tmp_path / "first.yaml"), str(tmp_path / "second.yaml")]
        )  # fmt: skip
    said = capsys.readouterr().out
    assert f"split first: 1 of 2 scenes are in no log, first {gone}" in said
    assert "split first: 2 of 2 synthetic scenes are not in" in said and "split second: 1 scenes" in said
    with (tmp_path / "m.csv").open(newline="") as file:
        lost = [tuple(row.values()) for row in csv.DictReader(file)]
    assert lost[:3] == [
        ("first", "original", gone, "in no log"),
        *(("first", "synthetic", token, "no synthetic scene") for token in unmade),
    ]
    assert [row[:3] for row in lost[3:]] == [(name, "original", there) for name in ("first", "second")]
    assert all("CAM_F0" in row[3] for row in lost[3:])
