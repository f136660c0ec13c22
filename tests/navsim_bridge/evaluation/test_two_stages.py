"""Splits of two stages are scored as the devkit scores them, and what is no score of them says so."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from navsim_bridge.agents.registry import AGENTS
from navsim_bridge.evaluation import floors
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.metrics import two_stage
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.splits.scenes import SceneRecord
from tests.navsim_bridge.two_stage_results import STAGES, TOTALS, official_rows, plans
from tests.navsim_bridge.two_stage_world import TwoStageWorld
from tools import evaluate as tool


def as_scored(records: Sequence[SceneRecord]) -> NDArray[np.float64]:
    """The plans that the devkit scored."""
    return np.stack([plans()[r.token] for r in records])


def but_one(records: Sequence[SceneRecord]) -> NDArray[np.float64]:
    """The same, but none for one synthetic scene."""
    if any(r.token == "006450b763b024ab2" for r in records):
        raise ValueError("no idea")
    return as_scored(records)


@pytest.fixture(scope="module")
def cache(two_stages: TwoStageWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "two_stage"
    build_metric_cache(two_stages.data, two_stages.maps, two_stages.split, out, rules=NAVSIM_V2, progress=False)
    return out


@pytest.fixture(autouse=True)
def agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGENTS, "as_scored", as_scored)
    monkeypatch.setitem(AGENTS, "but_one", but_one)


def run(world: TwoStageWorld, cache: Path, out: Path, agent: str, *options: str) -> dict[str, Any]:
    tool.main(["--metric", "epdms", "--agent", agent, "--split", str(world.split_file), "--out", str(out),
               "--data-root", str(world.data), "--metric-cache", str(cache), *options])  # fmt: skip
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "scores.csv", newline="") as file:
        return {row["token"]: row for row in csv.DictReader(file)}


def test_every_row_and_total_is_the_devkits(
    two_stages: TwoStageWorld, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(two_stages, cache, tmp_path, "as_scored")
    ours, official = table(tmp_path), official_rows(two_stages)
    assert ours.keys() == official.keys() and list(ours)[-3:] == list(TOTALS)
    columns = list(official["30ee9b806e291aa2"])
    assert list(ours["30ee9b806e291aa2"]) == [*columns, "reason"]
    for token, expected in official.items():
        assert ours[token]["valid"] == expected["valid"] == "True"
        for name in columns[2:]:
            assert (ours[token][name] == "") == (expected[name] == ""), (token, name)
            if expected[name]:
                smooth = token in TOTALS or name == "score" or name.startswith("ego_progress")
                assert float(ours[token][name]) == pytest.approx(float(expected[name]), abs=1e-7 * smooth), (
                    token,
                    name,
                )
    assert summary["metric"]["stages"] == 2 and summary["metric"]["traffic"] == "idm"
    assert summary["metric"]["human_filter"] == "v2.1.2"
    assert summary["averages"]["score"] == pytest.approx(float(official[TOTALS[2]]["score"]), abs=1e-7)
    assert summary["caveats"] == [] and summary["whole_split"]
    scores = summary["floors"]["scores"]
    assert set(scores) == {"stand_still", "constant_velocity"} and summary["floors"]["public"] is None
    said = capsys.readouterr().out
    assert "two-stage EPDMS (human filter v2.1.2, traffic idm)" in said and "NOT" not in said
    assert "stage one: NC 100.0" in said and "stage two: NC 100.0" in said and "floors" in said


def test_floors_beside_a_score_are_what_their_agents_score(
    two_stages: TwoStageWorld, cache: Path, tmp_path: Path
) -> None:
    beside = run(two_stages, cache, tmp_path / "a", "as_scored")["floors"]["scores"]
    for name, score in beside.items():
        own = run(two_stages, cache, tmp_path / name, name)
        assert own["averages"]["score"] == score and own["floors"]["scores"] == beside


def test_a_scene_that_fails_is_named_with_the_groups_that_it_takes_out_and_there_is_no_total(
    two_stages: TwoStageWorld, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(two_stages, cache, tmp_path, "but_one", "--allow-failures")
    (caveat,) = summary["caveats"]
    assert caveat == (
        "1 of 1 groups are left out, because 2 of their tokens have no score: "
        "006450b763b024ab2 (1 group), 00f3e33a3ba07e607 (1 group)"
    )
    assert summary["averages"]["score"] is None and list(summary["failures"]) == ["006450b763b024ab2"]
    rows = table(tmp_path)
    assert rows["006450b763b024ab2"]["valid"] == "False"
    assert [rows[name]["valid"] for name in TOTALS] == ["False"] * 3
    assert rows[TOTALS[2]]["score"] == "" and rows[TOTALS[0]]["score"] != ""
    said = capsys.readouterr().out
    assert "but_one on two_stage (7 of 8 scenes, NOT official): -" in said
    assert "NOT an official score of two_stage: 1 of 1 groups are left out" in said


def test_the_filter_as_fixed_and_recorded_traffic_are_asked_for_and_named(
    two_stages: TwoStageWorld, cache: Path, tmp_path: Path
) -> None:
    released = run(two_stages, cache, tmp_path / "released", "as_scored")
    fixed = run(two_stages, cache, tmp_path / "fixed", "as_scored", "--metric.human-filter", "fixed")
    assert fixed["metric"]["human_filter"] == "fixed"
    for name in released["averages"]:
        if name.endswith(STAGES):
            assert fixed["averages"][name] == released["averages"][name], "both filter the columns alike"
    replay = run(two_stages, cache, tmp_path / "replay", "as_scored", "--metric.traffic", "log_replay")
    assert "traffic log_replay" in replay["metric"]["name"] and replay["metric"]["traffic"] == "log_replay"


def test_no_other_metric_scores_it_and_an_unknown_traffic_is_told(
    two_stages: TwoStageWorld, cache: Path, tmp_path: Path
) -> None:
    arguments = ["--agent", "stand_still", "--split", str(two_stages.split_file), "--out", str(tmp_path),
                 "--data-root", str(two_stages.data), "--metric-cache", str(cache)]  # fmt: skip
    for options, problem in (
        ([], "split two_stage has two stages, which --metric pdms does not score; use --metric epdms"),
        (["--metric", "epdms", "--metric.traffic", "idmm"], "unknown traffic 'idmm'; nearest valid name: 'idm'"),
    ):
        with pytest.raises(SystemExit) as refused:
            tool.main([*arguments, *options])
        assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_the_public_floors_are_shown_where_the_split_is_the_leaderboards(
    two_stages: TwoStageWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two_stages.split.two_stage is not None and two_stages.split.two_stage.groups is not None
    known = two_stage.fingerprint(two_stages.split.two_stage.groups)
    monkeypatch.setitem(two_stage.DEVKIT_SPLITS, "navhard_two_stage", known)
    found = floors.floors_of({}, two_stages.split)
    assert found is not None and found["public"] == floors.PUBLIC
    said = "\n".join(floors.describe_floors(found, EPDMS()))
    assert "29.85" in said and "11.48" in said
