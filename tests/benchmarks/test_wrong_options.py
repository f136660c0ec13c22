"""Benchmarks say what is wrong with their options before they measure."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.parametrize(
    "benchmark", ["dual_adapters", "full_size", "images", "load", "pdm_speed", "solver_speed", "traffic_speed"]
)
def test_a_file_that_cannot_be_written_is_told_first(
    benchmark: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [benchmark, "--json", f"{__file__}/x.json"])
    with pytest.raises(SystemExit, match=r"^2$"):
        importlib.import_module(benchmark).main()
    assert f"error: --json: {__file__}" in capsys.readouterr().err


@pytest.mark.parametrize(("benchmark", "option"), [("images", "--images"), ("solver_speed", "--steps")])
def test_nothing_cannot_be_measured(
    benchmark: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [benchmark, option, "0"])
    with pytest.raises(SystemExit, match=r"^2$"):
        importlib.import_module(benchmark).main()
    assert f"error: {option} must be at least" in capsys.readouterr().err
