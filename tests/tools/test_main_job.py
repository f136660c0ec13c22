"""The real tools, end to end at toy size, as a user runs them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.tools.real_tools import TOY_WORLD, run, toy_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the whole demo was run at toy size."""
    folder = tmp_path_factory.mktemp("demo")
    world = [option.replace("--", "--world.") if option.startswith("--") else option for option in TOY_WORLD]
    toy_recipe("pretrain_demo", folder / "pretrain.yaml", imitation={"epochs": 2, "batch_size": 16})
    toy_recipe(
        "dipole_demo",
        folder / "dipole.yaml",
        algorithm={"omega": 0.75},
        rollouts={"cycles": 1, "epochs_per_cycle": 1, "scenes_per_cycle": 4, "batch_size": 2, "group_size": 3},
    )
    run(
        "demo.py",
        *world,
        *("--pretrain-config", "pretrain.yaml", "--dipole-config", "dipole.yaml"),
        cwd=folder,
    )
    return folder


def test_the_demo_leaves_a_row_for_every_method_and_split(place: Path) -> None:
    rows = json.loads((place / "runs/demo/summary.json").read_text())
    methods = [(row["method"], row["trained_on"]) for row in rows if row["split"] == "navtest"]
    assert methods == [
        ("constant velocity", ""),
        ("stand still", ""),
        ("human", ""),
        ("DP-VLA imitation", "navtrain"),
        ("DP-VLA + DIPOLE", "navtrain"),
        ("DP-VLA + DIPOLE", "navtest"),
        ("control, beta 0", "navtrain"),
    ]
    assert [row["method"] for row in rows if row["split"] == "navtest_all"] == [method for method, _ in methods]
    for row in rows:
        assert list(row) == ["method", "trained_on", "split", "NC", "DAC", "TTC", "C", "EP", "PDMS", "scenes"]
        assert all(0 <= row[name] <= 100 for name in ("NC", "DAC", "TTC", "C", "EP", "PDMS"))
        assert row["scenes"] > 0
    human = next(row for row in rows if row["method"] == "human" and row["split"] == "navtest")
    still = next(row for row in rows if row["method"] == "stand still" and row["split"] == "navtest")
    assert human["PDMS"] >= 80 > still["PDMS"]
    assert "| DP-VLA + DIPOLE " in (place / "runs/demo/summary.md").read_text()


def test_every_method_was_sampled_with_the_omega_that_it_was_trained_with(place: Path) -> None:
    recipe = yaml.safe_load((place / "dipole.yaml").read_text())["algorithm"]["omega"]
    omegas = {path.parent.name: json.loads(path.read_text())["omega"]
              for path in (place / "runs/demo/evaluation").glob("*_navtest/summary.json")}  # fmt: skip
    assert omegas["dipole_navtrain_navtest"] == omegas["control_beta0_navtest"] == recipe == 0.75
    assert omegas["pretrain_navtest"] is omegas["human_navtest"] is None


def test_the_control_differs_from_dipole_in_beta_alone(place: Path) -> None:
    control = yaml.safe_load((place / "runs/demo/control_beta0/run.yaml").read_text())["config"]
    dipole = yaml.safe_load((place / "runs/demo/dipole_navtrain/run.yaml").read_text())["config"]
    assert control["algorithm"].pop("beta") == 0 < dipole["algorithm"].pop("beta")
    control.pop("out"), dipole.pop("out")
    assert control == dipole


def test_both_adapters_of_the_demo_have_moved_and_the_model_has_not(place: Path) -> None:
    before = load_file(next((place / "runs/demo/pretrain/checkpoints").glob("step_*/model/model.safetensors")))
    checkpoint = next((place / "runs/demo/dipole_navtest/checkpoints").glob("step_*"))
    after = load_file(checkpoint / "model/model.safetensors")
    assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)
    ups = {name: load_file(checkpoint / "adapters" / name / "adapter_model.safetensors") for name in
           ("positive", "negative")}  # fmt: skip
    for tensors in ups.values():
        assert all(float(value.abs().sum()) > 0 for key, value in tensors.items() if "lora_B" in key)


def test_the_demo_again_does_nothing_twice(place: Path) -> None:
    step = next((place / "runs/demo/pretrain/checkpoints").glob("step_*"))
    before = step.stat().st_mtime_ns
    options = ("--config", "pretrain.yaml", "--out", "runs/demo/pretrain", "--data-root", "data/demo_world",
               "--maps-root", "data/demo_world/maps")  # fmt: skip
    text = run("pretrain.py", *options, cwd=place)
    assert "checkpoint: runs/demo/pretrain" in text
    assert step.stat().st_mtime_ns == before
    other = run("pretrain.py", *options, "--imitation.batch-size", "8", cwd=place, status=1)
    assert "imitation.batch_size = 16, this one has 8" in other
    assert "Traceback" not in other


def test_the_submission_names_the_weights_scenes(place: Path) -> None:
    text = run("export_submission.py", "--validate", "runs/demo/submission.pkl", "--split", "navtest", cwd=place)
    assert "is a valid submission" in text


def test_pictures_are_made_of_scenes(place: Path) -> None:
    pictures = list((place / "runs/demo/pictures").glob("*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size[0] > 1000


def test_evaluation_with_a_cache_gives_the_rows_of_the_demo(place: Path) -> None:
    run("cache_metrics.py", "--split", "navtest", "--out", "caches/navtest", cwd=place)
    run("evaluate.py", "--agent", "dpvla", "--checkpoint", "runs/demo/dipole_navtest", "--split", "navtest",
        "--metric-cache", "caches/navtest", "--out", "scores", cwd=place)  # fmt: skip
    with (place / "scores/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((place / "scores/summary.json").read_text())
    assert rows[-1]["token"] == "average"
    assert float(rows[-1]["score"]) == pytest.approx(sum(float(r["score"]) for r in rows[:-1]) / len(rows[:-1]))
    assert summary["trained_on_evaluation_split"] is True
    table = json.loads((place / "runs/demo/summary.json").read_text())
    row = next(r for r in table if (r["trained_on"], r["split"]) == ("navtest", "navtest"))
    assert row["PDMS"] == pytest.approx(100 * float(rows[-1]["score"]), abs=1e-4)


def test_a_token_missing_from_the_cache_is_an_error(place: Path) -> None:
    run("cache_metrics.py", "--split", "navtest", "--out", "caches/small", cwd=place)
    text = run("evaluate.py", "--agent", "human", "--split", "navtrain", "--metric-cache", "caches/small", "--out",
               "nothing", cwd=place, status=1)  # fmt: skip
    assert "not in the metric cache" in text and "Traceback" not in text


def test_accelerate_launch_pretrains_and_stops_and_goes_on(place: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision",
                "no", "--dynamo_backend", "no", "--cpu")  # fmt: skip
    options = ("--out", "runs/stopped", "--config", "pretrain.yaml", "--loop.log-every", "1")
    text = run("pretrain.py", *options, "--loop.stop-after-step", "1", cwd=place, launcher=launcher, status=1)
    assert "the same command goes on from there" in text
    run("pretrain.py", *options, cwd=place)
    run("pretrain.py", *options[:1], "runs/straight", *options[2:], cwd=place)
    last = {
        name: sorted((place / "runs" / name / "checkpoints").glob("step_*"))[-1] for name in ("stopped", "straight")
    }
    a, b = (load_file(path / "trainer_state/weights.safetensors") for path in last.values())
    assert all((a[key] == b[key]).all() for key in a)
    assert (place / "runs/stopped/metrics.csv").is_file()
    assert list((place / "runs/stopped").rglob("events.out.tfevents*"))
