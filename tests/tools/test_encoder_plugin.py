"""An encoder of one's own, plugged in by name: pretrained, resumed, evaluated and fine-tuned by the real tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpvla.registry import import_plugin
from navsim_bridge.doctor.data import check_split
from tests.paths import ROOT
from tests.tools.real_tools import PRETRAIN, call, refused

TOY = str(ROOT / "tests/tools/plugins/toy_encoder.py")
EXAMPLE = str(ROOT / "examples/encoder.py")
STEPS = ("--loop.steps", "2", "--loop.save-every", "1")


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Path:
    """With recipes that name an encoder."""
    for name in ("two", "patches"):
        recipe: dict[str, Any] = {**PRETRAIN, "model": {**PRETRAIN["model"], "encoder": name}}  # type: ignore[dict-item]
        (toy_place / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return toy_place


def pretrain(place: Path, out: str, name: str, *options: str, status: tuple[int, ...] = (0,)) -> Path:
    plugin = TOY if name == "two" else EXAMPLE
    call("pretrain.py", "--config", f"{name}.yaml", "--plugin", plugin, "--out", f"runs/{out}", *STEPS, *options,
         cwd=place, status=status)  # fmt: skip
    return sorted((place / "runs" / out / "checkpoints").glob("step_*"))[-1]


@pytest.mark.parametrize("name", ["two", "patches"])
def test_an_encoder_of_ones_own_is_pretrained_stopped_and_gone_on_with_exactly(place: Path, name: str) -> None:
    straight = pretrain(place, f"{name}_straight", name, "--image-cache", "images")
    pretrain(place, f"{name}_stopped", name, "--loop.stop-after-step", "1", status=(130,))
    stopped = pretrain(place, f"{name}_stopped", name)
    assert straight.name == stopped.name == "step_00000002"
    one, two = (load_file(path / "model/model.safetensors") for path in (straight, stopped))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    saved = json.loads((straight / "model/config.json").read_text())
    cameras = {"two": ["front_right", "front"], "patches": ["front"]}[name]
    assert saved["model"]["encoder"]["name"] == name and saved["model"]["encoder"]["cameras"] == cameras
    assert saved["encoder_architecture"] == {"two": {"width": 24}, "patches": None}[name]
    assert yaml.safe_load((straight / "run.yaml").read_text())["config"]["model"]["encoder"]["name"] == name


@pytest.mark.parametrize("name", ["two", "patches"])
def test_its_checkpoint_is_evaluated_submitted_and_fine_tuned(place: Path, name: str) -> None:
    plugin = ("--plugin", TOY if name == "two" else EXAMPLE)
    checkpoint = str(pretrain(place, f"{name}_straight", name, "--image-cache", "images"))
    rl = {
        "split": "navtrain",
        "rollouts": {"group_size": 3, "cycles": 1, "epochs_per_cycle": 1, "scenes_per_cycle": 4, "batch_size": 2},
        "lora": {"rank": 4, "alpha": 4},
        "loop": {"lr": 1e-3, "log_every": 1, "trackers": []},
    }
    (place / "rl_of_encoders.yaml").write_text(yaml.safe_dump(rl))
    call("rl_finetune.py", "--config", "rl_of_encoders.yaml", "--checkpoint", checkpoint, *plugin, "--out",
         f"runs/{name}_rl", cwd=place)  # fmt: skip
    assert (place / f"runs/{name}_rl/checkpoints/step_00000002/adapters/positive").is_dir()
    for weights, out in ((checkpoint, f"{name}_scores"), (f"runs/{name}_rl", f"{name}_rl_scores")):
        call("evaluate.py", "--agent", "dpvla", "--checkpoint", weights, "--split", "navtest", *plugin, "--out", out,
             cwd=place)  # fmt: skip
        summary = json.loads((place / out / "summary.json").read_text())
        assert summary["scenes"] > 0 and (place / out / "scores.csv").is_file()
    team = [word for key in ("team-name", "authors", "email", "institution", "country") for word in (f"--{key}", "x")]
    call("export_submission.py", "--checkpoint", checkpoint, "--split", "navtest", *plugin, *team, "--out",
         f"{name}.pkl", cwd=place)  # fmt: skip


def test_only_the_cameras_that_it_looks_at_must_be_there(place: Path) -> None:
    checkpoint = str(pretrain(place, "two_straight", "two", "--image-cache", "images"))
    evaluate = ("--agent", "dpvla", "--checkpoint", checkpoint, "--split", "navtest", "--plugin", TOY, "--out")
    blobs = place / "data/demo_world/sensor_blobs"
    hidden = {path: path.with_suffix(".hidden") for path in blobs.rglob("CAM_L0/*.jpg")}
    assert hidden
    for path, other in hidden.items():
        path.rename(other)
    try:
        call("evaluate.py", *evaluate, "two_without_left", cwd=place)
        for cameras, message in (
            ((), "camera files are missing"),
            (("front_right", "front"), "camera files (CAM_R0, CAM_F0)"),
            (("roof",), "NAVSIM has no camera 'roof'"),
        ):
            found = check_split(blobs.parent, blobs.parent / "maps", "navtest", cameras=cameras)
            assert any(message in finding.what for finding in found)
        for path in [*blobs.rglob("CAM_R0/*.jpg")]:
            hidden[path] = path.with_suffix(".hidden")
            path.rename(hidden[path])
        assert "camera files are missing" in refused("evaluate.py", *evaluate, "two_without_right", cwd=place)
    finally:
        for path, other in hidden.items():
            other.rename(path)


def test_what_is_not_there_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ("--config", "two.yaml", "--plugin", TOY, "--out", "runs/no_such_encoder")
    said = refused("pretrain.py", *recipe, "--model.encoder.cameras", "front", "roof", cwd=place)
    assert "NAVSIM has no camera 'roof'; choose from front (CAM_F0), front_left (CAM_L0)" in said
    said = refused("pretrain.py", *recipe, "--model.encoder.source", "elsewhere", cwd=place)
    assert "encoder.source: there is no elsewhere" in said
    said = refused("pretrain.py", *recipe, "--model.encoder.widht", "3", cwd=place)
    assert "--model.encoder.widht" in said
    assert not (place / "runs/no_such_encoder/run.yaml").exists()
    checkpoint = str(pretrain(place, "two_straight", "two", "--image-cache", "images"))
    import_plugin(TOY)
    from dpvla.encoders.registry import ENCODERS

    monkeypatch.delitem(ENCODERS, "two")
    said = refused("evaluate.py", "--agent", "dpvla", "--checkpoint", checkpoint, "--split", "navtest", "--out", "no",
                   cwd=place)  # fmt: skip
    assert "config.json: encoder.name: unknown encoder 'two'" in said and "--plugin YOUR_MODULE" in said


def test_a_run_goes_on_with_its_encoder_wherever_its_first_weights_came_from(place: Path) -> None:
    pretrain(place, "two_kept", "two", "--loop.stop-after-step", "1", status=(130,))
    options = ("--config", "two.yaml", "--plugin", TOY, "--out", "runs/two_kept", *STEPS)
    said = refused("pretrain.py", *options, "--model.encoder.image-width", "64", cwd=place)
    assert "model.encoder.image_width = 32, this one has 64" in said
    said = refused("pretrain.py", *options, "--model.encoder.name", "timm:test_resnet", cwd=place)
    assert "model.encoder.name = 'two', this one has 'timm'" in said
    assert pretrain(place, "two_kept", "two", "--model.encoder.source", "gone").name == "step_00000002"
