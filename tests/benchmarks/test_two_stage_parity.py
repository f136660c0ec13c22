"""What is scored of a split of two stages equals the devkit's results, from raw files and from its caches, and what
does not is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

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


def copy_cases(root: Path) -> None:
    for name in (CASES, MOTION):
        shutil.copy(FIXTURES / "two_stage" / name, root)


def write_changed(world: TwoStageWorld, folder: Path) -> None:
    """Another set of the same plans, of which some numbers are others."""
    for name in ("plans_mixed.npz", "mixed_v212_tokens.npz"):
        shutil.copy(folder / name, folder / name.replace("mixed", "changed"))
    rows = official_rows(world)
    rows["00f32ab94de711d90"]["lane_keeping_stage_two"] = "0.0"
    rows[TOTALS[2]]["score"] = repr(float(rows[TOTALS[2]]["score"]) + 1e-5)
    write_table(folder / "changed_v212.csv", rows)
    with np.load(folder / "mixed_traffic.npz") as file:
        traffic = {name: file[name] for name in file.files if name.startswith("006450b763b024ab2")}
    traffic["006450b763b024ab2/plan/obj_boxes"][-1, 0] += 1e-7
    np.savez(folder / "changed_traffic.npz", **traffic)  # type: ignore[arg-type]
    others = {**plans(), "00f32ab94de711d90": plans()["00f32ab94de711d90"] + 1e-6}
    write_submitted(folder / "submission_changed.pkl", others)


def test_everything_equals_what_the_devkit_made_of_it_and_what_is_changed_does_not(
    two_stages: TwoStageWorld, tmp_path: Path
) -> None:
    root = shutil.copytree(two_stages.root, tmp_path / "reference")
    write_official(two_stages, root)
    write_changed(two_stages, root / "official")
    copy_cases(root)
    status, found = run(root)
    assert (found["tokens"], found["traffic_frames"], found["aggregations"]) == (32, 410, 8)
    assert found["missing"] == []
    told = [line.split(":")[0] for line in found["told"]]
    expected = ["changed, submission, 00f32ab94de711d90"]
    for source in ("rebuilt", "official cache"):
        of = f"two_stage, changed, {source}"
        expected += [f"{of}, changed_v212, {token}" for token in ("00f32ab94de711d90", TOTALS[2])]
        expected.append(f"{of}, 006450b763b024ab2, traffic of the plan, frame 40")
    assert (status, found["differ"], sorted(told)) == (1, 7, sorted(expected))


def test_made_up_rows_are_compared_where_there_is_nothing_else(tmp_path: Path) -> None:
    copy_cases(tmp_path)
    status, found = run(tmp_path)
    assert status == 0 and (found["aggregations"], found["differ"]) == (8, 0) and found["missing"] == ["sets of plans"]
    cases = json.loads((tmp_path / CASES).read_text())
    cases[0]["official"]["combined"]["ego_progress"] += 1e-9
    (tmp_path / CASES).write_text(json.dumps(cases))
    status, found = run(tmp_path)
    assert status == 1 and found["told"][0].startswith("case 0 plain: case combined by 1e-09")
