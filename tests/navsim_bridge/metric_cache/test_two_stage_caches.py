"""Caches of both stages: built from logs, maps and synthetic scenes, or read from the devkit's, they are the same."""

from __future__ import annotations

import dataclasses
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_bridge.files.pickle_reader import unpickle_plain
from navsim_bridge.files.stand_in import StandIn
from navsim_bridge.files.synthetic_scenes import read_synthetic_scene
from navsim_bridge.metric_cache import (
    CacheError,
    MetricCache,
    build_metric_cache,
    build_scenes,
    convert_official_cache,
    merge_caches,
)
from navsim_bridge.metric_cache.official import OfficialCache, OfficialCacheError, read_official_cache
from navsim_bridge.metric_cache.official_parts import KNOWN
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.shard import Shard
from tests.navsim_bridge.two_stage_world import LOG, TwoStageWorld
from tests.paths import FIXTURES

NOW, SYNTHETIC = "30ee9b806e291aa2", "00f32ab94de711d90"
TRACKS = ("frame_offsets", "object_track", "object_boxes", "track_tokens", "track_types", "track_first_speed")


@pytest.fixture(scope="module")
def built(two_stages: TwoStageWorld) -> dict[str, MetricScene]:
    scenes = build_scenes(two_stages.records, two_stages.data, two_stages.maps, NAVSIM_V2)
    return {scene.token: scene for scene in scenes}


@pytest.fixture(scope="module")
def read(two_stages: TwoStageWorld) -> dict[str, MetricScene]:
    cache = OfficialCache(two_stages.official_cache)
    return {token: cache.read(token, two_stages.maps) for token in cache}


def content(scene: MetricScene) -> dict[str, Any]:
    """Every value by name; objects in an order of their own, since that of the devkit's tracks is not told by files."""
    assert scene.v2 is not None and scene.v2.traffic is not None
    tokens, order = np.array(scene.track_tokens), np.argsort(scene.track_tokens)
    frame = np.repeat(np.arange(len(scene.frame_offsets) - 1), np.diff(scene.frame_offsets))
    rows = np.lexsort((tokens[scene.object_track], frame))
    found = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene) if f.name not in (*TRACKS, "v2")}
    found |= {f.name: getattr(scene.v2, f.name) for f in dataclasses.fields(scene.v2) if f.name != "traffic"}
    found |= {f.name: getattr(scene.v2.traffic, f.name) for f in dataclasses.fields(scene.v2.traffic)}
    return found | {
        "frames": frame[rows],
        "boxes": scene.object_boxes[rows],
        "tracks": tokens[scene.object_track][rows],
        "types": np.array(scene.track_types)[order],
        "first_speed": scene.track_first_speed[order],
        "present": scene.v2.traffic.present[order],
        "vehicle_track": tokens[scene.v2.traffic.vehicle_track],
    }


def test_scenes_from_raw_files_are_those_of_the_devkits_caches(
    built: dict[str, MetricScene], read: dict[str, MetricScene]
) -> None:
    assert len(built) == 8 and set(built) == set(read)
    for token, scene in built.items():
        ours, theirs = content(scene), content(read[token])
        for name in ours.keys() - {"provenance"}:
            mine, other = ours[name], theirs[name]
            if isinstance(mine, np.ndarray) and mine.dtype.kind == "f":
                np.testing.assert_allclose(mine, other, rtol=0, atol=2e-9, err_msg=f"{token} {name}")
            else:
                np.testing.assert_array_equal(mine, other, err_msg=f"{token} {name}")
    assert any(scene.v2 is not None and scene.v2.light_tokens for scene in built.values())
    assert any(len(content(scene)["follower"]) > 2 for scene in built.values())


def test_synthetic_scenes_have_no_human(built: dict[str, MetricScene]) -> None:
    for token, scene in built.items():
        assert scene.v2 is not None
        assert (scene.v2.human_plan is None) == (len(token) == 17)


def test_both_are_packed_and_read_back_bit_by_bit(
    two_stages: TwoStageWorld, built: dict[str, MetricScene], tmp_path: Path
) -> None:
    cache = build_metric_cache(
        two_stages.data, two_stages.maps, two_stages.split, tmp_path / "cache", progress=False, rules=NAVSIM_V2
    )
    assert cache.tokens == tuple(r.token for r in two_stages.records)
    for scene in cache.load(cache.tokens):
        mine, other = content(built[scene.token]), content(scene)
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name], err_msg=f"{scene.token} {name}")
    converted = convert_official_cache(
        two_stages.official_cache, tmp_path / "converted", progress=False, maps_root=two_stages.maps
    )
    assert set(converted.tokens) == set(cache.tokens) and converted.metric == cache.metric == NAVSIM_V2.name


def test_shards_of_a_split_of_two_stages_merge_into_its_cache(two_stages: TwoStageWorld, tmp_path: Path) -> None:
    where = two_stages.data, two_stages.maps, two_stages.split
    whole = build_metric_cache(*where, tmp_path / "whole", progress=False, rules=NAVSIM_V2)
    for index in (1, 2):  # one of them has no log
        build_metric_cache(*where, tmp_path / "parts", progress=False, rules=NAVSIM_V2, shard=Shard(index, 2))
    merged = merge_caches([tmp_path / "parts"], tmp_path / "merged")
    assert merged.index == whole.index


def test_a_changed_scene_makes_the_cache_stale_and_is_cached_again(two_stages: TwoStageWorld, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(two_stages.data, data)
    split = load_split(two_stages.split_file, data)
    cache = build_metric_cache(data, data / "maps", split, tmp_path / "cache", progress=False, rules=NAVSIM_V2)
    cache.check_sources(data, data / "maps")
    shutil.move(data, tmp_path / "moved")
    cache.check_sources(tmp_path / "moved", tmp_path / "moved/maps")
    shutil.move(tmp_path / "moved", data)
    file = data / f"two_stage/synthetic_scene_pickles/{SYNTHETIC}.pkl"
    file.write_bytes(content := file.read_bytes())
    cache.check_sources(data, data / "maps")  # written again, with the same content
    now = int(read_synthetic_scene(file).log.times_us[3])
    changed = content.replace(now.to_bytes(7, "little"), (now + 1).to_bytes(7, "little"))
    file.write_bytes(changed)
    with pytest.raises(
        CacheError, match=rf"older than its sources: 1 changed or missing, first synthetic scene {file}"
    ):
        cache.check_sources(data, data / "maps")
    again = build_metric_cache(data, data / "maps", split, tmp_path / "cache", progress=False, rules=NAVSIM_V2)
    assert again.load([SYNTHETIC])[0].ego_time_us == now + 1


def test_a_scene_that_tells_too_little_of_what_follows_is_named(
    two_stages: TwoStageWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_bridge.files import synthetic_scenes

    (record,) = [r for r in two_stages.records if r.token == SYNTHETIC]
    load = synthetic_scenes.load_plain_pickle

    def shortened(*args: Any) -> Any:
        raw = load(*args)
        del raw["extended_detections_tracks"][7:]
        return raw

    monkeypatch.setattr(synthetic_scenes, "load_plain_pickle", shortened)
    synthetic_scenes._kept.cache_clear()
    assert record.synthetic is not None
    said = rf"synthetic scene {SYNTHETIC} of log {LOG}: {record.synthetic.file} tells of 7 frames .*; scoring needs 8"
    with pytest.raises(ValueError, match=said):
        list(build_scenes([record], two_stages.data, two_stages.maps, NAVSIM_V2))
    synthetic_scenes._kept.cache_clear()


@pytest.fixture
def official(two_stages: TwoStageWorld, tmp_path: Path) -> OfficialCache:
    """The devkit's caches, to be changed."""
    shutil.copytree(two_stages.official_cache, tmp_path / "official")
    return OfficialCache(tmp_path / "official")


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    """Puts a value at a path of attributes, and of numbers of what a class was called with or of a list."""

    def change(found: Any) -> None:
        for part in path[:-1]:
            if isinstance(part, str):
                found = vars(found)[part]
            else:
                found = found.args[part] if isinstance(found, StandIn) else found[part]
        if isinstance(path[-1], str):
            setattr(found, path[-1], value)
        else:
            found[path[-1]] = value

    return change


SEEN = ("observation", "_detections_tracks")
FIRST = (*SEEN, 0, "tracked_objects", "tracked_objects", 0)


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: delattr(c, "scene_type"), "navsim v2 writes: MetricCache: expected an object with 'scene_type'"),
    (at("scene_type", "args", value=(2,)), r"MetricCache\.scene_type\[0\]: expected 0 or 1, found 2"),
    (at("human_trajectory", value=None), r"MetricCache\.human_trajectory: expected an object, found None"),
    (at("human_trajectory", "poses", value=np.zeros((8, 2))), r"human_trajectory\.poses: expected numbers \(8, 3\)"),
    (at("human_trajectory", "poses", value=np.full((8, 3), np.nan)), "human_plan"),
    (at("human_trajectory", "trajectory_sampling", "num_poses", value=4), "expected 8 poses 0.5 s apart"),
    (at("past_human_trajectory", "args", value=([],)), "past"),
    (at(*SEEN, value=[]), r"observation\._detections_tracks: expected 41 object frames at sampling 1"),
    (at("observation", "_collided_track_ids", value=["a"]), "expected no objects that are marked as collided"),
    (at(*FIRST, "_box", "_width", value=np.inf), r"tracked_objects\[0\]\._box\._width: expected a number"),
    (at(*FIRST, "_metadata", "track_token", value=5), r"_metadata\.track_token: expected a text"),
    (at("observation", "_occupancy_maps_tl", value=[]), "_occupancy_maps_tl: expected 41 frames"),
    (at("observation", "_occupancy_maps_tl", 3, value=([],)), r"_occupancy_maps_tl\[3\]: expected tokens and polygons"),
    (at("observation", "_occupancy_maps_tl", 3, value=(["car"], [5])), "expected as many tokens red_light_"),
    (at("current_tracked_objects", value=[]), "current_tracked_objects: expected one frame"),
    (lambda c: c.current_tracked_objects[0].tracked_objects.tracked_objects.append(
        c.current_tracked_objects[0].tracked_objects.tracked_objects[0]), "expected objects of the observation, each"),
    (at("map_parameters", "map_name", value="../mars"), r"map_parameters\.map_name: expected one of sg-one-north"),
])  # fmt: skip
def test_content_that_is_not_as_the_devkit_writes_it_is_named(
    official: OfficialCache, two_stages: TwoStageWorld, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], object], message: str,
) -> None:  # fmt: skip
    file = official.files[NOW]
    cache = unpickle_plain(lzma.decompress(file.read_bytes()), file, KNOWN)
    change(cache)
    monkeypatch.setattr("navsim_bridge.metric_cache.official.unpickle_plain", lambda *_: cache)
    with pytest.raises(OfficialCacheError, match=rf"^token {NOW}: {file}: .*{message}") as raised:
        official.read(NOW, two_stages.maps)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 800


def test_where_the_maps_are_is_in_the_file_or_said(
    official: OfficialCache, two_stages: TwoStageWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_stages.root)  # the files say data/maps
    there = official.read(SYNTHETIC)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OfficialCacheError, match=r"no map index .*\(map_root in the file\); say with --maps-root where"
    ):
        official.read(SYNTHETIC)
    with pytest.raises(FileNotFoundError, match=r"need the maps, and there is no data/maps/.*: say with --maps-root"):
        convert_official_cache(official.folder, tmp_path / "out", progress=False)
    assert not (tmp_path / "out/index.json").exists()
    said = official.read(SYNTHETIC, two_stages.maps)
    assert there.v2 is not None and said.v2 is not None and said.v2.traffic is not None
    np.testing.assert_array_equal(content(there)["line_points"], content(said)["line_points"])


def test_caches_of_both_versions_are_kept_apart(
    official: OfficialCache, two_stages: TwoStageWorld, tmp_path: Path
) -> None:
    of_v1 = next((FIXTURES / "official_metric_cache_v1").glob("*/*/*/metric_cache.pkl"))
    with pytest.raises(
        OfficialCacheError, match=r"this is a cache of navsim v1\.1, among others of v2: keep them apart"
    ):
        read_official_cache(of_v1, "v2", two_stages.maps)
    (official.folder / "log/unknown/a").mkdir(parents=True)
    shutil.copy(of_v1, official.folder / "log/unknown/a")
    with pytest.raises(OfficialCacheError, match=r"1 of 9 scenes could not be converted; first: token a: .*v1\.1"):
        convert_official_cache(official.folder, tmp_path / "out", progress=False, maps_root=two_stages.maps)
    assert len(MetricCache(tmp_path / "out")) == 8
