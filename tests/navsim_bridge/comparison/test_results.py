"""From what runs left behind to tables: what belongs together, what is empty, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from dpvla.config import ConfigError, to_dict
from dpvla.files import FileError
from navsim_bridge.comparison.cells import Results
from navsim_bridge.comparison.config import ComparisonConfig
from navsim_bridge.comparison.grid import Grid
from navsim_bridge.comparison.jobs import Job, Jobs
from navsim_bridge.comparison.page import BY_HAND, note_made, write_page
from navsim_bridge.comparison.records import Spent, read_scored, spent_by
from navsim_bridge.comparison.rows import SELECTED, Rows
from navsim_bridge.comparison.selection import Selection
from navsim_bridge.comparison.tables import Table, all_rows, look_at_test_split
from tests.navsim_bridge.comparison.made import ROWS, jobs_of, scored, write

LOGS = {f"token {i}": f"log {i % 3}" for i in range(9)}


@dataclasses.dataclass
class Made:
    """A comparison whose jobs are done as a test says."""

    config: ComparisonConfig
    rows: Rows
    jobs: Jobs
    results: Results

    @property
    def out(self) -> Path:
        return self.results.grid.out

    def note(self, job: Job) -> None:
        path = self.out / "jobs" / f"{job.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"command": "x", "seconds": 1.0}))

    def finish(self, job: Job, score: float = 0.5, **other: Any) -> None:
        """A run or an evaluation as the tools leave it; ``other``: what is not as it should be."""
        self.note(job)
        folder = self.out / job.name
        if job.tool == "evaluate.py":
            scored(folder, {t: score + i / 100 for i, t in enumerate(LOGS)}, other.get("fingerprint", "same"))
            return
        step = folder / "checkpoints" / f"step_{other.get('updates', 4)}"
        if job.tool == "rl_finetune.py":
            assert job.recipe is not None
            row = next(r for r in self.rows.table.values() if r.options == job.recipe[1])
            config = to_dict(row.full())
            config["algorithm"]["beta"] = other.get("beta", config["algorithm"]["beta"])
            (folder / "x").mkdir(parents=True)
            (folder / "run.yaml").write_text(yaml.safe_dump({"config": config, "data": {"scenes": 10}}))
            lines = ["step,train/loss,rollout/score", *(f"{i * 2},,0.5" for i in range(other.get("cycles", 2))), "4,1,"]
            (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
            for name in ("negative", "positive"):
                (step / "adapters" / name).mkdir(parents=True)
                save_file(
                    {"a": np.zeros((3, other.get("rank", 5)))}, step / "adapters" / name / "adapter_model.safetensors"
                )
        step.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    monkeypatch.setattr(Results, "logs_of", lambda *_: LOGS)

    def made(seeds: tuple[int, ...] = (0, 1), **changes: Any) -> Made:
        config = dataclasses.replace(write(tmp_path, **changes), seeds=seeds)
        rows, jobs = jobs_of(config)
        return Made(config, rows, jobs, Results(Grid(tmp_path / "out", tmp_path), tmp_path, 100))

    return made


def cell_of(text: str, method: str, column: str) -> str:
    """A cell of a Markdown table."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("|")]
    return next(line for line in lines[2:] if line[0] == method)[lines[0].index(column)]


def table(made: Made) -> tuple[Table, str]:
    found = all_rows(made.config, made.jobs, made.rows)
    made.out.mkdir(exist_ok=True)
    return found, found.write(made.results, made.out)


def finish_all(made: Made, **other: Any) -> None:
    """Every job of table 4; scores by row and seed: stand still .2, imitation .3, dipole .5, control .4."""
    all_rows(made.config, made.jobs, made.rows)
    by_run = {
        made.jobs.train(r, "navtrain", 0).name.split("/")[1]: k for k, r in made.rows.table.items() if r.is_trained
    }
    scores = {"still": 0.2, "imitation": 0.3, "dipole": 0.5, "control": 0.4}
    for job in made.jobs.asked.values():
        key = by_run.get(job.name.split("/")[1], "still")
        seed = 0.1 * ("seed_1" in job.name)
        made.finish(job, scores[key] + seed, **(other if key == "control" else {}))


def test_a_table_has_means_spreads_intervals_and_paired_differences(make: Callable[..., Made]) -> None:
    made = make()
    finish_all(made)
    _, text = table(made)
    assert cell_of(text, "DIPOLE", "PDMS") == "59.0 ± 7.1" and cell_of(text, "imitation", "PDMS") == "39.0 ± 7.1"
    assert cell_of(text, "DIPOLE", "difference") == "+20.0 [+20.0, +20.0]", "equal by scene, so nothing to draw"
    assert cell_of(text, "imitation", "difference") == ""
    assert cell_of(text, "stand still", "PDMS") == "24.0" and cell_of(text, "stand still", "seeds") == ""
    assert cell_of(text, "stand still", "difference").startswith("-15.0 [-15.0")
    low, high = map(float, cell_of(text, "DIPOLE", "95 % over logs").strip("[]").split(", "))
    assert 55 < low < 59 < high < 63
    assert "16 plans scored, 4 updates, 30 parameters of adapters" in text
    assert "9 scenes of 3 logs" in text and "no numbers of the test split" in text
    rows = list(csv.DictReader((made.out / "table_4_navval.csv").open()))
    assert len(rows) == 7 * 6 and {row["seed"] for row in rows} == {"", "0", "1"}
    assert all((made.out / row["run"]).exists() for row in rows)
    assert (made.out / "table_4_navval.png").stat().st_size > 5000


def test_what_is_not_finished_is_empty(make: Callable[..., Made]) -> None:
    made = make()
    _, text = table(made)
    assert {cell_of(text, name, "PDMS") for name in ("stand still", "imitation", "DIPOLE")} == {""}
    finish_all(made)
    dipole = made.rows.table["dipole"]
    lost = made.jobs.score(dipole, "navtrain", "navval", "pdms", 1)
    (made.out / lost.name / "summary.json").unlink()
    _, text = table(made)
    assert cell_of(text, "DIPOLE", "PDMS") == "54.0" and cell_of(text, "DIPOLE", "seeds") == "1 of 2"
    assert cell_of(text, "DIPOLE", "difference") == "+20.0 [+20.0, +20.0]", "over the seeds that both have"


@pytest.mark.parametrize(
    ("other", "what"), [({"cycles": 1}, "plans"), ({"updates": 3}, "updates"), ({"rank": 6}, "parameters")]
)
def test_runs_that_spent_unequally_by_their_records_are_no_table(
    make: Callable[..., Made], other: dict[str, int], what: str
) -> None:
    made = make()
    finish_all(made, **other)
    with pytest.raises(ConfigError, match=f"the runs spent {what} unequally .*dipole .*control .*no comparison"):
        table(made)
    equal = [name for name in ("plans", "updates", "parameters") if name != what]
    made = make(rows={"equal": equal})
    assert "RL runs on navtrain, by their own records: DIPOLE: 16 plans" in table(made)[1]


def test_a_run_of_other_options_is_not_taken_for_the_rows(make: Callable[..., Made]) -> None:
    made = make()
    finish_all(made, beta=7.0)
    with pytest.raises(ConfigError, match=r"holds a run with algorithm.beta 7.0, this row's has 0.0"):
        table(made)


def test_what_a_run_spent_is_read_from_its_records(make: Callable[..., Made]) -> None:
    made = make()
    job = made.jobs.train(made.rows.table["dipole"], "navtrain", 0)
    made.finish(job, cycles=3, updates=9, rank=2)
    assert spent_by(made.out, job) == Spent(plans=3 * 4 * 2, updates=9, parameters=2 * 3 * 2)


def test_scores_of_other_data_are_not_mixed(make: Callable[..., Made]) -> None:
    made = make()
    finish_all(made)
    job = made.jobs.score(made.rows.table["dipole"], "navtrain", "navval", "pdms", 1)
    made.finish(job, fingerprint="other")
    with pytest.raises(ConfigError, match="were scored on other scenes or logs of navval"):
        table(made)


@pytest.mark.parametrize(
    "damage", ["token,valid,score,reason\n", "x\n" * 11, "token,valid,score,reason\n" + "t,True,x,\n" * 10]
)
def test_damaged_scores_are_named(make: Callable[..., Made], damage: str) -> None:
    made = make()
    job = made.jobs.score(made.rows.table["still"], "navtrain", "navval", "pdms", 0)
    made.finish(job)
    (made.out / job.name / "scores.csv").write_text(damage)
    with pytest.raises(FileError, match=r"scores\.csv .*evaluate again"):
        read_scored(made.out / job.name)


def test_the_best_of_a_grid_is_chosen_and_written_for_the_table(make: Callable[..., Made]) -> None:
    grid = {"algorithm.beta": [1, 2, 4]}
    made = make(rows={"rows": {**ROWS["rows"], "dipole": {**ROWS["rows"]["dipole"], "grid": grid}}})
    selection = Selection(made.config, made.jobs, made.rows)
    made.out.mkdir()
    for (_, cell), score in zip(selection.tried, (0.4, 0.7, 0.7)):
        made.note(cell.runs[0])
        assert set(cell.runs) == {0}, "with the first seed alone"
        (made.out / cell.runs[0].name / "checkpoints").mkdir(parents=True)
        if score == 0.4:
            selection.write(made.results, made.out)
            assert not (made.out / SELECTED).exists(), "not before all are done"
        made.finish(cell.scores[0]["pdms"], score)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("navsim_bridge.comparison.cells.spent_by", lambda *_: Spent(1, 1, 1))
    text = selection.write(made.results, made.out)
    monkey.undo()
    assert yaml.safe_load((made.out / SELECTED).read_text()) == {"dipole": {"algorithm.beta": 2}}
    assert [line.count("chosen") for line in text.split("\n") if "beta" in line] == [0, 1, 0]
    assert jobs_of(made.config)[0].table["dipole"].chosen == {"algorithm.beta": 2}
    (made.out / SELECTED).write_text("dipole: {algorithm.beta: 3}\n")
    with pytest.raises(ConfigError, match=r"its grid is another than that which selected\.yaml was chosen from"):
        jobs_of(made.config)


def test_the_test_split_is_scored_once(make: Callable[..., Made]) -> None:
    made = make()
    final = dataclasses.replace(made.config, final=True)
    look = all_rows(final, made.jobs, made.rows)
    assert {(c.row.key, c.trained_on) for c in look.cells} == {
        ("still", ""), ("imitation", "navtrain"), ("dipole", "navtrain"), ("control", "navtrain"),
        ("dipole", "navtest"), ("control", "navtest"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="scored once, when all is chosen, and nothing is of dipole"):
        look_at_test_split(look, made.out)
    made.out.mkdir()
    (made.out / SELECTED).write_text("dipole: {algorithm.beta: 1}\n")
    for _ in range(2):
        rows, jobs = jobs_of(final)
        look_at_test_split(all_rows(final, jobs, rows), made.out)
    (made.out / SELECTED).write_text("dipole: {algorithm.beta: 2}\n")
    rows, jobs = jobs_of(final)
    with pytest.raises(ConfigError, match="the test split was scored with other options of dipole"):
        look_at_test_split(all_rows(final, jobs, rows), made.out)


def test_the_page_keeps_what_was_written_by_hand(make: Callable[..., Made], tmp_path: Path) -> None:
    made, page = make(), tmp_path / "docs" / "driving.md"
    with pytest.raises(ConfigError, match="holds no result yet"):
        write_page(made.out, page)
    finish_all(made)
    table(made)
    note_made(made.out, "table_4_navval", "python tools/reproduce.py --table 4")
    written = write_page(made.out, page)
    assert {path.name for path in written} == {"driving.md", "driving_table_4_navval.csv", "driving_table_4_navval.png"}
    page.write_text(page.read_text().replace("Nothing yet.", "DIPOLE did not win."))
    write_page(made.out, page)
    text = page.read_text()
    assert text.count(BY_HAND) == 1 and text.endswith("DIPOLE did not win.\n")
    assert "python tools/reproduce.py --table 4\n" in text and "![table_4_navval](driving_table_4_navval.png)" in text
    assert all(len(line) <= 120 for line in text.split("\n") if not line.startswith("|"))
