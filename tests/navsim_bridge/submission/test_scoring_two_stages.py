"""A submission of two stages, from the agent to the score of the file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dpvla.plan import Plan
from navsim_bridge.agents.registry import AGENTS
from navsim_bridge.evaluation.metric_scenes import ScenesFromLogs
from navsim_bridge.files.submissions import read_submission
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.splits.scenes import SceneRecord
from tests.navsim_bridge.two_stage_results import TOTALS, official_rows, plans
from tests.navsim_bridge.two_stage_world import TwoStageWorld
from tools import evaluate, export_submission

TEAM = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]


def as_scored(records: Sequence[SceneRecord]) -> list[Plan]:
    """The plans that the devkit scored; those of the first stage say twice as often where they go."""
    found = []
    for record in records:
        poses: NDArray[Any] = plans()[record.token]
        if record.synthetic is None:
            before = np.concatenate((np.zeros((1, 3), dtype=np.float32), poses[:-1]))
            poses = np.stack(((before + poses) / 2, poses), axis=1).reshape(16, 3)
        found.append(Plan(poses, 4.0 / len(poses)))
    return found


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return {row["token"]: row for row in csv.DictReader(file)}


def test_shards_of_an_export_join_to_a_file_that_scores_as_the_agent_and_the_devkit(
    two_stages: TwoStageWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(AGENTS, "as_scored", as_scored)
    split = ["--split", str(two_stages.split_file)]
    data = [*split, "--data-root", str(two_stages.data)]
    files = [str(tmp_path / f"{part}.pkl") for part in (1, 2)]
    for part, file in enumerate(files, 1):
        export_submission.main(["--agent", "as_scored", *data, *TEAM, "--shard", f"{part}/2", "--out", file])
    whole = str(tmp_path / "whole.pkl")
    with pytest.raises(SystemExit, match="1 of 1 group cannot be scored"):
        export_submission.main(["--validate", files[0], *data])
    export_submission.main(["--merge", *files, *data, "--out", whole])
    assert "is a valid submission of 2 and 6 scenes in two stages" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match=r"16 poses every 0\.25 s, where the format has 8 .* \(and 1 more of its 2 plans\)"
    ):
        export_submission.main(["--check", whole, *split])
    assert {len(p.poses) for (stage,) in read_submission(whole).stages for p in stage.values()} == {8, 16}

    scored = ["--metric", "epdms", *data, "--maps-root", str(two_stages.maps)]
    evaluate.main(["--agent", "as_scored", *scored, "--out", str(tmp_path / "agent")])
    evaluate.main(["--agent", "submission", "--submission", whole, *scored, "--out", str(tmp_path / "file")])
    found, official = rows(tmp_path / "file"), official_rows(two_stages)
    assert found == rows(tmp_path / "agent")
    for token in (*plans(), *TOTALS):
        assert float(found[token]["score"]) == pytest.approx(float(official[token]["score"]), abs=2e-3), token


def test_the_end_of_a_plan_is_its_last_pose_whatever_its_sampling(two_stages: TwoStageWorld) -> None:
    metric, records = EPDMS(), two_stages.records[:2]
    packed = metric.pack(ScenesFromLogs(two_stages.records, two_stages.data, two_stages.maps, NAVSIM_V2)(records))
    poses = torch.linspace(0, 30, 12, dtype=torch.float64)[None, None, :, None].expand(2, 1, 12, 3) * torch.tensor(
        [1, 0.1, 0]
    )
    terms = metric.sampled_every(0.5).judge(packed, poses)
    for row, record in enumerate(records):
        cos, sin = np.cos(record.pose[2]), np.sin(record.pose[2])
        expected = record.pose[:2] + np.array([30 * cos - 3 * sin, 30 * sin + 3 * cos])
        np.testing.assert_allclose(terms.end[row, 0].numpy(), expected, atol=1e-6)
