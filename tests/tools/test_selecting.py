"""From kept roll-outs to a selector, and to plans that it has chosen, by the real tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.real_tools import call, refused

TINY = {"width": 16, "heads": 2, "layers": 1}
RL = ["--split", "navtrain", "--checkpoint", "runs/pre", "--rollouts.group-size", "3", "--rollouts.cycles", "1",
      "--rollouts.epochs-per-cycle", "1", "--rollouts.batch-size", "8", "--loop.trackers"]  # fmt: skip


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Path:
    """With an RL run that kept its roll-outs, one that did not, and a selector."""
    (toy_place / "rl.yaml").write_text("{}\n")
    call("rl_finetune.py", "--config", "rl.yaml", *RL, "--out", "runs/kept", "--rollouts.keep", cwd=toy_place)
    recipe: dict[str, Any] = {
        "roll_outs": ["runs/kept"], "checkpoint": "runs/pre", "out": "runs/selector", "validation_logs": 1,
        "selector": TINY, "training": {"epochs": 2, "batch_size": 8}, "loop": {"trackers": []},
    }  # fmt: skip
    (toy_place / "selector.yaml").write_text(yaml.safe_dump(recipe))
    call("train_selector.py", "--config", "selector.yaml", cwd=toy_place)
    return toy_place


def evaluate(place: Path, out: Path, *options: str) -> dict[str, Any]:
    command = ["--agent", "dpvla", "--checkpoint", "runs/kept", "--split", "navtest", "--out", str(out), *options]
    call("evaluate.py", *command, cwd=place)
    return json.loads((out / "summary.json").read_text())  # type: ignore[no-any-return]


def test_a_selector_is_trained_on_kept_roll_outs_and_says_on_what(place: Path) -> None:
    run = yaml.safe_load((place / "runs" / "selector" / "run.yaml").read_text())
    stages = {stage["stage"]: stage for stage in run["trained_on"]}
    assert list(stages) == ["imitation", "selector"] and len(stages["selector"]["logs"]) == 1
    assert "heldout/share" in (place / "runs" / "selector" / "metrics.csv").read_text()
    again = call("train_selector.py", "--config", "selector.yaml", cwd=place)
    assert "checkpoint:" in again and "loss" not in again


def test_the_chosen_plan_is_scored_with_what_it_was_chosen_among(place: Path, tmp_path: Path) -> None:
    choosing = ["--select", "4", "--selector", "runs/selector", "--select-from", "own", "base", "--select-oracle"]
    summary = evaluate(place, tmp_path / "chosen", *choosing)
    found, about = summary["chosen_among"], summary["selection"]
    assert about["plans_per_scene"] == 4 and list(about["sources"].values()) == [2, 2]
    assert found["plans"] == 4 and found["one"] <= found["oracle_best"]
    assert summary["averages"]["score"] <= found["oracle_best"] + 1e-9
    assert [stage["stage"] for stage in summary["trained_on"]] == ["imitation", "dipole", "selector"]
    plain = evaluate(place, tmp_path / "plain", "--samples", "2")
    assert plain["selection"] is None and plain["samples_per_scene"] == 2
    alone = evaluate(place, tmp_path / "alone", *choosing[:-1])
    assert alone["averages"] == summary["averages"] and alone["chosen_among"] is None
    text = refused("evaluate.py", "--agent", "dpvla", "--checkpoint", "runs/kept", "--split", "navtest", "--out",
                   str(tmp_path / "alone"), *choosing[:1], "3", *choosing[2:-1], cwd=place)  # fmt: skip
    assert "holds the results of another evaluation" in text and "selection" in text


def test_a_submission_holds_the_chosen_plans(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "submission.pkl"
    command = [
        "--checkpoint",
        "runs/kept",
        "--split",
        "navtest",
        "--out",
        str(out),
        "--team-name",
        "https://x.org/r.html",
    ]
    command += ["--authors", "a", "--email", "a@b.org", "--institution", "i", "--country", "c"]
    said = call("export_submission.py", *command, "--select", "3", "--selector", "runs/selector", cwd=place)
    assert "is a valid submission" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--select", "1", "--selector", "runs/selector"], "leaves nothing to choose"),
        (["--select", "4"], "--select needs --selector"),
        (["--selector", "runs/selector"], "--selector belongs to --select K"),
        (["--select-oracle"], "--select-oracle belongs to --select K"),
        (["--select", "4", "--selector", "runs/none"], "no selector at runs/none"),
        (["--select", "4", "--selector", "runs/pre"], "no selector at runs/pre"),
        (["--select", "2", "--selector", "runs/selector", "--samples", "2"], "leave --samples out"),
        (["--select", "2", "--selector", "runs/selector", "--select-from", "own", "adapters"], "by 3 sources of plans"),
        (["--select", "2", "--selector", "runs/selector", "--select-from", "own", "own"], "names own twice"),
        (["--select", "2", "--selector", "runs/selector", "--select-from", "base", "--select-omegas", "1"],
         "belongs to --select-from own"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_are_refused_in_one_line(
    place: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    command = ["--agent", "dpvla", "--checkpoint", "runs/kept", "--split", "navtest", "--out", str(tmp_path / "out")]
    assert says in refused("evaluate.py", *command, *options, cwd=place)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_selector_of_another_encoder_is_refused(place: Path, tmp_path: Path) -> None:
    call("pretrain.py", "--config", "pretrain.yaml", "--out", str(tmp_path / "pre"), "--loop.seed", "3", cwd=place)
    text = refused("evaluate.py", "--agent", "dpvla", "--checkpoint", str(tmp_path / "pre"), "--split", "navtest",
                   "--out", str(tmp_path / "out"), "--select", "2", "--selector", "runs/selector",
                   cwd=place)  # fmt: skip
    assert "reads the tokens of another encoder (other encoder weights)" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--roll-outs", "runs/pre"], "runs/pre has kept no roll-outs"),
        (["--roll-outs", "runs/kept", "runs/kept"], "names a run twice"),
        (["--split", "navtest", "--validation-logs", "0"], "scenes that --split navtest does not hold"),
    ],
)
def test_roll_outs_that_cannot_be_learned_from_are_refused(
    place: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert says in refused("train_selector.py", "--config", "selector.yaml", *out, *options, cwd=place)


def test_damaged_roll_outs_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs" / "kept" / "roll_outs", tmp_path / "kept")
    path = tmp_path / "kept" / "cycle_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    text = refused("train_selector.py", "--config", "selector.yaml", "--out", str(tmp_path / "out"), "--roll-outs",
                   str(tmp_path / "kept"), cwd=place)  # fmt: skip
    assert f"{path} is damaged" in text
