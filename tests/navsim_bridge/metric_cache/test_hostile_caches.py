"""Scene files and indexes with right checksums that somebody made up, and what is not a file at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metric_cache import CacheError, MetricCache, merge_caches
from navsim_bridge.metric_cache.cache import finish, refuse_loss
from navsim_bridge.metric_cache.container import map_arrays, write_arrays
from navsim_bridge.metric_cache.index import write_index
from navsim_bridge.metric_cache.jobs import log_entry
from navsim_bridge.metric_cache.store import SceneFile, write_scenes
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.coverage import Coverage
from tests.navsim_bridge.traffic.made_up import with_traffic
from tests.paths import GOLDEN_V1, GOLDEN_V2

Arrays = dict[str, NDArray[Any]]


def smallest(scenes: list[MetricScene]) -> MetricScene:
    return min(scenes, key=lambda s: len(s.vertices) + len(s.object_boxes))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Arrays]]:
    """Header and arrays of a file with scenes of NAVSIM v1, of one of v2, and of one with vehicles to move."""
    found = {}
    v1 = smallest([read_golden(path).scene for path in sorted(GOLDEN_V1.glob("*.npz"))])
    v2 = smallest([read_golden_epdms(path).scene for path in sorted(GOLDEN_V2.glob("*.npz"))])
    traffic = with_traffic(read_golden_epdms(GOLDEN_V2 / "public_109_carpark.npz").scene, followers=2)
    for name, scene in (("v1", v1), ("v2", v2), ("traffic", traffic)):
        path = tmp_path_factory.mktemp("written") / f"{name}.scenes"
        write_scenes(path, [scene, dataclasses.replace(scene, token="another")], "test")
        header, arrays, _ = map_arrays(path)
        found[name] = header, arrays
    return found


def read_all(path: Path) -> None:
    file = SceneFile(path)
    for row in range(len(file.tokens)):
        file.scene(row)


ODD = (-1, 0, 1, 2, 7, 255, 2**16 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_made_up_array_is_refused_or_harmless(
    data: st.DataObject, written: dict[str, tuple[dict[str, Any], Arrays]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    header, arrays = written[data.draw(st.sampled_from(["v1", "v2", "traffic"]))]
    arrays, name = dict(arrays), data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    how = data.draw(st.sampled_from(["value", "dtype", "rows", "shape", "gone", "bytes"]))
    if how == "value" and array.size:
        array = array.copy()
        flat = array.reshape(-1)
        value = data.draw(st.sampled_from([*ODD, *(np.nan, np.inf)] if array.dtype.kind == "f" else ODD))
        limits = np.iinfo(array.dtype) if array.dtype.kind != "f" else None
        flat[data.draw(st.integers(0, array.size - 1))] = (
            value if limits is None else min(max(int(value), int(limits.min)), int(limits.max))
        )
    elif how == "dtype":
        array = array.astype(data.draw(st.sampled_from(["|u1", "<u2", "<u4", "<u8", "<i8", "<f8"])))
    elif how == "rows":
        array = np.concatenate([array, array[-1:]]) if data.draw(st.booleans()) else array[:-1]
    elif how == "shape":
        array = array.reshape(data.draw(st.sampled_from([(-1, 1), (1, -1), (-1,)])))
    elif how == "bytes":
        array = np.frombuffer(data.draw(st.binary(max_size=40)), dtype=np.uint8)
    arrays[name] = array
    if how == "gone":
        del arrays[name]
    path = tmp_path_factory.getbasetemp() / "made_up.scenes"
    write_arrays(path, header, arrays)
    with suppress(CacheError):
        read_all(path)


PLACES: list[Any] = [
    ["|O", [1], 0], ["O", [1], 0], ["<f8", [-1], 0], ["<f8", [2**62], 0], ["<f8", [2**32, 2**32], 0], ["<f8", [1], -8],
    ["<f8", [1], 2**40], ["<f8", [1.5], 0], ["<f8", [True], 0], ["<f8", None, 0], ["<f8", [], 0], ["<f8", [1]], None,
    {"<f8": 1}, [["<f8"], [1], 0], ["<f8,<f8", [1], 0], ["<U4", [1], 0], ["<c16", [1], 0], ["M8[s]", [1], 0],
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: json.dumps(place)[:40])
def test_a_made_up_place_of_an_array_is_refused(
    place: Any, written: dict[str, tuple[dict[str, Any], Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, arrays = written["v1"]
    path, dumps = tmp_path / "x.scenes", json.dumps

    def with_place(content: dict[str, Any], **options: Any) -> str:
        return dumps({**content, "arrays": {**content["arrays"], "ego_state": place}}, **options)

    monkeypatch.setattr(json, "dumps", with_place)
    write_arrays(path, header, arrays)
    monkeypatch.undo()
    with pytest.raises(CacheError, match=r"x\.scenes is no scene file as it is written here \("):
        SceneFile(path)


@pytest.mark.parametrize(
    ("name", "add", "problem"),
    [
        ("ego_state", 1e12, "ego_state holds NaN, infinite values or numbers beyond"),
        ("track_size", 1e300, "track_size holds NaN, infinite values or numbers beyond"),
        ("ego_time_us", 10**15, "the reference plan begins at another time"),
        ("reference_times_us", -(10**15), "the reference plan begins at another time"),
    ],
)
def test_numbers_that_no_scene_has_are_refused(
    name: str, add: float, problem: str, written: dict[str, tuple[dict[str, Any], Arrays]], tmp_path: Path
) -> None:
    header, arrays = written["v1"]
    write_arrays(tmp_path / "x.scenes", header, {**arrays, name: arrays[name] + add})
    with pytest.raises(CacheError, match=rf"x\.scenes .*{problem}"):
        SceneFile(tmp_path / "x.scenes")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("track_present", 0, "track_present: not one for each track"),
        ("vehicle_track", 200, "vehicle: of no track of the scene"),
        ("follower", 200, "follower: of no vehicle of the scene"),
        ("follower_line", 200, "follower_line: of no line that is there"),
        ("follower_limit", 0.0, "follower_limit: no speed"),
        ("follower_progress", np.nan, "follower_progress holds NaN"),
        ("line_count", 1, "line_count: they do not share out"),
    ],
)
def test_vehicles_that_cannot_be_moved_are_refused(
    name: str, value: float, problem: str, written: dict[str, tuple[dict[str, Any], Arrays]], tmp_path: Path
) -> None:
    header, arrays = written["traffic"]
    array = arrays[name][1:] if name == "track_present" else np.full_like(arrays[name], value)
    write_arrays(tmp_path / "x.scenes", header, {**arrays, name: array})
    with pytest.raises(CacheError, match=rf"x\.scenes .*{problem}"):
        SceneFile(tmp_path / "x.scenes")


HEADERS: list[dict[str, Any]] = [
    {"format": None}, {"format": "3"}, {"source": None}, {"epdms": 0}, {"epdms": True}, {"provenance": []},
    {"provenance": [7]}, {"provenance": [{"reference": 7}]}, {"exponents": {}}, {"exponents": None},
    {"exponents": {"vertices": [0, 0]}}, {"traffic": 1}, {"traffic": True}, {"traffic": True, "epdms": True},
]  # fmt: skip


@pytest.mark.parametrize("change", HEADERS, ids=str)
def test_a_made_up_header_is_refused(
    change: dict[str, Any], written: dict[str, tuple[dict[str, Any], Arrays]], tmp_path: Path
) -> None:
    header, arrays = written["v1"]
    write_arrays(tmp_path / "x.scenes", {**header, **change}, arrays)
    with pytest.raises(CacheError, match=r"x\.scenes"):
        read_all(tmp_path / "x.scenes")


def test_what_is_nested_too_deep_is_refused(
    written: dict[str, tuple[dict[str, Any], Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, arrays = written["v1"]
    deep = np.frombuffer(b"[" * 100_000 + b"]" * 100_000, dtype=np.uint8)
    write_arrays(tmp_path / "texts.scenes", header, {**arrays, "token": deep})
    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", lambda *_, **__: "[" * 100_000)
        write_arrays(tmp_path / "description.scenes", header, arrays)
    for name in ("texts", "description"):
        with pytest.raises(CacheError, match=rf"{name}\.scenes is no scene file"):
            SceneFile(tmp_path / f"{name}.scenes")


@pytest.mark.parametrize("kind", ["fifo", "folder", "zero"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.scenes"
    {"fifo": os.mkfifo, "folder": os.mkdir, "zero": lambda path: os.symlink("/dev/zero", path)}[kind](path)
    with pytest.raises(CacheError, match=r"x\.scenes is a (FIFO|folder|device), where a file is to be read"):
        SceneFile(path)
    (tmp_path / "x.scenes").rename(tmp_path / "index.json")
    with pytest.raises(CacheError, match=r"index\.json is a (FIFO|folder|device), where a file is to be read"):
        MetricCache(tmp_path)


SOURCE = {"stamp": [1, 2], "source_sha256": "x"}
ABOUT = {"metric": "m", "split": "small", "data_split": "", "reference": "r"}
SHARD = {"selection": "", "tokens": None, "max_scenes": None, "scenes": None, "absent": 0, "missing_logs": 0}


def cache_of(folder: Path, tokens: str = "ab", shard: dict[str, Any] | None = None) -> MetricCache:
    scene = smallest([read_golden(path).scene for path in sorted(GOLDEN_V1.glob("*.npz"))[:8]])
    about: dict[str, Any] = dict(ABOUT)
    if shard is not None:
        about["shard"] = {**SHARD, "allow_missing": False, **shard}
    else:
        about |= Coverage.whole(len(tokens)).as_dict()
    logs = {}
    for token in tokens:
        made = dataclasses.replace(scene, token=token)
        logs[f"log-{token}"] = log_entry(folder / f"log-{token}.scenes", "s", 1, lambda made=made: [made]) | SOURCE  # type: ignore[misc]
    finish(folder, logs, about, maps={})
    return MetricCache(folder)


INDEXES: list[tuple[tuple[str, ...], Any]] = [
    (("logs",), None), (("logs",), []), (("split",), 7), (("num_scenes",), "2"), (("num_scenes",), 3),
    (("num_scenes",), -2), (("maps",), {"x": {"file": "../x"}}), (("fingerprint",), None),
    (("left_out",), {"failed": -1}), (("shard",), []), (("logs", "log-a", "file"), "../log-a.scenes"),
    (("logs", "log-a", "file"), "/log-a.scenes"), (("logs", "log-a", "file"), "log-b.scenes"),
    (("logs", "log-a", "tokens"), "a"), (("logs", "log-a", "tokens"), [1]), (("logs", "log-a", "tokens"), ["b"]),
    (("logs", "log-a", "crc32"), None), (("logs", "log-a", "stamp"), [1]), (("logs", "log-a"), None),
    (("centerlines",), {"x": 1.5}), (("builder",), None), (("format",), "3"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), INDEXES, ids=str)
def test_a_made_up_index_is_refused_with_its_key(key: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    index = cache_of(tmp_path).index
    inside, (*groups, last) = index, key
    for group in groups:
        inside = inside[group]
    inside[last] = value
    write_index(tmp_path, index)
    with pytest.raises(CacheError, match=rf"index\.json.*{key[0]}.*run tools/cache_metrics\.py"):
        MetricCache(tmp_path)


@pytest.mark.parametrize("key", ["stamp", "source_sha256"])
def test_an_index_that_says_half_of_where_a_log_came_from_is_refused(key: str, tmp_path: Path) -> None:
    index = cache_of(tmp_path).index
    del index["logs"]["log-a"][key]
    write_index(tmp_path, index)
    with pytest.raises(CacheError, match=r"index\.json: logs\.log-a: stamp and source_sha256 belong together"):
        MetricCache(tmp_path)


def test_a_file_of_other_scenes_is_not_read_as_those_of_the_index(tmp_path: Path) -> None:
    index = cache_of(tmp_path).index
    shutil.copy(tmp_path / "log-b.scenes", tmp_path / "log-a.scenes")
    index["logs"]["log-a"]["crc32"] = index["logs"]["log-b"]["crc32"]
    write_index(tmp_path, index)
    with pytest.raises(CacheError, match=r"log-a\.scenes holds other scenes than index\.json says"):
        MetricCache(tmp_path).verify()


def test_a_link_out_of_the_cache_is_not_followed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache")
    (tmp_path / "cache/log-a.scenes").rename(tmp_path / "elsewhere")
    (tmp_path / "cache/log-a.scenes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=r"log-a\.scenes is a link that leads out of .*: it is refused"):
        cache.load(["a"])


@pytest.mark.parametrize("name", ["../evil.scenes", "/tmp/evil.scenes", "sub/evil.scenes", "..", "", "a\0b"])
def test_a_merge_writes_nothing_beside_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards/shard-1-of-1"
    index = cache_of(folder, shard={"index": 1, "count": 1}).index
    index["logs"]["log-a"]["file"] = name
    write_index(folder, index)
    (tmp_path / "evil.scenes").write_text("somebody's")
    with pytest.raises(CacheError, match=r"logs\.log-a\.file"):
        merge_caches([tmp_path / "shards"], tmp_path / "merged")
    assert (tmp_path / "evil.scenes").read_text() == "somebody's" and not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "shard", [{"index": 1, "count": 2**31 - 1}, {"index": 2, "count": 1}, {"index": 0, "count": 1}]
)
def test_a_shard_of_another_name_is_refused(shard: dict[str, int], tmp_path: Path) -> None:
    folder = tmp_path / "shard-1-of-1"
    index = cache_of(folder, shard={"index": 1, "count": 1}).index
    index["shard"] |= shard
    write_index(folder, index)
    with pytest.raises(CacheError, match=r"holds shard|shard\.index: expected"):
        merge_caches([tmp_path], tmp_path / "merged")


def test_the_missing_of_many_shards_are_named_in_short(tmp_path: Path) -> None:
    most = 999_999_999
    cache_of(tmp_path / f"shard-1-of-{most}", shard={"index": 1, "count": most})
    with pytest.raises(CacheError, match=rf"{most - 1} of {most} shards are missing: 2, 3, 4") as refused:
        merge_caches([tmp_path], tmp_path / "merged")
    assert len(str(refused.value)) < 400


def test_a_part_does_not_replace_the_scenes_of_more(tmp_path: Path) -> None:
    cache_of(tmp_path)
    refuse_loss(tmp_path, ["a", "b"], Coverage.whole(2).without("missing_scenes", 1))
    refuse_loss(tmp_path, ["a"], Coverage.whole(1))  # another selection of the split
    with pytest.raises(CacheError, match="holds 2 scenes of small, 1 of which would be lost: now it would be 1 of 2"):
        refuse_loss(tmp_path, ["a"], Coverage.whole(2).without("missing_scenes", 1))


def test_a_merge_of_a_part_does_not_replace_the_whole(tmp_path: Path) -> None:
    for number, token in enumerate("ab", 1):
        cache_of(tmp_path / f"shard-{number}-of-2", token, {"index": number, "count": 2})
    whole = merge_caches([tmp_path], tmp_path / "merged").index
    with pytest.raises(CacheError, match="1 of which would be lost"):
        merge_caches([tmp_path / "shard-1-of-2"], tmp_path / "merged", allow_missing=True)
    assert MetricCache(tmp_path / "merged").index == whole


def test_what_an_index_supersedes_is_removed_though_a_run_was_killed_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_of(tmp_path, "ab")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            cache_of(tmp_path, "a")
    assert MetricCache(tmp_path).tokens == ("a",)
    cache_of(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "log-a.scenes"]
