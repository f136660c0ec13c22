"""The real tool at toy size: held-out scenes, the best checkpoint, the stop at a fall, the picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import ROOT
from tests.tools.real_tools import call, refused
from tests.tools.test_going_on import DIPOLE

HOLD_OUT = {"heldout": {"split": "navtest_all", "scenes": 4}, "watch": {"scenes": 2, "picture": True}}


@pytest.fixture(scope="module")
def place(toy_place: Path) -> Path:
    """The toy place with the recipes watched.yaml, of PDMS, and ade.yaml, of a metric that needs no cache."""
    of_ade = {"plugin": [str(ROOT / "examples" / "metric.py")], "metric": {"name": "ade", "scale": 20.0}}
    recipe: dict[str, Any] = DIPOLE | HOLD_OUT
    recipe["dipole"] |= {"cycles": 2}
    (toy_place / "watched.yaml").write_text(yaml.safe_dump(recipe))
    (toy_place / "ade.yaml").write_text(yaml.safe_dump(recipe | of_ade))
    return toy_place


def rows(place: Path, name: str) -> list[dict[str, str]]:
    with (place / "runs" / name / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def finetune(place: Path, out: str, *options: str, recipe: str = "ade.yaml", status: tuple[int, ...] = (0,)) -> str:
    return call("rl_finetune.py", "--config", recipe, "--out", f"runs/{out}", *options, cwd=place, status=status)


def test_held_out_scores_are_those_of_an_evaluation_of_the_best_checkpoint(place: Path) -> None:
    said = finetune(place, "ade", "--heldout.scenes", "0", "--rollouts.cycles", "3", "--heldout.every", "2")
    held = {int(row["step"]): float(row["heldout/score"]) for row in rows(place, "ade") if row["heldout/score"]}
    assert list(held) == [0, 4, 6]  # the start, the second cycle, and the last
    assert "watched beside the reward: pdms" in said  # whose scenes are cached
    assert rows(place, "ade")[0]["heldout/pdms/score"] and rows(place, "ade")[1]["rollout/pdms/ego_progress"]
    best = max((step for step in held if step), key=held.__getitem__)
    assert f"best: runs/ade/best (step {best}, heldout/score {held[best]:.4f})" in said
    plugin = ("--plugin", str(ROOT / "examples" / "metric.py"), "--metric", "ade", "--metric.scale", "20")
    options = ("--agent", "dpvla", "--checkpoint", "runs/ade/best", "--split", "navtest_all", "--out", "ade")
    call("evaluate.py", *options, *plugin, cwd=place)
    summary = json.loads((place / "ade" / "summary.json").read_text())
    assert summary["averages"]["score"] == pytest.approx(held[best], rel=1e-5)
    assert summary["weights"].endswith(f"runs/ade/checkpoints/step_{best:08d}")
    trained = yaml.safe_load((place / "runs/ade/best/run.yaml").read_text())["trained_on"]
    assert [stage["split"] for stage in trained] == ["navtrain", "navtrain"]


def test_metrics_whose_scenes_are_cached_are_watched_and_others_are_named(place: Path) -> None:
    said = finetune(place, "pdms", recipe="watched.yaml")
    assert "epdms is not watched on navtrain: its scenes are not cached at" in said
    assert "held out: 4 scenes of 1 log of navtest_all" in said and "cycle 2 of 2: encode" in said
    assert (place / "runs/pdms/run.png").read_bytes().startswith(b"\x89PNG")
    logged = [row for row in rows(place, "pdms") if row["rollout/score"]]
    assert len(logged) == 2
    for name in ("rollout/comfort", "rollout/from_pretrained_m", "rl/ess_positive", "alarm/reversing", "speed/score_s"):
        assert all(row[name] for row in logged), name


def test_a_fall_stops_the_run_with_one_line_and_the_picture_shows_it(place: Path) -> None:
    tiring = str(ROOT / "tests" / "tools" / "plugins" / "tiring.py")
    options = ("--plugin", tiring, "--metric", "tiring", "--heldout.stop-below", "0.5", "--watch.metrics")
    said = finetune(place, "fallen", *options, status=(1,))
    line = error(said)
    assert line.startswith("error: heldout/score fell to -2.0000, more than 0.5 below -1.0000 before the first update")
    assert "the best checkpoint is runs/fallen/best" in line and "Traceback" not in said
    assert (place / "runs/fallen/run.png").exists() and (place / "runs/fallen/best/adapters").is_dir()
    assert [path.name for path in (place / "runs/fallen/checkpoints").iterdir()] == ["step_00000002"]
    again = finetune(place, "fallen", *options, status=(1,))
    assert error(again) == line


def error(said: str) -> str:
    """The one line that a tool ends with."""
    found = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(found) == 1
    return found[0]


BAD = [
    (("--heldout.split", "navtrain"), "heldout.split navtrain: 10 of its 10 scenes are learned from"),
    (("--heldout.split", "nowhere"), "nowhere"),
    (("--watch.metrics", "pdsm"), "watch.metrics: unknown metric 'pdsm'; nearest valid name: 'pdms'"),
    (("--watch.rise", "2"), "watch.rise must be"),
    (("--watch.reverse-mps", "0"), "watch.reverse_mps must be above 0"),
    (("--heldout.every", "0"), "heldout.every must be at least 1"),
    (("--heldout.stop-below", "-1"), "heldout.stop_below must be at least 0"),
    (("--watch.metric-caches", "data/demo_world/metric_cache/navtrain_all", "--watch.metrics"), "serves nothing here"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_cannot_be_watched_is_one_line_before_anything_is_written(
    place: Path, options: tuple[str, ...], message: str
) -> None:
    said = refused("rl_finetune.py", "--config", "ade.yaml", "--out", "runs/bad", *options, cwd=place)
    assert message in error(said) and not (place / "runs/bad/run.yaml").exists()


def test_a_bound_without_held_out_scenes_is_refused(place: Path) -> None:
    (place / "alone.yaml").write_text(yaml.safe_dump(DIPOLE))
    said = refused(
        "rl_finetune.py", "--config", "alone.yaml", "--out", "runs/bad", "--heldout.stop-below", "1", cwd=place
    )
    assert "heldout.stop_below needs held-out scenes: give heldout.split, or validation_logs" in said
