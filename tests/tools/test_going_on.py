"""Real tools at toy size: runs that go on, second rounds, new runs from weights, and what each says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.tools.real_tools import call, refused, run

DIPOLE = {
    "split": "navtrain",
    "checkpoint": "runs/pre",
    "dipole": {"group_size": 3, "cycles": 1, "epochs_per_cycle": 1, "scenes_per_cycle": 4, "batch_size": 2, "rank": 4,
               "alpha": 4, "omega": 2.0},
    "watch": {"picture": False},
    "loop": {"lr": 1e-2, "log_every": 1, "trackers": []},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Path:
    """The toy place with a first DIPOLE run runs/one."""
    (toy_place / "dipole.yaml").write_text(yaml.safe_dump(DIPOLE))
    run("rl_finetune.py", "--config", "dipole.yaml", "--out", "runs/one", cwd=toy_place)
    return toy_place


def newest(place: Path, name: str) -> Path:
    return sorted((place / "runs" / name / "checkpoints").glob("step_*"))[-1]


def described(place: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((place / "runs" / name / "run.yaml").read_text())
    return content


def adapters(place: Path, name: str) -> dict[str, Any]:
    found = newest(place, name) / "adapters"
    return {
        f"{one}.{key}": value
        for one in ("positive", "negative")
        for key, value in load_file(found / one / "adapter_model.safetensors").items()
    }


SECOND_ROUND = ("--config", "dipole.yaml", "--checkpoint", "runs/one", "--split", "navtest", "--loop.lr", "0",
                "--loop.weight-decay", "0")  # fmt: skip
"""It cannot move anything, so that what it started from can be told."""


def second_round(place: Path, out: str, *options: str) -> str:
    return call("rl_finetune.py", *SECOND_ROUND, "--out", f"runs/{out}", *options, cwd=place)


def test_a_second_round_goes_on_with_the_adapters_and_says_so(place: Path) -> None:
    text = second_round(place, "two")
    before, after = adapters(place, "one"), adapters(place, "two")
    assert all((after[key] == before[key]).all() for key in before)
    assert any(float(value.abs().sum()) > 0 for key, value in before.items() if "lora_B" in key)
    content = described(place, "two")
    assert [(s["stage"], s["split"]) for s in content["trained_on"]] == [
        ("imitation", "navtrain"), ("dipole", "navtrain"), ("dipole", "navtest"),
    ]  # fmt: skip
    assert content["start"]["adapters"] == "its own kept" and "its own kept" in text
    assert content["start"]["path"].endswith(newest(place, "one").name)


def test_merged_and_discarded_rounds_are_what_they_say(place: Path) -> None:
    second_round(place, "merged", "--adapters", "merge")
    second_round(place, "fresh", "--adapters", "discard")
    for name in ("merged", "fresh"):
        assert all(float(value.abs().sum()) == 0 for key, value in adapters(place, name).items() if "lora_B" in key)
    base, merged, fresh = (
        load_file(newest(place, name) / "model/model.safetensors") for name in ("one", "merged", "fresh")
    )
    assert all((base[key] == fresh[key]).all() for key in base)
    assert any((base[key] != merged[key]).any() for key in base)
    assert [s["weights"] for s in described(place, "merged")["trained_on"]] == ["model", "model", "adapters"]
    assert "merged into the model with omega 2" in described(place, "merged")["start"]["adapters"]
    stages = [(s["stage"], s["split"]) for s in described(place, "fresh")["trained_on"]]
    assert stages == [("imitation", "navtrain"), ("dipole", "navtest")]


def test_adapters_of_another_rank_are_refused_before_anything_is_written(place: Path) -> None:
    said = refused("rl_finetune.py", *SECOND_ROUND, "--out", "runs/corrected", "--lora.rank", "8", cwd=place)
    assert "--lora.rank 4 --lora.alpha 4" in said and not (place / "runs/corrected/run.yaml").exists()
    second_round(place, "corrected")


def test_an_evaluation_takes_the_omega_of_the_training(place: Path) -> None:
    for out, options in (("own", ()), ("other", ("--omega", "0.5"))):
        given = ("--agent", "dpvla", "--checkpoint", "runs/one", "--split", "navtest", "--out", out)
        call("evaluate.py", *given, *options, cwd=place)
    omegas = [json.loads((place / out / "summary.json").read_text())["omega"] for out in ("own", "other")]
    assert omegas == [2.0, 0.5]
    summary = json.loads((place / "own/summary.json").read_text())
    assert summary["weights"].endswith(f"runs/one/checkpoints/{newest(place, 'one').name}")
    assert summary["precision"] == "no"
    team = [word for key in ("team-name", "authors", "email", "institution", "country") for word in (f"--{key}", "x")]
    call("export_submission.py", "--checkpoint", "runs/one", "--split", "navtest", "--out", "a.pkl", *team, cwd=place)
    call("export_submission.py", "--checkpoint", "runs/one", "--split", "navtest", "--out", "b.pkl", *team, "--omega",
        "2.0", cwd=place)  # fmt: skip
    assert (place / "a.pkl").read_bytes() == (place / "b.pkl").read_bytes()


def test_a_run_is_made_longer_with_other_bookkeeping_and_notes_it(place: Path) -> None:
    first = ("--config", "pretrain.yaml", "--out", "runs/longer")
    call("pretrain.py", *first, cwd=place)
    steps = int(newest(place, "longer").name[5:])
    root = str(place / "data/demo_world")
    text = call("pretrain.py", *first, "--imitation.epochs", "3", "--loop.lr", "1e-4", "--loop.log-every", "2",
               "--loop.save-every", "50", "--loop.trackers", "tensorboard", "--data-root", root, "--workers", "1",
               cwd=place)  # fmt: skip
    assert "imitation.epochs is 3 from update" in text and "schedule" in text
    assert int(newest(place, "longer").name[5:]) == steps // 2 * 3
    content = described(place, "longer")
    assert content["resumed"][-1]["changed"] == {"imitation.epochs": [2, 3], "loop.lr": [1e-3, 1e-4]}
    assert content["resumed"][-1]["step"] == steps
    assert "cannot be undone" in refused("pretrain.py", *first, "--imitation.epochs", "1", cwd=place)
    said = refused("pretrain.py", *first, "--imitation.batch-size", "2", cwd=place)
    assert "imitation.batch_size = 4, this one has 2" in said


def test_data_that_changed_under_a_run_is_noticed(place: Path) -> None:
    first = ("--config", "pretrain.yaml", "--out", "runs/moved", "--loop.save-every", "1")
    call("pretrain.py", *first, "--loop.stop-after-step", "1", cwd=place, status=(130,))
    picture = next((place / "data/demo_world/sensor_blobs/trainval").rglob("CAM_F0/*.jpg"))
    content = picture.read_bytes()
    try:
        for changed in sorted(picture.parents[1].rglob("CAM_F0/*.jpg")):
            changed.write_bytes(changed.read_bytes() + b"\0")
        assert "was trained on other data" in refused("pretrain.py", *first, cwd=place)
    finally:
        for changed in sorted(picture.parents[1].rglob("CAM_F0/*.jpg")):
            changed.write_bytes(changed.read_bytes()[:-1])
    assert picture.read_bytes() == content
    call("pretrain.py", *first, cwd=place)


def test_a_new_run_starts_from_weights_and_knows_what_they_saw(place: Path) -> None:
    still = ("--loop.lr", "0", "--loop.weight-decay", "0", "--config", "pretrain.yaml")
    call("pretrain.py", *still, "--init-from", "runs/pre", "--out", "runs/again", cwd=place)
    before, after = (load_file(newest(place, name) / "model/model.safetensors") for name in ("pre", "again"))
    assert all((before[key] == after[key]).all() for key in before if "num_batches" not in key)
    content = described(place, "again")
    assert [s["stage"] for s in content["trained_on"]] == ["imitation", "imitation"]
    assert "runs/pre/checkpoints" in content["start"]["path"]
    said = refused("pretrain.py", *still, "--init-from", "runs/one", "--out", "runs/no", cwd=place)
    assert "has adapters, which pretraining does not train" in said and not (place / "runs/no/run.yaml").exists()
    said = refused(
        "pretrain.py", *still, "--init-from", "runs/pre", "--model.head.mlp-ratio", "2", "--out", "runs/no", cwd=place
    )
    assert "model.head.mlp_ratio is 2" in said


BAD = [
    ("pretrain.py", ("--imitation.epochs", "0"), "imitation.epochs must be at least 1"),
    ("pretrain.py", ("--imitation.batch-size", "-4"), "imitation.batch_size must be at least 1"),
    ("pretrain.py", ("--loop.ema-decay", "2"), "loop.ema_decay must be at least 0 and below 1"),
    ("pretrain.py", ("--loop.lr", "nan"), "loop.lr must be a finite number"),
    ("pretrain.py", ("--loop.keep-checkpoints", "-1"), "loop.keep_checkpoints must be at least 1"),
    (
        "pretrain.py",
        ("--model.head.width", "16", "--model.head.heads", "3"),
        "model.head.width 16 is not divisible by heads, 3",
    ),
    ("rl_finetune.py", ("--rollouts.group-size", "1"), "rollouts.group_size must be at least 2"),
    ("rl_finetune.py", ("--dipole.beta", "-5"), "algorithm.beta must be at least 0"),
    ("rl_finetune.py", ("--rollouts.cycles", "0"), "rollouts.cycles must be at least 1"),
    ("rl_finetune.py", ("--checkpoint", "runs/nothing"), "no checkpoint at runs/nothing"),
]


@pytest.mark.parametrize(("tool", "options", "message"), BAD)
def test_a_config_that_cannot_work_is_one_line_and_leaves_the_folder_free(
    place: Path, tool: str, options: tuple[str, ...], message: str
) -> None:
    recipe = "pretrain.yaml" if tool == "pretrain.py" else "dipole.yaml"
    assert message in refused(tool, "--config", recipe, "--out", "runs/bad", *options, cwd=place)
    assert not (place / "runs/bad/run.yaml").exists()
