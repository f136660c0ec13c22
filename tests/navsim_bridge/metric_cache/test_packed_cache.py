"""The packed cache: nothing lost, little stored, and no damage unnoticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metric_cache import CacheError, MetricCache
from navsim_bridge.metric_cache.cache import finish
from navsim_bridge.metric_cache.container import map_arrays, write_arrays
from navsim_bridge.metric_cache.fixed_point import pack_column, unpack_column
from navsim_bridge.metric_cache.jobs import log_entry
from navsim_bridge.metric_cache.store import SceneFile, write_scenes
from navsim_bridge.metric_cache.tracks import KeyFrames, code, mask_lengths, positions
from navsim_bridge.pdm.metric_scene import MetricScene, TrafficInputs
from tests.navsim_bridge.traffic.made_up import with_traffic
from tests.paths import GOLDEN_V1, GOLDEN_V2

GOLDEN = sorted(GOLDEN_V1.glob("*.npz"))
LARGEST_SCENE = 60_000
FRAMES = 51


@pytest.fixture(scope="module")
def scenes() -> list[MetricScene]:
    return [read_golden(path).scene for path in GOLDEN]


@pytest.fixture
def small(scenes: list[MetricScene], tmp_path: Path) -> MetricCache:
    """A finished cache of one small scene in one file."""
    scene = min(scenes, key=lambda s: len(s.vertices) + len(s.object_boxes))
    logs = {"log": log_entry(tmp_path / "log.scenes", "source", 1, lambda: [scene])}
    finish(tmp_path, logs, {"split": "small", "data_split": ""}, maps={})
    return MetricCache(tmp_path)


def assert_equal_bits(a: MetricScene, b: MetricScene) -> None:
    for field in dataclasses.fields(a):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, np.ndarray):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), field.name
            assert mine.tobytes() == theirs.tobytes(), field.name
        else:
            assert mine == theirs, field.name


def test_every_kind_of_scene_is_read_back_bit_by_bit_from_60_kb(scenes: list[MetricScene], tmp_path: Path) -> None:
    sizes = []
    for scene in scenes:
        path = tmp_path / f"{scene.log_name}.scenes"
        write_scenes(path, [scene], "test")
        assert_equal_bits(scene, SceneFile(path).scene(0))
        sizes.append(path.stat().st_size)
    assert np.mean(sizes) < LARGEST_SCENE
    write_scenes(tmp_path / "all.scenes", scenes * 2, "test")
    together = SceneFile(tmp_path / "all.scenes")
    for row, scene in enumerate(scenes * 2):
        assert_equal_bits(scene, together.scene(row))
    assert (tmp_path / "all.scenes").stat().st_size < sum(sizes) * 1.5  # maps and lines are stored once


def test_any_flipped_byte_of_a_scene_file_is_found(small: MetricCache) -> None:
    path = small.path / "log.scenes"
    whole = path.read_bytes()
    small.verify()
    positions_of = [*range(64), *np.random.default_rng(0).integers(0, len(whole), 300).tolist(), *range(-8, 0)]
    for at in positions_of:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"log\.scenes"):
            MetricCache(small.path).load(small.tokens)


def test_any_flipped_byte_of_the_index_is_found(small: MetricCache) -> None:
    path = small.path / "index.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"index\.json"):
            MetricCache(small.path)


def test_a_file_cut_off_anywhere_is_found(small: MetricCache) -> None:
    path = small.path / "log.scenes"
    whole = path.read_bytes()
    for length in (0, 1, 15, 16, 20, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CacheError, match=r"log\.scenes is damaged"):
            MetricCache(small.path).verify()
    path.write_bytes(whole + b"\0")
    with pytest.raises(CacheError, match=r"log\.scenes is damaged"):
        MetricCache(small.path).verify()


def test_a_whole_file_of_other_scenes_is_refused(small: MetricCache, scenes: list[MetricScene]) -> None:
    write_scenes(small.path / "log.scenes", scenes[:1], "source")
    with pytest.raises(CacheError, match=r"log\.scenes is not the file that the index lists"):
        MetricCache(small.path).load(small.tokens)


def test_arrays_cannot_be_written_to_by_mistake(small: MetricCache) -> None:
    with pytest.raises(ValueError, match="read-only"):
        small.load(small.tokens)[0].ego_state[0] = 0.0


@given(st.lists(st.floats(width=64), max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_packed_column_is_unpacked_bit_by_bit(values: list[Any]) -> None:
    column = np.array(values, dtype=np.float64)
    packed = pack_column(column)
    if packed is not None:
        assert unpack_column(*packed).tobytes() == column.tobytes()


@given(st.floats(1e5, 5e6), st.lists(st.floats(-50, 50), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_map_coordinates_are_packed(origin: float, steps: list[float]) -> None:
    column = origin + np.cumsum(steps)
    packed = pack_column(column)
    assert packed is not None
    assert unpack_column(*packed).tobytes() == column.tobytes()


def decode(
    mask: NDArray[Any], key_xy: NDArray[np.float64], frame: NDArray[np.int64], track: NDArray[np.int64]
) -> NDArray[np.float64]:
    first = np.cumsum(mask_lengths(mask)) - mask_lengths(mask)
    masks = mask.astype(np.int64)
    return positions(KeyFrames.of(masks, FRAMES), key_xy, first[track], masks[track], frame)


def line(keys: list[int], xy: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of one track seen at ``keys``: interpolated as the observation rules say."""
    frame = np.arange(keys[0] * 5, keys[-1] * 5 + 1)
    before = np.maximum.accumulate([max((k for k in keys if k * 5 <= f), default=keys[0]) for f in frame])
    rows = []
    for f, b in zip(frame, before):
        a = min((k for k in keys if k > b), default=b)
        start, end = xy[keys.index(b)], xy[keys.index(a)]
        rows.append((end - start) / ((a - b) * 0.5) * (f * 0.1 - b * 0.5) + start if a > b else start)
    return frame, np.array(rows)


@given(st.sets(st.integers(0, 10), min_size=2), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_positions_between_sightings_are_given_back_exactly(seen: set[int], seed: int) -> None:
    keys = sorted(seen)
    xy = np.array([6.6e5, 4.0e6]) + np.random.default_rng(seed).uniform(-90, 90, (len(keys), 2))
    frame, rows = line(keys, xy)
    track = np.zeros_like(frame)
    mask, key_xy = code(frame, track, rows, 1, FRAMES)
    assert mask[0] > 0
    assert decode(mask, key_xy, frame, track).tobytes() == rows.tobytes()


def test_tracks_that_do_not_follow_the_rule_are_kept_as_they_are() -> None:
    frame, rows = line([0, 3, 4], np.array([[0.0, 0.0], [30.0, 1.0], [40.0, 7.0]]))
    rows[7, 0] += 1e-9
    mask, key_xy = code(frame, np.zeros_like(frame), rows, 1, FRAMES)
    assert (mask.tolist(), key_xy.shape) == ([0], (0, 2))
    still = np.tile([[5.0, 6.0]], (FRAMES, 1))
    mask, key_xy = code(np.arange(FRAMES), np.zeros(FRAMES, dtype=np.int64), still, 1, FRAMES)
    assert (mask.tolist(), key_xy.tolist()) == ([1], [[5.0, 6.0]])


@pytest.fixture(scope="module")
def moved() -> MetricScene:
    return with_traffic(read_golden_epdms(GOLDEN_V2 / "public_109_carpark.npz").scene, followers=3)


def inputs_of(scene: MetricScene) -> TrafficInputs | None:
    assert scene.v2 is not None
    return scene.v2.traffic


def without(scene: MetricScene) -> MetricScene:
    assert scene.v2 is not None
    return dataclasses.replace(scene, v2=dataclasses.replace(scene.v2, traffic=None))


def test_vehicles_and_their_lanes_are_read_back_bit_by_bit_and_stored_once(moved: MetricScene, tmp_path: Path) -> None:
    nobody = with_traffic(moved, followers=0)
    write_scenes(tmp_path / "one.scenes", [moved], "test")
    write_scenes(tmp_path / "many.scenes", [dataclasses.replace(moved, token=t) for t in "abc"] + [nobody], "test")
    many = SceneFile(tmp_path / "many.scenes")
    for row, scene in enumerate([moved, moved, moved, nobody]):
        found, expected = inputs_of(many.scene(row)), inputs_of(scene)
        assert found is not None and expected is not None
        for field in dataclasses.fields(TrafficInputs):
            mine, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert (mine.dtype, mine.shape, mine.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), field
    points = [map_arrays(tmp_path / f"{name}.scenes")[1]["line_points.0.steps"] for name in ("one", "many")]
    assert len(points[0]) == len(points[1])


def test_caches_of_before_are_read_and_have_no_vehicles_to_move(moved: MetricScene, tmp_path: Path) -> None:
    write_scenes(tmp_path / "now.scenes", [without(moved)], "test")
    header, arrays, _ = map_arrays(tmp_path / "now.scenes")
    assert header.pop("traffic") is False  # they say nothing of it
    write_arrays(tmp_path / "before.scenes", header, arrays)
    found = SceneFile(tmp_path / "before.scenes").scene(0)
    assert inputs_of(found) is None
    np.testing.assert_array_equal(found.object_boxes, moved.object_boxes)


def test_a_file_holds_vehicles_to_move_for_all_scenes_or_for_none(moved: MetricScene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was made by other rules than scene"):
        write_scenes(tmp_path / "x.scenes", [moved, without(moved)], "test")
