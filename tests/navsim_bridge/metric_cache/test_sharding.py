from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_bridge.files.logs import log_path
from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.metric_cache import (
    CacheError,
    MetricCache,
    build_metric_cache,
    jobs,
    merge_caches,
)
from navsim_bridge.metric_cache.builder import SceneBuilder, scene_builder
from navsim_bridge.metric_cache.index import write_index
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.shard import Shard
from tests.navsim_bridge.conftest import LOG, World
from tools import cache_metrics

RULES = SceneFilter(frame_interval=8)


@pytest.fixture(scope="module")
def five_logs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five logs of four scenes each, with tokens of their own."""
    root = tmp_path_factory.mktemp("five")
    for name in "abcde":
        frames = load_plain_pickle(log_path(world.root, "mini", LOG))
        for frame in frames:
            frame["token"] = name + frame["token"][1:]
        log_path(root, "mini", name).parent.mkdir(parents=True, exist_ok=True)
        log_path(root, "mini", name).write_bytes(pickle.dumps(frames))
    return root


@pytest.fixture
def build(five_logs: Path, world: World, tmp_path: Path) -> Callable[..., Any]:
    def run(out: str, rules: SceneFilter = RULES, **options: Any) -> MetricCache:
        return build_metric_cache(
            five_logs, world.maps, Split("five", "mini", rules), tmp_path / out, progress=False, **options
        )

    return run


@pytest.fixture(scope="module")
def whole(five_logs: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> MetricCache:
    out = tmp_path_factory.mktemp("whole")
    return build_metric_cache(five_logs, world.maps, Split("five", "mini", RULES), out, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_shards_are_named_from_1_and_together_take_everything_once() -> None:
    shards = [Shard(k, 3) for k in (1, 2, 3)]
    assert sorted(i for shard in shards for i in shard.take(range(11))) == list(range(11))
    assert Shard.parse("3/16") == Shard(3, 16)
    assert Shard(3, 16).folder == "shard-03-of-16"
    assert Shard.of_folder("shard-03-of-16") == Shard(3, 16)
    assert Shard.of_folder("shards") is None
    for wrong in ("0/3", "4/3", "3", "a/b", "-1/3", "1/0"):
        with pytest.raises(ValueError, match="expected K/N with K from 1 to N, such as 3/16"):
            Shard.parse(wrong)


def test_launched_processes_take_their_shard_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Shard.from_environment() is None
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert Shard.from_environment() == Shard(3, 16)
    monkeypatch.setenv("RANK", "16")
    with pytest.raises(ValueError, match="RANK is '16' and WORLD_SIZE '16'"):
        Shard.from_environment()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Shard.from_environment() is None


def test_merged_shards_are_the_cache_made_in_one_go_byte_for_byte(
    build: Callable[..., Any], whole: MetricCache, tmp_path: Path
) -> None:
    for k in (2, 1, 3):
        build("out", shard=Shard(k, 3))
    merged = merge_caches([tmp_path / "out"], tmp_path / "out")
    assert contents(merged.path) == contents(whole.path)
    shutil.move(tmp_path / "out/shard-2-of-3", tmp_path / "elsewhere/shard-2-of-3")
    copied = merge_caches([tmp_path / "elsewhere/shard-2-of-3", tmp_path / "out"], tmp_path / "copied")
    assert contents(copied.path) == contents(whole.path)


@pytest.mark.parametrize(("limit", "listed", "logs"), [
    (6, None, None), (100, None, None), (6, None, ("a", "b", "c", "gone")), (100, None, ("a", "b", "gone")),
    (None, (1, 7, 15, -1), None), (None, (1, 7, 15, -1), ("a", "b", "d", "gone")),
    (3, (1, 7, 15, -1), None), (2, (1, 7, 15, -1), None), (3, (1, 7, 19, -1), None),
    (4, (1, 7, -1), ("a", "b", "gone")),
])  # fmt: skip
def test_merged_shards_say_as_much_of_the_split_as_the_cache_made_in_one_go(
    build: Callable[..., Any],
    whole: MetricCache,
    tmp_path: Path,
    limit: int | None,
    listed: tuple[Any, ...] | None,
    logs: tuple[Any, ...] | None,
) -> None:
    tokens = None if listed is None else tuple("beef" if i < 0 else whole.tokens[i] for i in listed)
    rules = dataclasses.replace(RULES, max_scenes=limit, tokens=tokens, log_names=logs)
    alone = build("alone", rules, allow_missing=True)
    for k in (1, 2):
        build("out", rules, allow_missing=True, shard=Shard(k, 2))
    merged = merge_caches([tmp_path / "out"], tmp_path / "out")
    assert contents(merged.path) == contents(alone.path)


def test_shards_of_an_older_version_are_made_again(build: Callable[..., Any], tmp_path: Path) -> None:
    for k in (1, 2):
        build("out", shard=Shard(k, 2))
    folder = tmp_path / "out/shard-2-of-2"
    index = MetricCache(folder).index
    del index["shard"]["scenes"]
    write_index(folder, index)
    with pytest.raises(CacheError, match=r"shard-2-of-2 was made by an older version, .* make it again"):
        merge_caches([tmp_path / "out"], tmp_path / "out")
    build("out", shard=Shard(2, 2))
    merge_caches([tmp_path / "out"], tmp_path / "out")


def test_more_shards_than_logs_leave_some_empty(build: Callable[..., Any], whole: MetricCache, tmp_path: Path) -> None:
    for k in range(1, 8):
        build("out", shard=Shard(k, 7))
    assert len(MetricCache(tmp_path / "out/shard-7-of-7")) == 0
    assert merge_caches([tmp_path / "out"], tmp_path / "merged").index == whole.index


def test_the_first_so_many_scenes_are_those_of_the_whole_split(build: Callable[..., Any], tmp_path: Path) -> None:
    rules = dataclasses.replace(RULES, max_scenes=6)
    alone = build("alone", rules)
    for k in (1, 2):
        build("out", rules, shard=Shard(k, 2))
    assert merge_caches([tmp_path / "out"], tmp_path / "out").index == alone.index
    assert len(alone) == 6


def test_what_does_not_belong_together_is_not_merged(build: Callable[..., Any], tmp_path: Path) -> None:
    for k in (1, 3):
        build("out", shard=Shard(k, 3))
    out = tmp_path / "out"
    with pytest.raises(CacheError, match=r"1 of 3 shards are missing: 2\. .*--allow-missing"):
        merge_caches([out], out)
    assert len(merge_caches([out], tmp_path / "rest", allow_missing=True)) == len(build("all")) - 4 * 2
    with pytest.raises(CacheError, match="shard 1 is there twice"):
        merge_caches([out, out / "shard-1-of-3"], out)
    build("out", dataclasses.replace(RULES, frame_interval=16), shard=Shard(2, 3))
    with pytest.raises(CacheError, match="shard-2-of-3 was made with another selection of logs and scenes"):
        merge_caches([out], out)
    shutil.rmtree(out / "shard-2-of-3")
    build("out", shard=Shard(2, 4))
    with pytest.raises(CacheError, match="another count of shards"):
        merge_caches([out], out)
    with pytest.raises(FileNotFoundError, match="no shard of a metric cache in"):
        merge_caches([tmp_path / "all"], out)


def test_a_damaged_shard_is_named(build: Callable[..., Any], tmp_path: Path) -> None:
    for k in (1, 2):
        build("out", shard=Shard(k, 2))
    file = tmp_path / "out/shard-1-of-2/c.scenes"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CacheError, match=r"shard-1-of-2/c\.scenes is damaged"):
        merge_caches([tmp_path / "out"], tmp_path / "merged")
    assert not (tmp_path / "merged/index.json").exists()


def test_tokens_that_no_shard_has_are_counted_when_merging(
    build: Callable[..., Any], whole: MetricCache, tmp_path: Path
) -> None:
    rules = dataclasses.replace(RULES, tokens=(*whole.tokens[:5], "beef"))
    for k in (1, 2):
        build("out", rules, shard=Shard(k, 2))
    with pytest.raises(CacheError, match=r"split five: 5 of 6 scenes are in the shards"):
        merge_caches([tmp_path / "out"], tmp_path / "out")
    assert len(merge_caches([tmp_path / "out"], tmp_path / "out", allow_missing=True)) == 5


def test_a_token_in_two_logs_is_refused_when_merging(five_logs: Path, world: World, tmp_path: Path) -> None:
    for name in "ab":
        path = log_path(tmp_path, "mini", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(log_path(five_logs, "mini", "a"), path)
    split = Split("twice", "mini", dataclasses.replace(RULES, frame_interval=40))
    for k in (1, 2):
        build_metric_cache(tmp_path, world.maps, split, tmp_path / "out", progress=False, shard=Shard(k, 2))
    with pytest.raises(CacheError, match="names two scenes, in a and b"):
        merge_caches([tmp_path / "out"], tmp_path / "out")


def test_a_killed_run_keeps_the_finished_part_of_a_long_log(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SCENES_PER_PART", 3)
    built: list[Any] = []

    build = SceneBuilder.build

    def killed_at_the_third(
        builder: SceneBuilder, records: tuple[Any, ...], before: tuple[Any, ...]
    ) -> list[MetricScene]:
        if len(built) == 2:
            raise KeyboardInterrupt
        built.append([r.token for r in records])
        return build(builder, records, before)

    with monkeypatch.context() as patched:
        patched.setattr(SceneBuilder, "build", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False)
    assert [len(part) for part in built] == [3, 3]

    def only_the_rest(builder: SceneBuilder, records: tuple[Any, ...], before: tuple[Any, ...]) -> list[MetricScene]:
        built.append([r.token for r in records])
        return build(builder, records, before)

    monkeypatch.setattr(SceneBuilder, "build", only_the_rest)
    resumed = build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False)
    assert [token for part in built for token in part] == [r.token for r in world.records]
    monkeypatch.setattr(jobs, "SCENES_PER_PART", 100)
    alone = build_metric_cache(world.root, world.maps, world.split, tmp_path / "alone", progress=False)
    shutil.rmtree(tmp_path / "alone")
    assert resumed.fingerprint == alone.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{LOG}.scenes", "index.json"]


def test_the_tool_makes_and_merges_shards(
    five_logs: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "five.yaml"
    split.write_text(json.dumps({"data_split": "mini", "scene_filter": {"frame_interval": 40}}))
    out = str(tmp_path / "out")
    arguments = ["--split", str(split), "--data-root", str(five_logs), "--maps-root", str(world.maps), "--out", out]
    cache_metrics.main([*arguments, "--shard", "1/2"])
    assert "shard 1/2; when all are there: tools/cache_metrics.py --merge" in capsys.readouterr().out
    with pytest.raises(CacheError, match=r"--merge .* to join its 1 shards"):
        MetricCache(out)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    cache_metrics.main(arguments)
    with pytest.raises(SystemExit, match="run this one without launcher"):
        cache_metrics.main(["--merge", out, "--out", out])
    monkeypatch.delenv("RANK")
    cache_metrics.main(["--merge", out, "--out", out])
    assert "5 scenes of five" in capsys.readouterr().out
    assert len(MetricCache(out)) == 5
    with pytest.raises(SystemExit, match="give one of --split, --official-cache and --merge"):
        cache_metrics.main([*arguments, "--merge", out])


def test_a_log_in_parts_ignores_what_the_whole_log_ignores(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at_twice: list[Any] = []
    monkeypatch.setattr("navsim_bridge.metric_cache.builder.forecast", looked_at_twice.append)
    parts = scene_builder(world.records, world.root, world.maps)
    first, second = parts.build(world.records[:3]), parts.build(world.records[3:], world.records[:3])
    monkeypatch.undo()
    assert looked_at_twice == []
    again = scene_builder(world.records, world.root, world.maps).build(world.records[3:], world.records[:3])
    whole = scene_builder(world.records, world.root, world.maps).build(world.records)
    for mine, theirs in zip([*first, *second, *first, *again], [*whole, *whole]):
        assert mine.token == theirs.token
        np.testing.assert_array_equal(mine.reference_states, theirs.reference_states)
