"""The parity benchmark for EPDMS as its users run it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.paths import FIXTURES

STEM = "public_106_scurve"
NAMES = (
    "no_at_fault_collisions", "drivable_area_compliance", "driving_direction_compliance", "traffic_light_compliance",
    "ego_progress", "time_to_collision_within_bound", "lane_keeping", "history_comfort", "two_frame_extended_comfort",
    "pdm_score", "score", "score_without_ec",
)  # fmt: skip


@pytest.fixture(scope="module")
def main(load_benchmark: Callable[..., Any]) -> Callable[..., Any]:
    return load_benchmark("pdm_parity").main


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """One scene with results in golden_v2/, and its v1 file in golden_v1/ beside it."""
    for version in ("golden_v1", "golden_v2"):
        (tmp_path / version).mkdir()
        shutil.copy(FIXTURES / version / f"{STEM}.npz", tmp_path / version)
    return tmp_path / "golden_v2"


def rewrite(path: Path, change: Callable[..., Any]) -> None:
    with np.load(path) as file:
        fields = {name: file[name] for name in file.files}
    np.savez(path, **change(fields))


def run(main: Callable[..., Any], golden: Path, *more: str) -> tuple[int, dict[str, list[float]]]:
    out = golden.parent / "scores.json"
    status = main(["--metric", "epdms", "--golden", str(golden), "--out", str(out), *more])
    return status, json.loads(out.read_text())[STEM]


def test_every_column_is_written_and_equals_the_official_one(
    main: Callable[..., Any], golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, scores = run(main, golden)
    assert status == 0
    with np.load(golden / f"{STEM}.npz") as file:
        for name in NAMES:
            np.testing.assert_allclose(scores[name], file[f"res_{name}"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(scores["main_score"], file["main_score"], atol=1e-6)
        np.testing.assert_allclose(scores["unf_pdm_score"], file["unf_pdm_score"], atol=1e-6)
    printed = capsys.readouterr().out
    for label in ("res_lane_keeping", "unf_lane_keeping", "res_two_frame_extended_comfort", "main_score"):
        assert label in printed


def test_what_made_the_file_lies_beside_it(
    main: Callable[..., Any], golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(main, golden)
    about = json.loads((golden.parent / "scores.provenance.json").read_text())
    assert about["metric"].startswith("EPDMS v2 (navsim 2.1.2")
    assert about["human_filter"] == {"": "v2.1.2", "unf_": "off", "main_": "fixed"}
    assert (about["scenes"], about["candidates_per_scene"]) == (1, [24])
    assert len(about["golden_fingerprint"]) == 64
    assert {"git_commit", "blas", "packages", "seed"} <= set(about["provenance"])
    assert set(about["provenance"]["blas"]) == {"numpy", "torch"}


def test_a_disagreement_fails_unless_the_v1_file_calls_it_fragile(
    main: Callable[..., Any], golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def falsify(fields: dict[str, Any]) -> dict[str, Any]:
        fields["res_history_comfort"] = 1.0 - fields["res_history_comfort"]
        return fields

    rewrite(golden / f"{STEM}.npz", falsify)
    assert run(main, golden)[0] == 1
    assert f"{STEM}[0]" in capsys.readouterr().out
    flags = golden.parent / "golden_v1" / f"{STEM}.npz"
    rewrite(flags, lambda fields: fields | {"dbg_fragile": np.ones_like(fields["dbg_fragile"])})
    assert run(main, golden)[0] == 0
    moved = flags.parent.rename(golden.parent / "elsewhere")
    assert run(main, golden)[0] == 1
    assert run(main, golden, "--golden-v1", str(moved))[0] == 0


def test_files_without_results_are_scored(
    main: Callable[..., Any], golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(golden / f"{STEM}.npz") as file:
        expected = file["res_score"]
    results = ("res_", "unf_", "main_", "dbg_", "sim_", "prev_sim", "weighted_", "removed_", "two_frame", "human_")

    def strip(fields: dict[str, Any]) -> dict[str, Any]:
        inputs = ("human_trajectory", "human_kind")
        return {name: value for name, value in fields.items() if not name.startswith(results) or name in inputs}

    rewrite(golden / f"{STEM}.npz", strip)
    status, scores = run(main, golden)
    assert status == 0
    assert "nothing to compare" in capsys.readouterr().out
    np.testing.assert_allclose(scores["score"], expected, atol=1e-6)


def test_an_official_cache_does_not_go_with_epdms(
    main: Callable[..., Any], golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(main, golden, "--official-cache", str(golden))
    assert "use it with --metric pdms" in capsys.readouterr().err
