"""What is scored of a split of two stages equals the devkit's results, from raw files and from its caches, and what
does not is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import two_stage_parity
from navsim_bridge.golden.two_stage import CASES, MOTION
from tests.navsim_bridge.two_stage_results import (
    TOTALS,
    official_rows,
    plans,
    write_official,
    write_submitted,
    write_table,
)
from tests.navsim_bridge.two_stage_world import TwoStageWorld
from tests.paths import FIXTURES


def run(root: Path) -> tuple[int, dict[str, Any]]:
    status = two_stage_parity.main(["--reference", str(root), "--json", str(root / "parity.json")])
    found: dict[str, Any] = json.loads((root / "parity.json").read_text())
    return status, found


@pytest.fixture
def reference(two_stages: TwoStageWorld, tmp_path: Path) -> Path:
    root = shutil.copytree(two_stages.root, tmp_path / "reference")
    write_official(two_stages, root)
    for name in (CASES, MOTION):
        shutil.copy(FIXTURES / "two_stage" / name, root)
    return root


def test_everything_equals_what_the_devkit_made_of_it_and_what_is_changed_does_not(
    two_stages: TwoStageWorld, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = run(reference)
    assert status == 0, found["told"]
    assert (found["tokens"], found["traffic_frames"], found["aggregations"], found["differ"]) == (16, 328, 8, 0)
    assert found["missing"] == [] and found["largest"]["traffic"] < 1e-8
    assert "0 differ" in capsys.readouterr().out

    rows = official_rows(two_stages)
    rows["00f32ab94de711d90"]["lane_keeping_stage_two"] = "0.0"
    rows[TOTALS[2]]["score"] = repr(float(rows[TOTALS[2]]["score"]) + 1e-5)
    write_table(reference / "official/mixed_v212.csv", rows)
    with np.load(reference / "official/mixed_traffic.npz") as file:
        traffic = {name: file[name] for name in file.files}
    traffic["006450b763b024ab2/plan/obj_boxes"][-1, 0] += 1e-7
    np.savez(reference / "official/mixed_traffic.npz", **traffic)  # type: ignore[arg-type]
    others = {**plans(), "00f32ab94de711d90": plans()["00f32ab94de711d90"] + 1e-6}
    write_submitted(reference / "official/submission_mixed.pkl", others)
    cases = json.loads((reference / CASES).read_text())
    cases[0]["official"]["combined"]["ego_progress"] += 1e-9
    (reference / CASES).write_text(json.dumps(cases))
    shutil.rmtree(reference / "metric_cache")

    status, found = run(reference)
    assert status == 1 and found["differ"] == 5 and found["missing"] == ["official metric cache"]
    assert [told.split(":")[0].split(", ")[-1] for told in found["told"]] == [
        "case 0 plain", "00f32ab94de711d90", "00f32ab94de711d90", TOTALS[2], "frame 40",
    ]  # fmt: skip
