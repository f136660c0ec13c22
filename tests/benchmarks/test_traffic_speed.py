"""The benchmark of traffic as its users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metric_cache.cache import finish
from navsim_bridge.metric_cache.jobs import log_entry
from tests.navsim_bridge.traffic.made_up import with_traffic
from tests.paths import GOLDEN_V2


@pytest.fixture(scope="module")
def speed(load_benchmark: Callable[..., Any]) -> ModuleType:
    return load_benchmark("traffic_speed")


def test_scenes_of_a_cache_are_measured_and_a_cache_of_before_is_refused(speed: ModuleType, tmp_path: Path) -> None:
    threads, scene = torch.get_num_threads(), read_golden_epdms(GOLDEN_V2 / "public_109_carpark.npz").scene
    for name, made in (("now", with_traffic(scene, followers=2)), ("before", scene)):
        logs = {"log": log_entry(tmp_path / name / "log.scenes", "source", 1, lambda made=made: [made])}  # type: ignore[misc]
        finish(tmp_path / name, logs, {"split": "small", "data_split": ""}, maps={})
    options = ["--rows", "3", "--seconds", "0", "--json", str(tmp_path / "traffic.json")]
    try:
        main = speed.main
        assert main(["--cache", str(tmp_path / "now"), *options]) == 0
        assert json.loads((tmp_path / "traffic.json").read_text())["rows"][0]["followers"] == 2
        with pytest.raises(SystemExit, match="holds nothing of what vehicles need to move; make it again"):
            main(["--cache", str(tmp_path / "before"), *options])
    finally:
        torch.set_num_threads(threads)


def test_rows_are_measured_printed_and_written(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "traffic.json"
    try:
        assert speed.main(["--rows", "1", "5", "--seconds", "0.01", "--json", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["rows"]
    assert [row["simulations"] for row in rows] == [1, 5]
    assert all(row["simulations_per_cpu_s"] > 0 and 0 < row["followers"] < row["vehicles"] for row in rows)
    assert "simulations/CPU s" in capsys.readouterr().out
