"""The comparison on driving with the real tools, at toy size."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.real_tools import PRETRAIN, call, refused

PROTOCOL: dict[str, Any] = {
    "pretrain": "recipe.yaml",
    "adapt": None,
    "validation": "navtest",  # the toy world has no navval
    "test": "navtest_all",
    "metrics": ["pdms"],
    "finetune": {
        "rollouts": {"group_size": 6, "cycles": 1, "epochs_per_cycle": 1, "scenes_per_cycle": 6, "batch_size": 6},
        "loop": {"trackers": [], "log_every": 1},
    },
    "minutes": {"imitation": 3, "finetune": 2, "evaluation": 1},
}
ROWS = {
    "bootstrap": 50,
    "rows": {"imitation": {"title": "imitation"}, "dipole": {"title": "DIPOLE", "algorithm": {"name": "dipole"}}},
}


def test_two_rows_from_nothing_to_the_table_and_not_twice(toy_place: Path, tmp_path: Path) -> None:
    recipe = {**PRETRAIN, "imitation": {"epochs": 1, "batch_size": 8}}
    for name, content in (("recipe", recipe), ("protocol", PROTOCOL), ("rows", ROWS)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    world = toy_place / "data" / "demo_world"
    asked = ("--rows", "rows.yaml", "--protocol", "protocol.yaml", "--out", "out", "--seeds", "3", "--workers", "1",
             "--data-root", str(world), "--maps-root", str(world / "maps"))  # fmt: skip
    said = call("reproduce.py", "--table", "4", "--dry-run", *asked, cwd=tmp_path)
    assert "4 of 4 runs and evaluations missing; about 7 CPU minutes" in said
    assert not (tmp_path / "out" / "runs").exists()
    said = call("reproduce.py", "--table", "4", *asked, cwd=tmp_path)
    assert "36 plans scored, 1 updates" in said
    table = (tmp_path / "out" / "table_4_navtest.md").read_text()
    assert table in said and "| DIPOLE " in table
    with (tmp_path / "out" / "table_4_navtest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["column"] == "score"]
    assert [(row["row"], row["trained_on"], row["seed"]) for row in rows] == [
        ("imitation", "navtrain", "3"), ("dipole", "navtrain", "3"),
    ]  # fmt: skip
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    said = call("reproduce.py", "--table", "4", *asked, cwd=tmp_path)
    assert "0 of 4 runs and evaluations missing" in said and table in said
    said = refused("reproduce.py", "--table", "4", "--only", "dipol", *asked, cwd=tmp_path)
    assert "rows.yaml has no row 'dipol' here; nearest valid name: 'dipole'" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--table 4 --figure 5", "give one of --table 4, --figure, --study and --report, found 2"),
        ("--study cycle", "study"),
        ("--table 4 --protocol gone.yaml", "gone.yaml does not exist"),
        ("--figure 5 --only x", "only belongs to --table 4 and --study"),
        ("--table=4 --steps 3", "unknown option --steps"),
        ("--report page.md --out nothing", "nothing holds no result yet"),
        ("--table 7 --final", "unknown option --final"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(words: str, message: str, toy_place: Path) -> None:
    said = refused("reproduce.py", *words.split(), cwd=toy_place)
    assert message in said and len(said.removesuffix("2").strip().split("\n")) == 1
