"""The devkit's own metric caches, read without the devkit."""

from __future__ import annotations

import lzma
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from navsim_bridge.files.nuplan_objects import Value
from navsim_bridge.files.pickle_reader import unpickle_plain
from navsim_bridge.golden.v1 import FRAGILE_COLUMNS
from navsim_bridge.metric_cache import CacheError, MetricCache, convert_official_cache, jobs, official
from navsim_bridge.metric_cache.official import OfficialCache, OfficialCacheError, read_official_cache
from navsim_bridge.metric_cache.official_parts import KNOWN
from navsim_bridge.metric_cache.official_parts import polygon as polygon_of
from navsim_bridge.pdm import SUB_SCORES, SceneBatch, score_plans
from tests.paths import FIXTURES
from tools import cache_metrics

FIXTURE = FIXTURES / "official_metric_cache_v1"
CURVE, DIRECT_TRACKS, DEGENERATE = "726dad45000003e9", "a4011967000003ef", "7a45b068000003f6"


@pytest.fixture
def moved(tmp_path: Path) -> OfficialCache:
    """A copy elsewhere; its metadata still names the paths of another machine."""
    folder = tmp_path / "moved"
    shutil.copytree(FIXTURE, folder)
    return OfficialCache(folder)


def official_scores(token: str) -> dict[str, Any]:
    with np.load(FIXTURE / "scores" / f"{token}.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("token", [CURVE, DIRECT_TRACKS, DEGENERATE])
def test_plans_get_the_scores_that_the_devkit_gave(token: str) -> None:
    expected = official_scores(token)
    scene = OfficialCache(FIXTURE).read(token)
    found = score_plans(SceneBatch.from_scenes([scene]), torch.from_numpy(expected["proposals"])[None])
    for name in SUB_SCORES:
        firm = ~expected["dbg_fragile"][:, list(FRAGILE_COLUMNS[name])].any(axis=1)
        ours, theirs = getattr(found, name)[0].numpy()[firm], expected[f"res_{name}"][firm]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=name)
        assert len(ours) >= 20


@pytest.mark.parametrize("token", [CURVE, DIRECT_TRACKS, DEGENERATE])
def test_boxes_are_taken_back_from_their_corners(token: str) -> None:
    boxes, expected = OfficialCache(FIXTURE).read(token).object_boxes, official_scores(token)["obj_boxes"]
    np.testing.assert_allclose(boxes[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]], rtol=0, atol=2e-9)
    turn = np.mod(boxes[:, 2] - expected[:, 2] + np.pi, 2 * np.pi) - np.pi
    assert np.abs(turn).max() < 1e-8


def test_a_moved_cache_needs_no_metadata(moved: OfficialCache) -> None:
    assert "/data/navsim" in next((moved.folder / "metadata").iterdir()).read_text()
    assert sorted(moved.tokens) == sorted([CURVE, DIRECT_TRACKS, DEGENERATE])
    scene = moved.read(CURVE)
    assert (scene.token, scene.log_name) == (CURVE, "2021.05.12.22.00.38_veh-35_00000_synthetic")
    assert scene.provenance["reference"].startswith("PDM-Closed")
    with pytest.raises(FileNotFoundError, match="no official metric cache in"):
        OfficialCache(moved.folder / "metadata")


class Foreign:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_class_that_is_not_known_is_refused_by_name_and_does_not_run(moved: OfficialCache, tmp_path: Path) -> None:
    file = moved.files[CURVE]
    file.write_bytes(lzma.compress(pickle.dumps(Foreign(tmp_path / "made"))))
    name = rf"{os.mkdir.__module__}\.mkdir"
    with pytest.raises(OfficialCacheError, match=rf"token {CURVE}: {file}: .* {name}"):
        read_official_cache(file)
    assert not (tmp_path / "made").exists()


def test_no_known_name_is_foreign_code() -> None:
    for (module, _), stand_in in KNOWN.items():
        assert stand_in.__module__ == "navsim_bridge.files.nuplan_objects"
        assert module.split(".")[0] in ("navsim", "nuplan", "shapely", "pathlib")


def test_what_a_cache_of_version_2_lacks_is_named(moved: OfficialCache) -> None:
    data = lzma.decompress(moved.files[CURVE].read_bytes())
    field = b"\x8c\x0eroute_lane_ids"
    assert data.count(field) == 1
    moved.files[CURVE].write_bytes(lzma.compress(data.replace(field, b"\x8c\x0emap_parameters")))
    with pytest.raises(
        OfficialCacheError, match=rf"token {CURVE}: .*navsim v2 writes: MetricCache: .*'route_lane_ids'"
    ):
        moved.read(CURVE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not compressed",
        lzma.compress(b"no pickle"),
        lzma.compress(pickle.dumps({"a": 1})),
        lzma.compress(pickle.dumps([np.zeros(3)])),
    ],
)
def test_a_bad_file_is_named_with_its_token(moved: OfficialCache, content: bytes) -> None:
    moved.files[DEGENERATE].write_bytes(content)
    with pytest.raises(OfficialCacheError, match=rf"^token {DEGENERATE}: {moved.files[DEGENERATE]}: ") as raised:
        moved.read(DEGENERATE)
    assert "\n" not in str(raised.value)


def test_values_that_cannot_be_scored_are_refused(moved: OfficialCache) -> None:
    data = lzma.decompress(moved.files[CURVE].read_bytes())
    number = moved.read(CURVE).centerline[5, 0]
    assert sum(data.count(struct.pack(order, number)) for order in ("<d", ">d")) > 0
    for order in ("<d", ">d"):  # as a numpy scalar or as a Python float
        data = data.replace(struct.pack(order, number), struct.pack(order, np.nan))
    moved.files[CURVE].write_bytes(lzma.compress(data))
    with pytest.raises(OfficialCacheError, match=rf"token {CURVE}: .*centerline\[0\]\[5\]\.x: .*, found nan"):
        moved.read(CURVE)


def lookalike(kind: str, *args: Any, **attributes: Any) -> Any:
    """An object of a class that caches name."""
    module = next(module for module, name in KNOWN if name == kind)
    made = object.__new__(KNOWN[module, kind])
    made.args = args
    vars(made).update(attributes)
    return made


def geometry(data: Any) -> Any:
    """A geometry as it is read, given as well-known binary."""
    made = object.__new__(KNOWN["shapely.io", "from_wkb"])
    made.args = (data,)
    return made


def polygon(*corners: tuple[float, float]) -> Any:
    return geometry(struct.pack("<BIII", 1, 3, 1, len(corners)) + np.array(corners, dtype="<f8").tobytes())


def put(at: str = "", **attributes: Any) -> Callable[[Any], None]:
    """Gives attributes to the object at a path of names with dots between them."""

    def change(found: Any) -> None:
        for name in filter(None, at.split(".")):
            found = getattr(found, name)
        vars(found).update(attributes)

    return change


@pytest.fixture
def cache(moved: OfficialCache) -> Any:
    """What is read of a cache, before it becomes a scene; tests change it."""
    return unpickle_plain(lzma.decompress(moved.files[CURVE].read_bytes()), moved.files[CURVE], KNOWN)


SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: delattr(c, "trajectory"), "MetricCache: expected an object with 'trajectory'"),
    (put(trajectory=5), r"MetricCache\.trajectory: expected an object, found 5"),
    (put(trajectory=lookalike("PDMPath")), "trajectory: expected an object made of more than 0"),
    (put(trajectory=lookalike("PDMPath", 5)), r"trajectory\[0\]: expected a list, found 5"),
    (put(trajectory=lookalike("PDMPath", [5])), r"trajectory\[0\]\[0\]: expected an object"),
    (put(trajectory=lookalike("PDMPath", [])), "reference_states must be"),
    (put(route_lane_ids=[5]), r"route_lane_ids\[0\]: expected a text that is not empty, found 5"),
    (put(route_lane_ids=[""]), r"route_lane_ids\[0\]: expected a text that is not empty"),
    (put(route_lane_ids="abc"), "route_lane_ids: expected a list, found 'abc'"),
    (put(_tire_steering_angle=1e308, at="ego_state"), "_tire_steering_angle: expected a number from"),
    (put(_tire_steering_angle="1", at="ego_state"), "_tire_steering_angle: expected a number, found '1'"),
    (put(_tire_steering_angle=True, at="ego_state"), "_tire_steering_angle: expected a number"),
    (put(_tire_steering_angle=np.inf, at="ego_state"), "found inf"),
    (put(_tire_steering_angle=10**400, at="ego_state"), "found <a whole number of 1329 bits>"),
    (put(time_us=2**70, at="ego_state._time_point"), "time_us: expected a number of 64 bits"),
    (put(time_us=1.5, at="ego_state._time_point"), "time_us: expected a whole number, found 1.5"),
    (put(_observation_sample_res=2, at="observation"), "51 object frames at sampling 2; expected 51 at 1"),
    (put(_observation_sample_res=np.zeros(2), at="observation"), "_sample_res: expected a whole number"),
    (put(_occupancy_maps=[], at="observation"), "0 object frames"),
    (put(_unique_objects=[], at="observation"), "_unique_objects: expected a dict"),
    (put(_unique_objects={}, at="observation"), "object frame 0 holds '.*', which is no known object"),
    (put(_collided_track_ids=["a"], at="observation"), "marked as collided"),
    (put(_red_light_token=None, at="observation"), "_red_light_token: expected a text"),
    (lambda c: setattr(c.drivable_area_map, "args", ([], [], [5])),
     r"drivable_area_map\[2\]\[0\]: expected a Geometry, found 5"),
    *(
        (lambda c, shape=shape: setattr(c.drivable_area_map, "args", (["a"], [], [shape])), message)
        for shape, message in (
            (geometry(b"short"), "expected a polygon as well-known binary"),
            (geometry("text"), "expected a polygon as well-known binary"),
            (geometry(struct.pack("<BII", 1, 7, 1) * 100_000), r"\[0\]: expected a polygon, found"),
            (geometry(struct.pack("<BII", 1, 3, 2**32 - 1)), "expected a whole polygon"),
            (geometry(struct.pack("<BIII", 1, 3, 1, 2**32 - 1) + bytes(64)), "expected a whole polygon"),
            (geometry(struct.pack("<BII", 1, 3, 0)), "expected a polygon of closed rings"),
            (polygon(*SQUARE[:4]), "expected a polygon of closed rings"),
            (polygon(*SQUARE[:2], SQUARE[0]), "expected a polygon of closed rings"),
            (polygon(*SQUARE), "1 polygon tokens but 0 types"),
            (polygon(SQUARE[0], (1e200, 0.0), *SQUARE[2:]), "the map has a coordinate of more than 1e"),
            (polygon((np.nan, 0.0), *SQUARE[1:4], (np.nan, 0.0)), "expected a polygon of closed rings"),
        )
    ),
])  # fmt: skip
def test_content_that_is_not_as_the_devkit_writes_it_is_named(
    moved: OfficialCache, cache: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object], message: str
) -> None:
    change(cache)
    monkeypatch.setattr("navsim_bridge.metric_cache.official.unpickle_plain", lambda *_: cache)
    with pytest.raises(OfficialCacheError, match=rf"^token {CURVE}: {moved.files[CURVE]}: .*{message}") as raised:
        moved.read(CURVE)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 800


def test_rings_are_read_as_shapely_reads_them() -> None:
    outline = [(0.0, 0.0), (4.0, 0.1), (4.0, 4.0), (0.0, 4.0)]
    hole = [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0)]
    for shape in (shapely.Polygon(outline), shapely.Polygon(outline, [hole, np.array(hole) + 0.5]),
                  shapely.Polygon([(*corner, 5.0) for corner in outline])):  # fmt: skip
        for order in (0, 1):
            for srid in (0, 4326):
                data = shapely.to_wkb(shapely.set_srid(shape, srid), byte_order=order, include_srid=True)
                rings = polygon_of(Value(data, "x"))
                expected = shapely.get_coordinates(shapely.from_wkb(data))
                assert np.concatenate(rings).tobytes() == expected.tobytes()


def test_a_file_that_unpacks_without_end_is_refused(moved: OfficialCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "MOST_BYTES", 2**20)
    data = lzma.compress(bytes(2**22), preset=0)
    assert len(data) < 2**12
    moved.files[CURVE].write_bytes(data)
    with pytest.raises(OfficialCacheError, match="unpacks to more than 1048576 bytes"):
        moved.read(CURVE)


def test_a_file_with_more_after_its_end_or_that_takes_much_memory_is_refused(
    moved: OfficialCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = moved.files[CURVE].read_bytes()
    moved.files[CURVE].write_bytes(data + b"more")
    with pytest.raises(OfficialCacheError, match=r"not a whole LZMA file .*4 bytes follow its end"):
        moved.read(CURVE)
    monkeypatch.setattr(official, "MOST_BYTES", 2**20)
    moved.files[CURVE].write_bytes(lzma.compress(lzma.decompress(data), preset=6))
    with pytest.raises(OfficialCacheError, match=r"not a whole LZMA file .*[Mm]emory"):
        moved.read(CURVE)


def test_what_is_no_file_is_refused_at_once(moved: OfficialCache) -> None:
    file = moved.files[CURVE]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OfficialCacheError, match=rf"token {CURVE}: .* is a FIFO, where a file is to be read"):
        moved.read(CURVE)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(OfficialCacheError, match=rf"token {CURVE}: .* is a device, where a file is to be read"):
        moved.read(CURVE)


def test_missing_fields_are_named(moved: OfficialCache) -> None:
    data = lzma.decompress(moved.files[CURVE].read_bytes())
    moved.files[CURVE].write_bytes(lzma.compress(data.replace(b"\x8c\x0eroute_lane_ids", b"\x8c\x0eroute_lane_idx")))
    with pytest.raises(OfficialCacheError, match="route_lane_ids"):
        moved.read(CURVE)


def test_converted_scenes_score_as_the_files_do(moved: OfficialCache, tmp_path: Path) -> None:
    packed = convert_official_cache(moved.folder, tmp_path / "packed", progress=False)
    assert packed.provenance["reference"].startswith("PDM-Closed")
    for scene in packed.load(moved.tokens):
        original = moved.read(scene.token)
        assert scene.object_boxes.tobytes() == original.object_boxes.tobytes()
        assert scene.vertices.tobytes() == original.vertices.tobytes()
    packed.check_sources(tmp_path, tmp_path)  # names no sources


def test_the_converter_keeps_good_scenes_and_ends_with_one_line(
    moved: OfficialCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = moved.files[CURVE].read_bytes()
    moved.files[CURVE].write_bytes(whole[: len(whole) // 2])
    arguments = ["--official-cache", str(moved.folder), "--out", str(tmp_path / "packed")]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            cache_metrics.main(arguments)
        assert str(end.value).startswith(f"error: 1 of 3 scenes could not be converted; first: token {CURVE}: ")
        assert str(moved.files[CURVE]) in str(end.value)
        assert "\n" not in str(end.value)
        assert sorted(MetricCache(tmp_path / "packed").tokens) == sorted([DIRECT_TRACKS, DEGENERATE])
    moved.files[CURVE].write_bytes(whole)
    cache_metrics.main(arguments)
    assert "3 scenes of official cache moved" in capsys.readouterr().out
    assert len(MetricCache(tmp_path / "packed")) == 3


def test_a_second_conversion_keeps_what_is_there(
    moved: OfficialCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert_official_cache(moved.folder, tmp_path / "packed", progress=False)
    monkeypatch.setattr("navsim_bridge.metric_cache.convert.read_official_cache", None)
    assert convert_official_cache(moved.folder, first.path, progress=False).fingerprint == first.fingerprint


def test_several_processes_convert_to_the_same_cache_as_one(
    moved: OfficialCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = convert_official_cache(moved.folder, tmp_path / "alone", progress=False)
    monkeypatch.setattr(jobs, "SCENES_PER_PROCESS", 1)
    together = convert_official_cache(moved.folder, tmp_path / "together", workers=2, progress=False)
    assert together.index == alone.index


def test_a_folder_of_another_cache_is_left_alone(moved: OfficialCache, tmp_path: Path) -> None:
    convert_official_cache(moved.folder, tmp_path / "packed", progress=False)
    other = tmp_path / "other"
    shutil.copytree(moved.folder, other)
    with pytest.raises(CacheError, match="holds the metric cache of split official cache moved"):
        convert_official_cache(other, tmp_path / "packed", progress=False)


def test_the_tool_wants_one_source(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="give one of --split, --official-cache and --merge"):
        cache_metrics.main(["--out", str(tmp_path)])
