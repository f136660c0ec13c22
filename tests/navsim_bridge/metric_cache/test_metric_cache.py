from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvla import kept_open
from navsim_bridge.files.logs import log_path, read_log
from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache, build_scenes, cache, jobs
from navsim_bridge.metric_cache.builder import SceneBuilder, scene_builder
from navsim_bridge.metric_cache.index import write_index
from navsim_bridge.metric_cache.store import SceneFile, write_scenes
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.scenes import SceneRecord, record
from tests.navsim_bridge.conftest import LOG, World
from tests.paths import OPEN_FILES
from tools import cache_metrics


@pytest.fixture(scope="module")
def scenes(world: World) -> list[MetricScene]:
    return list(build_scenes(world.records, world.root, world.maps))


@pytest.fixture
def built(world: World, tmp_path: Path) -> MetricCache:
    return build_metric_cache(world.root, world.maps, world.split, tmp_path / "cache", progress=False)


def assert_equal(a: MetricScene, b: MetricScene) -> None:
    for field in dataclasses.fields(a):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        else:
            assert mine == theirs, field.name


def test_stored_scenes_are_read_back_exactly(scenes: list[MetricScene], built: MetricCache) -> None:
    tokens = [s.token for s in scenes]
    order = [3, 0, 3, 6]
    for token, loaded in zip([tokens[i] for i in order], built.load([tokens[i] for i in order])):
        assert_equal(scenes[tokens.index(token)], loaded)


def test_polygons_with_holes_and_empty_frames_survive(scenes: list[MetricScene], tmp_path: Path) -> None:
    odd = dataclasses.replace(
        scenes[0],
        polygon_tokens=("a", "a"), polygon_types=("LANE", "LANE"),
        polygon_ring_offsets=np.array([0, 2, 3]), ring_offsets=np.array([0, 4, 7, 10]),
        vertices=np.arange(20.0).reshape(10, 2), route_lane_ids=(),
        frame_offsets=np.zeros(52, dtype=np.int64), object_track=np.zeros(0, dtype=np.int64),
        object_boxes=np.zeros((0, 5)), track_tokens=(), track_types=(), track_first_speed=np.zeros(0),
    )  # fmt: skip
    write_scenes(tmp_path / "x.scenes", [odd, scenes[1], odd], "test")
    file = SceneFile(tmp_path / "x.scenes")
    for row, expected in enumerate([odd, scenes[1], odd]):
        assert_equal(expected, file.scene(row))


def test_a_second_run_keeps_what_is_there(built: MetricCache, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(cache, "scene_builder", refuse)
    again = build_metric_cache(world.root, world.maps, world.split, built.path, progress=False)
    assert again.fingerprint == built.fingerprint


def test_an_interrupted_run_leaves_no_cache_and_goes_on_later(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: int, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CacheError, match="holds no finished metric cache"):
        MetricCache(tmp_path)
    assert len(build_metric_cache(world.root, world.maps, world.split, tmp_path, progress=False)) == 7


def test_a_damaged_file_is_named_and_made_again(built: MetricCache, world: World) -> None:
    file = built.path / f"{LOG}.scenes"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5000] + b"\xff" * 64 + whole[5064:], b""):
        file.write_bytes(damaged)
        with pytest.raises(CacheError, match=rf"{LOG}\.scenes is damaged"):
            MetricCache(built.path).load(built.tokens[:1])
        again = build_metric_cache(world.root, world.maps, world.split, built.path, progress=False)
        assert again.fingerprint == built.fingerprint
        assert file.read_bytes() == whole
    file.unlink()
    with pytest.raises(CacheError, match=r"is missing; run tools/cache_metrics\.py again"):
        MetricCache(built.path).load(built.tokens[:1])


def test_another_selection_of_the_same_split_is_built_anew(built: MetricCache, world: World) -> None:
    fewer = dataclasses.replace(world.split, scene_filter=SceneFilter(frame_interval=8))
    rebuilt = build_metric_cache(world.root, world.maps, fewer, built.path, progress=False)
    assert rebuilt.tokens == built.tokens[::2]
    assert rebuilt.fingerprint != built.fingerprint


def test_a_folder_holds_one_split(built: MetricCache, world: World) -> None:
    other = Split("other", "mini", world.split.scene_filter)
    with pytest.raises(CacheError, match="holds the metric cache of split small; choose another folder for other"):
        build_metric_cache(world.root, world.maps, other, built.path, progress=False)


def test_missing_tokens_and_foreign_indexes_are_refused(built: MetricCache) -> None:
    with pytest.raises(CacheError, match=r"1 of 2 scenes are not in the metric cache .*first beef"):
        built.load([built.tokens[0], "beef"])
    index = built.path / "index.json"
    index.write_text(json.dumps({**built.index, "format": 99}))
    with pytest.raises(CacheError, match="format 99"):
        MetricCache(built.path)
    index.write_text("{")
    with pytest.raises(CacheError, match="is damaged"):
        MetricCache(built.path)


def test_open_files_are_let_go_beyond_the_memory_limit(
    built: MetricCache, scenes: list[MetricScene], tmp_path: Path
) -> None:
    logs: dict[str, Any] = {}
    for name, scene, token in zip("abc", scenes, (scenes[0].token, scenes[1].token, "other")):
        crc = write_scenes(tmp_path / f"{name}.scenes", [scene], "test")
        logs[name] = {"file": f"{name}.scenes", "tokens": [token], "crc32": crc, "source": "test"}
    write_index(tmp_path, {**built.index, "logs": logs, "num_scenes": 3})
    small = MetricCache(tmp_path, keep_bytes=1)
    small.load([scenes[0].token, scenes[1].token])
    assert list(small._files._kept) == ["b"]
    with pytest.raises(CacheError, match=r"c\.scenes holds other scenes than index\.json says"):
        small.load(["other"])


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="there is no list of open files")
def test_scenes_of_any_number_of_logs_can_be_held_with_few_open_files(
    built: MetricCache, scenes: list[MetricScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: dict[str, Any] = {}
    for name in "abcdefgh":
        crc = write_scenes(tmp_path / f"{name}.scenes", [dataclasses.replace(scenes[0], token=name)], "test")
        logs[name] = {"file": f"{name}.scenes", "tokens": [name], "crc32": crc, "source": "test"}
    write_index(tmp_path, {**built.index, "logs": logs, "num_scenes": 8})
    monkeypatch.setattr(kept_open, "most_open", lambda: 2)
    many = MetricCache(tmp_path)
    before = len(list(OPEN_FILES.iterdir()))
    held = many.load(many.tokens)
    assert len(held) == 8 and len(list(OPEN_FILES.iterdir())) <= before + 2


def test_scenes_that_cannot_be_scored_say_why(world: World) -> None:
    log = read_log(log_path(world.root, "mini", LOG))
    short = record(log, "mini", 0, 4, 8)
    with pytest.raises(ValueError, match=f"scene {short.token} of log {LOG}: it has 8 future frames; scoring needs 10"):
        list(build_scenes([short], world.root, world.maps))
    lost = dataclasses.replace(world.records[0], route=("nowhere",))
    with pytest.raises(ValueError, match=f"scene {lost.token} .*route names roadblock nowhere"):
        list(build_scenes([lost], world.root, world.maps))


def test_the_tool_builds_a_cache(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cache"
    arguments = ["--split", "small", "--out", str(out), "--data-root", str(world.root), "--maps-root", str(world.maps)]
    cache_metrics.main([*arguments, "--workers", "2"])
    assert "7 scenes of small" in capsys.readouterr().out
    assert MetricCache(out).provenance["reference"] == "PDM-Closed (navsim 1.1)"
    with pytest.raises(SystemExit, match="no split 'nope'"):
        cache_metrics.main([*arguments, "--split", "nope"])


@pytest.fixture
def two_logs(world: World) -> Callable[..., Any]:
    def write(root: Path) -> None:
        for name in ("a", "b"):
            frames = load_plain_pickle(log_path(world.root, "mini", LOG))
            for frame in frames:
                frame["token"] = name + frame["token"][1:]
            log_path(root, "mini", name).parent.mkdir(parents=True, exist_ok=True)
            log_path(root, "mini", name).write_bytes(pickle.dumps(frames))

    return write


def test_several_processes_write_the_same_cache_as_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_logs: Callable[..., Any]
) -> None:
    two_logs(tmp_path)
    alone = build_metric_cache(tmp_path, world.maps, world.split, tmp_path / "alone", progress=False)
    monkeypatch.setattr(jobs, "SCENES_PER_PROCESS", 1)
    together = build_metric_cache(tmp_path, world.maps, world.split, tmp_path / "together", workers=2, progress=False)
    assert together.index == alone.index
    assert len(together) == 14


def test_changed_sources_are_noticed_and_touched_ones_are_not(world: World, tmp_path: Path) -> None:
    for part in ("navsim_logs", "maps"):
        shutil.copytree(world.root / part, tmp_path / part)
    maps = tmp_path / "maps"
    built = build_metric_cache(tmp_path, maps, world.split, tmp_path / "cache", progress=False)
    log = log_path(tmp_path, "mini", LOG)
    for path in (log, next(maps.glob("*/*/map.gpkg"))):
        os.utime(path, ns=(0, 0))
        built.check_sources(tmp_path, maps)
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0")
        with pytest.raises(CacheError, match=rf"older than its sources: 1 changed or missing, first .*{path.name}"):
            built.check_sources(tmp_path, maps)
        path.write_bytes(whole)
    log.unlink()
    with pytest.raises(CacheError, match=LOG):
        built.check_sources(tmp_path, maps)


def test_a_cache_of_an_older_format_is_built_anew(built: MetricCache, world: World) -> None:
    old = built.path / f"{LOG}.npz"
    old.write_bytes(b"of format 1")
    index = {"format": 1, "builder": 1, "split": "small", "data_split": "mini", "logs": {LOG: {"file": old.name}}}
    (built.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CacheError, match=r"format 1 of builder 1, expected .* --split small --out"):
        MetricCache(built.path)
    assert len(build_metric_cache(world.root, world.maps, world.split, built.path, progress=False)) == 7
    assert sorted(p.name for p in built.path.iterdir()) == [f"{LOG}.scenes", "index.json"]


def test_logs_that_were_done_when_a_run_was_killed_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_logs: Callable[..., Any]
) -> None:
    two_logs(tmp_path)
    built = []

    def killed_at_the_second(records: tuple[SceneRecord, ...], *roots: Any) -> SceneBuilder:
        built.append(records[0].log_name)
        if len(built) == 2:
            raise KeyboardInterrupt
        return scene_builder(records, *roots)

    monkeypatch.setattr(cache, "scene_builder", killed_at_the_second)
    out = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build_metric_cache(tmp_path, world.maps, world.split, out, progress=False)
    (out / ".b.scenes.x1y2").write_bytes(b"half a file")
    assert len(build_metric_cache(tmp_path, world.maps, world.split, out, progress=False)) == 14
    assert built == ["a", "b", "b"]
    assert sorted(p.name for p in out.iterdir()) == ["a.scenes", "b.scenes", "index.json"]
