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
import torch

from navsim_bridge.golden.v1 import FRAGILE_COLUMNS
from navsim_bridge.metric_cache import CacheError, MetricCache, convert_official_cache, jobs
from navsim_bridge.metric_cache.official import KNOWN, OfficialCache, OfficialCacheError, read_official_cache
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
        assert stand_in.__module__ == "navsim_bridge.metric_cache.official"
        assert module.split(".")[0] in ("navsim", "nuplan", "shapely", "pathlib")


def test_a_cache_of_version_2_is_refused_as_such(moved: OfficialCache) -> None:
    data = lzma.decompress(moved.files[CURVE].read_bytes())
    field = b"\x8c\x0eroute_lane_ids"
    assert data.count(field) == 1
    moved.files[CURVE].write_bytes(lzma.compress(data.replace(field, b"\x8c\x0emap_parameters")))
    with pytest.raises(OfficialCacheError, match=rf"token {CURVE}: .*cache of navsim v2.*only caches of v1\.1"):
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
    with pytest.raises(OfficialCacheError, match=rf"token {CURVE}: .*NaN"):
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
