"""The benchmark of traffic as its users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def test_rows_are_measured_printed_and_written(
    load_benchmark: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "traffic.json"
    try:
        assert load_benchmark("traffic_speed").main(["--rows", "1", "5", "--seconds", "0.01", "--json", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["rows"]
    assert [row["simulations"] for row in rows] == [1, 5]
    assert all(row["simulations_per_cpu_s"] > 0 and 0 < row["followers"] < row["vehicles"] for row in rows)
    assert "simulations/CPU s" in capsys.readouterr().out
