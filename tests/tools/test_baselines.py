"""The benchmark's baselines by the real tools: from logs alone, where a policy sees nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.paths import ROOT
from tests.tools.real_tools import call, refused

SMALL = ("--loop.steps", "2", "--loop.save-every", "1", "--loop.trackers")
BLIND = ("--data-root", "blind", "--maps-root", "blind/maps")


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Path:
    """With a data root that has logs, maps and splits, and no sensor data."""
    for folder in ("navsim_logs", "maps", "splits"):
        shutil.copytree(toy_place / "data/demo_world" / folder, toy_place / "blind" / folder)
    return toy_place


def pretrain(place: Path, out: str, *options: str, status: tuple[int, ...] = (0,)) -> Path:
    config = str(ROOT / "configs/ego_status_mlp_demo.yaml")
    call("pretrain.py", "--config", config, "--validation-logs", "1", *BLIND, *SMALL, "--out", f"runs/{out}", *options,
         cwd=place, status=status)  # fmt: skip
    return sorted((place / "runs" / out / "checkpoints").glob("step_*"))[-1]


def test_the_ego_status_mlp_is_trained_stopped_gone_on_with_evaluated_and_submitted_without_images(place: Path) -> None:
    straight = pretrain(place, "mlp")
    pretrain(place, "mlp_stopped", "--loop.stop-after-step", "1", status=(130,))
    stopped = pretrain(place, "mlp_stopped")
    one, two = (load_file(path / "model/model.safetensors") for path in (straight, stopped))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert yaml.safe_load((straight / "run.yaml").read_text())["config"]["model"]["head"]["name"] == "regression"
    call("evaluate.py", "--agent", "dpvla", "--checkpoint", "runs/mlp", "--split", "navtest", *BLIND, "--out", "mlp",
         cwd=place)  # fmt: skip
    summary = json.loads((place / "mlp/summary.json").read_text())
    assert summary["scenes"] > 0 and summary["failed"] == 0 and summary["omega"] is None
    team = [word for key in ("team-name", "authors", "email", "institution", "country") for word in (f"--{key}", "x")]
    call("export_submission.py", "--checkpoint", "runs/mlp", "--split", "navtest", *BLIND[:2], *team, "--out",
         "mlp.pkl", cwd=place)  # fmt: skip
    assert not (place / "blind/sensor_blobs").exists()


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        ("rl_finetune.py", ("--split", "navtrain", "--out", "runs/mlp_rl"), "its head is regression, and another is"),
        ("evaluate.py", ("--agent", "dpvla", "--samples", "2", "--out", "x"), "--samples 2: runs/mlp has the head"),
        ("evaluate.py", ("--agent", "dpvla", "--omega", "1", "--out", "x"), "--omega has nothing to combine"),
    ],
)
def test_what_needs_plans_that_are_drawn_is_refused_before_anything_is_spent(
    tool: str, options: tuple[str, ...], message: str, place: Path
) -> None:
    pretrain(place, "mlp")
    split = () if "--split" in options else ("--split", "navtest")
    said = refused(tool, "--checkpoint", "runs/mlp", *options, *split, *BLIND[:2], cwd=place)
    assert message in said
    assert not (place / "runs/mlp_rl/checkpoints").exists() and not (place / "x").exists()
