"""The doctor says which human filter made a score, why it is 0, and whether a score file is what it was."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_bridge.doctor.finding import ERROR, OK, WARNING, Finding
from navsim_bridge.doctor.results import STAGES, check_results
from navsim_bridge.pdm.epdms import TERMS, EPDMSTerms, epdms_scores
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, PDM_SCORE, Column, total
from navsim_bridge.submission import v1
from navsim_bridge.submission.team import Team
from tools import doctor as tool

Values = Mapping[str, float]


def of(columns: Sequence[Column], **values: float) -> dict[str, float]:
    """A row's sub-scores: 1 where nothing else is said, and the score that they come to."""
    row = {column.name: values.get(column.name, 1.0) for column in columns}
    score = total(columns, {name: torch.tensor(value, dtype=torch.float64) for name, value in row.items()}).item()
    return {**row, "score": values.get("score", score)}


def write(path: Path, rows: Sequence[Values], last: str = "average_all_frames", end: str = "") -> Path:
    """A score file as the devkit lays it out, with its index in front."""
    names = list(rows[0])
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["", "token", "valid", *(n if n == "score" else n + end for n in names)])
        for i, row in enumerate(rows):
            valid = not math.isnan(row["score"])
            out.writerow([i, f"{i:016x}", valid, *("" if math.isnan(v) else v for v in row.values())])
        means = [sum(row[name] for row in rows) / len(rows) for name in names]
        out.writerow([len(rows), last, True, *("" if math.isnan(v) else v for v in means)])
    return path


def said(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {OK: [], WARNING: [], ERROR: []}
    for finding in check_results(str(path)):
        found[finding.level].append(str(finding))
    return found


def test_a_score_of_0_with_columns_of_1_is_the_released_human_filter(tmp_path: Path) -> None:
    rows = [of(EXTENDED_PDM_SCORE), of(EXTENDED_PDM_SCORE, score=0.0), of(EXTENDED_PDM_SCORE, lane_keeping=0.0)]
    found = said(write(tmp_path / "a.csv", rows))
    (warning,) = found[WARNING]
    assert "human filter: as released (v2.1.2)" in warning and "--human-filter fixed" in warning
    assert f"in 1 of 3 scenes, first {1:016x}: score 0, columns 1" in warning
    assert "1 of 3 scenes score 0: all multipliers above 0 (the human filter) 1" in "\n".join(found[OK])
    assert not found[ERROR]


def test_scores_that_follow_from_their_columns_tell_no_filter_and_a_summary_does(tmp_path: Path) -> None:
    rows = [of(EXTENDED_PDM_SCORE, drivable_area_compliance=0.0), of(EXTENDED_PDM_SCORE, ego_progress=0.5)]
    found = said(write(tmp_path / "scores.csv", rows))
    assert "rows cannot tell which" in "\n".join(found[OK]) and not found[WARNING] and not found[ERROR]
    assert "1 of 2 scenes score 0: DAC 1" in "\n".join(found[OK])
    (tmp_path / "summary.json").write_text(
        json.dumps({"metric": {"human_filter": "fixed"}, "whole_split": False, "split": "navtest",
                    "trained_on_evaluation_split": True})
    )  # fmt: skip
    found = said(tmp_path)
    assert "human filter: fixed, as summary.json says" in "\n".join(found[OK])
    part, seen = found[WARNING]
    assert "a part of 'navtest' only" in part and "no held-out score" in seen


@pytest.mark.parametrize("said_filter", ["fixed", "off"])
def test_a_summary_that_rows_contradict_is_an_error(said_filter: str, tmp_path: Path) -> None:
    write(tmp_path / "scores.csv", [of(EXTENDED_PDM_SCORE, score=0.25)])
    (tmp_path / "summary.json").write_text(json.dumps({"metric": {"human_filter": said_filter}}))
    assert "1 scores are not what their columns come to" in said(tmp_path)[ERROR][0]


def test_pdms_has_no_filter_and_its_scores_must_follow(tmp_path: Path) -> None:
    good = [of(PDM_SCORE, ego_progress=0.3, driving_direction_compliance=0.0), of(PDM_SCORE, comfort=0.0)]
    found = said(write(tmp_path / "a.csv", good, "average"))
    assert "PDMS has none" in "\n".join(found[OK]) and not found[WARNING] and not found[ERROR]
    for score in (0.0, 0.9):  # less, or more than the columns come to
        found = said(write(tmp_path / "b.csv", [of(PDM_SCORE, ego_progress=0.3, score=score)], "average"))
        assert "is of another metric" in found[ERROR][0]


def test_two_stages_are_told_and_every_stage_is_looked_at(tmp_path: Path) -> None:
    names = [f"{c.name}{end}" for end in STAGES for c in EXTENDED_PDM_SCORE]
    first, second = of(EXTENDED_PDM_SCORE, score=0.5), of(EXTENDED_PDM_SCORE, no_at_fault_collisions=0.0)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, ["token", "valid", *names, "score"])
        out.writeheader()
        for token, row, end in (("a" * 16, first, STAGES[0]), ("b" * 17, second, STAGES[1])):
            of_stage = {f"{name}{end}": value for name, value in row.items() if name != "score"}
            out.writerow({"token": token, "valid": True, "score": row["score"], **of_stage})
        for name, score in (("stage_one", 0.5), ("stage_two", 0.0), ("combined", 0.125)):
            out.writerow({"token": f"extended_pdm_score_{name}", "valid": True, "score": score})
    found = said(tmp_path / "a.csv")
    assert "EPDMS, two stages, 2 scenes, in all 12.50" in found[OK][0]
    assert f"in 1 of 2 scenes, first {'a' * 16}" in found[WARNING][0] and not found[ERROR]
    assert "1 of 2 scenes score 0: NC 1" in "\n".join(found[OK])


def test_failed_scenes_and_changed_rows_are_told(tmp_path: Path) -> None:
    rows = [of(PDM_SCORE), {**of(PDM_SCORE), "score": math.nan}]
    assert f"1 of 2 scenes have no valid score, first {1:016x}" in said(write(tmp_path / "a.csv", rows))[ERROR][0]
    path = write(tmp_path / "b.csv", [of(PDM_SCORE), of(PDM_SCORE, no_at_fault_collisions=0.0)], "average")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], lines[3]]))  # a bad row taken out
    assert "come to 100.0000, its last row says 50.0000" in said(path)[ERROR][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,score\na,1\n", "no score file: it has no column no_at_fault_collisions"),
        ('token,"sco\n', "not a readable CSV file"),
        ("", "it has no column token"),
        ("\x00\xff", "no score file"),
    ],
)
def test_what_is_no_score_file_is_one_finding(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    (finding,) = check_results(str(tmp_path / "a.csv"))
    assert finding.level == ERROR and message in finding.what and "\n" not in str(finding)
    (absent,) = check_results(str(tmp_path / "none.csv"))
    assert absent.level == ERROR


def test_a_value_that_is_none_names_row_and_column(tmp_path: Path) -> None:
    for value in ("seven", "7", "inf"):
        path = write(tmp_path / "a.csv", [of(PDM_SCORE)], "average")
        path.write_text(path.read_text().replace("1.0", value, 1))
        (finding,) = check_results(str(path))
        assert f"row 1: no_at_fault_collisions must be a number from 0 to 1, found '{value}'" in finding.what


ZERO_OR_ONE = st.sampled_from([0.0, 1.0])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(*[ZERO_OR_ONE] * (2 * len(TERMS))), min_size=1, max_size=6))
def test_what_the_scorer_forgives_is_found_in_the_rows(scenes: list[tuple[float, ...]]) -> None:
    values = torch.tensor([s[: len(TERMS)] for s in scenes], dtype=torch.float64)[:, None]
    human = torch.tensor([s[len(TERMS) :] for s in scenes], dtype=torch.float64)
    empty = torch.zeros(len(scenes), 1)
    terms = EPDMSTerms(values, human, *[empty] * (len(EPDMSTerms.__dataclass_fields__) - 2))  # type: ignore[arg-type]
    for human_filter in ("v2.1.2", "fixed", "off"):
        scored = epdms_scores(terms, human_filter)
        columns = [*(column.name for column in EXTENDED_PDM_SCORE), "score"]
        rows = [{name: getattr(scored, name)[i, 0].item() for name in columns} for i in range(len(scenes))]
        come_to = [of(EXTENDED_PDM_SCORE, **{k: v for k, v in row.items() if k != "score"}) for row in rows]
        changes = any(abs(row["score"] - total["score"]) > 1e-6 for row, total in zip(rows, come_to))
        with tempfile.TemporaryDirectory() as folder:
            found: list[Finding] = list(check_results(str(write(Path(folder) / "a.csv", rows))))
        assert not [f for f in found if f.level == ERROR]
        assert bool([f for f in found if f.level == WARNING]) is changes
        assert not changes or human_filter == "v2.1.2"


def test_the_tool_reads_score_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv", [of(EXTENDED_PDM_SCORE, score=0.5)])
    tool.main(["--scores", str(path), str(path)])
    out = capsys.readouterr().out
    assert out.count("human filter: as released") == 2 and "Python" not in out, "the machine is not looked at"
    path.write_text("")
    with pytest.raises(SystemExit):
        tool.main(["--scores", str(path)])


def test_a_submission_is_complete_or_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "navsim_logs").mkdir()
    team = Team("<a href='x'>t</a>", "a", "e", "i", "c")
    v1.write_submission(tmp_path / "s.pkl", team, [{"a" * 16: np.zeros((8, 3), np.float32)}] * 3)
    options = ["--submission", str(tmp_path / "s.pkl"), "--data-root", str(tmp_path), "--split"]
    for name, tokens in (("whole", ["a" * 16]), ("more", ["a" * 16, "b" * 16])):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"data_split": "x", "scene_filter": {"tokens": tokens}}))
    tool.main([*options, str(tmp_path / "whole.yaml")])
    assert "s.pkl is a complete submission of 1 scenes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main([*options, str(tmp_path / "more.yaml")])
    assert f"1 of 2 tokens are missing, first {'b' * 16}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main([*options, str(tmp_path / "more.yaml"), str(tmp_path / "whole.yaml")])
    assert "a submission is of one: give one" in capsys.readouterr().err
