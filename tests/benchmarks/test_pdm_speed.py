"""The speed benchmark as its users run it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.paths import GOLDEN_V1, GOLDEN_V2

FIXTURES = sorted(GOLDEN_V1.glob("*.npz"))


@pytest.fixture(scope="module")
def speed(load_benchmark: Callable[..., Any]) -> ModuleType:
    return load_benchmark("pdm_speed")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    for path in FIXTURES[:2]:
        shutil.copy(path, tmp_path)
    return tmp_path


def test_rows_are_measured_printed_and_written(
    speed: ModuleType, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    out = golden / "new" / "speed.json"
    try:
        status = speed.main(["--golden", str(golden), "--rows", "1x3", "5x2", "--seconds", "0.01", "--json", str(out)])
        assert status == 0 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())
    assert [(row["scenes"], row["candidates"]) for row in rows] == [(1, 3), (5, 2)]
    for row in rows:
        assert row["device"] == "cpu" and row["plans_per_s"] > 0 and row["peak_memory_mb"] > row["packed_scenes_mb"]
        assert set(row["share"]) == {"simulate", "areas", "collision", "ttc", "comfort", "other"}
        assert sum(row["share"].values()) == pytest.approx(1.0) and min(row["share"].values()) > 0
    assert "simulate / areas / collision / ttc / comfort" in capsys.readouterr().out


def test_compiled_kernels_and_tensor_code_are_compared(speed: ModuleType, golden: Path, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    second = tmp_path / "second"
    second.mkdir()
    shutil.copy(sorted(GOLDEN_V2.glob("*.npz"))[0], second)
    out = tmp_path / "compiled.json"
    options = ["--compare", "--golden", str(golden), "--golden-epdms", str(second), "--seconds", "0.01"]
    assert speed.main([*options, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    for row, scenes in ((report, 2), (report["epdms"], 1)):
        assert row["scenes"] == scenes and row["ratio"] > 1 and row["plans_per_cpu_s"] > 0
        assert row["flags"] > 1000 and row["flags_different"] == 0 and row["largest_difference"] < 1e-9


def test_a_flag_that_differs_is_counted(speed: ModuleType) -> None:
    golden = speed.read_golden(FIXTURES[0])
    batch = speed.SceneBatch.from_scenes([golden.scene])
    scores = speed.score_plans(batch, torch.from_numpy(golden.proposals)[None])
    other = replace(scores, comfort=1 - scores.comfort, score=scores.score + 1e-3)
    found = speed.differences(scores, other)
    assert found["flags_different"] == scores.comfort.numel() and found["largest_difference"] == pytest.approx(1e-3)


def test_measuring_the_stages_leaves_the_score_as_it_was(speed: ModuleType) -> None:
    files = [speed.read_golden(path) for path in FIXTURES[:1]]
    batch = speed.SceneBatch.from_scenes([file.scene for file in files])
    before = {name: getattr(speed.score, name) for name in speed.STAGES.values()}
    speed.stage_shares(batch, torch.from_numpy(files[0].proposals)[None], "cpu")
    assert before == {name: getattr(speed.score, name) for name in speed.STAGES.values()}


@pytest.mark.parametrize("rows", [["24"], ["0x24"], ["axb"], ["1x2x3"]])
def test_odd_sizes_are_refused(
    speed: ModuleType, golden: Path, capsys: pytest.CaptureFixture[str], rows: list[str]
) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--golden", str(golden), "--rows", *rows, "--json", str(golden / "x.json")])
    assert "120x24" in capsys.readouterr().err


def test_an_empty_directory_is_refused(speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--golden", str(tmp_path), "--json", str(tmp_path / "x.json")])
    assert "no .npz files" in capsys.readouterr().err
