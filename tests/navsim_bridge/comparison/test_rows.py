"""Rows, grids and protocols: what they come to, and what is refused before anything is spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpvla.config import ConfigError
from navsim_bridge.comparison.config import ComparisonConfig
from navsim_bridge.comparison.figures import Figure5, ScalingFigure
from navsim_bridge.comparison.jobs import Job
from navsim_bridge.comparison.rows import SELECTED
from navsim_bridge.comparison.selection import Selection
from navsim_bridge.comparison.tables import all_rows, cycles_and_anchor
from tests.navsim_bridge.comparison.made import ROWS, jobs_of, write


def test_a_row_like_another_changes_what_it_says_alone(tmp_path: Path) -> None:
    rows, _ = jobs_of(write(tmp_path))
    dipole, control = rows.table["dipole"], rows.table["control"]
    assert dipole.full().rollouts == control.full().rollouts and dipole.full().rollouts.scenes_per_cycle == 4
    assert dipole.options is not None and control.options is not None
    assert dipole.options["algorithm"] == {"name": "dipole", "beta": 2.0}
    assert control.options["algorithm"] == {"name": "dipole", "beta": 0.0}
    assert not control.grid and control.title == "control"


def test_runs_of_equal_options_are_shared_and_of_other_ones_never(tmp_path: Path) -> None:
    same = {"like": "dipole", "algorithm": {"beta": 2.0}}
    rows, jobs = jobs_of(write(tmp_path, rows={"rows": {**ROWS["rows"], "same": same}}))
    names = {key: jobs.train(row, "navtrain", 0).name for key, row in rows.table.items() if row.is_trained}
    assert names["same"] == names["dipole"] and len(set(names.values())) == 3
    assert jobs.train(rows.table["dipole"], "navtrain", 1).name != names["dipole"]
    (tmp_path / "pretrain.yaml").write_text("split: navtrain\nloop: {lr: 1.0e-3}\n")
    rows, jobs = jobs_of(ComparisonConfig(table="4", rows=str(tmp_path / "rows.yaml"), out=str(tmp_path / "out"),
                                          protocol=str(tmp_path / "protocol.yaml")))  # fmt: skip
    assert jobs.train(rows.table["dipole"], "navtrain", 0).name != names["dipole"], "it starts from other weights"


def test_the_selection_tries_every_combination_and_the_chosen_one_is_the_rows(tmp_path: Path) -> None:
    grid = {"algorithm.beta": [1, 2, 4], "loop.lr": [1e-3, "2e-3"]}
    given = write(tmp_path, rows={"rows": {**ROWS["rows"], "dipole": {**ROWS["rows"]["dipole"], "grid": grid}}})
    rows, jobs = jobs_of(given)
    tried = Selection(given, jobs, rows).tried
    assert len({cell.runs[0].name for _, cell in tried}) == len(tried) == 6
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SELECTED).write_text(yaml.safe_dump({"dipole": {"algorithm.beta": 4, "loop.lr": 1e-3}}))
    chosen = jobs_of(given)[0].table
    assert chosen["dipole"].full().loop.lr == 1e-3
    assert getattr(chosen["dipole"].full().algorithm, "beta") == 4  # noqa: B009
    assert chosen["control"].full().loop.lr == 1e-3, "a row like it takes what was chosen for it"
    rows, jobs = jobs_of(given)
    assert [c.runs[0].name for _, c in Selection(given, jobs, rows).tried] == [c.runs[0].name for _, c in tried]


def test_a_row_with_a_selector_is_the_same_run_and_another_evaluation(tmp_path: Path) -> None:
    kept = {"like": "dipole", "rollouts": {"keep": True}}
    rows = {"rows": {**ROWS["rows"], "kept": kept, "selected": {"like": "kept", "select": 16}}}
    with pytest.raises(ConfigError, match=r"protocol.yaml: selector, the recipe of rows with 'select', is missing"):
        jobs_of(write(tmp_path, rows=rows))
    (tmp_path / "selector.yaml").write_text("training: {epochs: 2}\n")
    read, jobs = jobs_of(write(tmp_path, protocol={"selector": "selector.yaml"}, rows=rows))
    plain, selected = (jobs.score(read.table[key], "navtrain", "navval", "pdms", 0) for key in ("kept", "selected"))
    run, chooser = selected.needs
    assert plain.needs == (run,) and plain.name != selected.name
    assert jobs.asked[chooser].tool == "train_selector.py" and jobs.asked[chooser].needs == (run,)
    at = selected.arguments.index("--select")
    assert selected.arguments[at : at + 4] == ("--select", "16", "--selector", str(tmp_path / "out" / chooser))


ROW = ROWS["rows"]
BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"rows": {}}, "rows has no row"),
    ({"rows": {"a b": {}}}, "rows.a b: the key of a row"),
    ({"rows": [1]}, "rows must be a group of keys"),
    ({"rows": {**ROW, "x": 3}}, "rows.x: expected a group of keys, found 3"),
    ({"rows": {**ROW, "x": {"titel": "x"}}}, "rows.x: unknown key 'titel'; nearest valid name: 'title'"),
    ({"rows": {**ROW, "x": {"agent": "humam"}}}, "row x: unknown agent 'humam'; nearest valid name: 'human'"),
    ({"rows": {**ROW, "x": {"agent": "human", "loop": {"lr": 1}}}}, "row x: agent 'human' is not trained"),
    ({"rows": {**ROW, "x": {"like": "dipol"}}}, "there is no row 'dipol'; nearest valid name: 'dipole'"),
    ({"rows": {"x": {"like": "dipole"}, **ROW}}, "row x: row dipole, which it is like, must stand above it"),
    ({"rows": {**ROW, "x": {"algorithm": {"beta": 1}}}}, "row x: algorithm.name is missing"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipol"}}}}, "dipol"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipole", "bta": 1}}}}, "row x: unknown key 'algorithm.bta'"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipole", "beta": -1}}}}, "row x: algorithm.beta"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipole"}, "rollouts": {"group_size": 1}}}}, "group_size"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipole"}, "grid": {"algorithm.beta": []}}}}, "expected a list"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipole"}, "grid": {"algorithm.bta": [1]}}}}, "algorithm.bta"),
    ({"rows": {**ROW, "x": {"algorithm": {"name": "dipole"}, "grid": {"loop.lr": [-1]}}}}, "loop.lr"),
    ({"rows": {**ROW, "x": {"grid": {"loop.lr": [1]}}}}, "row x: a grid belongs to a row with an algorithm"),
    ({"rows": {**ROW, "x": {"select": 4}}}, "row x: select needs at least 2 plans, and an RL run that keeps"),
    ({"rows": {**ROW, "x": {"like": "dipole", "select": 4}}}, "row x: select needs at least 2 plans, and an RL run"),
    ({"rows": {**ROW, "x": {"agent": "human", "select": 4}}}, "row x: agent 'human' is not trained"),
    ({"baseline": "imitatoin"}, "baseline: there is no row 'imitatoin'; nearest valid name: 'imitation'"),
    ({"equal": ["steps"]}, "equal must be one of plans, updates, parameters"),
    ({"figure_6": {}}, "unknown key 'figure_6'"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS)
def test_rows_that_cannot_be_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        jobs_of(write(tmp_path, rows=change))
    assert str(tmp_path / "rows.yaml") in str(refused.value)
    assert len(str(refused.value)) < 800 and not (tmp_path / "out").exists()


BAD_PROTOCOLS: list[tuple[dict[str, Any], str]] = [
    ({"trian": "x"}, "unknown key 'trian'; nearest valid name: 'train'"),
    ({"finetune": {"rollouts": {"group": 3}}}, "unknown key 'finetune.rollouts.group'"),
    ({"metrics": []}, "metrics must be given and differ"),
    ({"metrics": ["pdm"]}, "metrics"),
    ({"validation": "navtest"}, "validation is navtest, which is trained on or tested on as well"),
    ({"minutes": {"imitation": -1}}, "minutes.imitation"),
]


@pytest.mark.parametrize(("change", "message"), BAD_PROTOCOLS)
def test_protocols_that_cannot_be_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        jobs_of(write(tmp_path, protocol=change))
    assert str(tmp_path / "protocol.yaml") in str(refused.value)


def test_a_row_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    rows, _ = jobs_of(write(tmp_path))
    with pytest.raises(ConfigError, match="no row 'dipol' here; nearest valid name: 'dipole'"):
        rows.chosen_from(rows.table, ["dipol"])
    assert [row.key for row in rows.chosen_from(rows.table, ["control", "still"])] == ["still", "control"]


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"rollouts": {"group_size": 3}}, "plans"),
        ({"rollouts": {"epochs_per_cycle": 2}}, "updates"),
        ({"loop": {"steps": 7}}, "updates"),
        ({"lora": {"rank": 4}}, "parameters"),
    ],
)
def test_rows_told_to_spend_unequally_are_refused(own: dict[str, Any], what: str, tmp_path: Path) -> None:
    more = {"like": "dipole", **own}
    given = write(tmp_path, rows={"rows": {**ROW, "more": more}})
    rows, jobs = jobs_of(given)
    with pytest.raises(ConfigError, match=f"rows are told to spend {what} unequally .*dipole .*more"):
        all_rows(given, jobs, rows)
    others = [name for name in ("plans", "updates", "parameters") if name != what]
    equal = [name for name in others if not (what == "plans" and name == "parameters")]
    given = write(tmp_path, rows={"rows": {**ROW, "more": more}, "equal": equal})
    rows, jobs = jobs_of(given)
    assert len(all_rows(given, jobs, rows).cells) == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one of --table 4, --figure, --study and --report, found 0"),
        ({"table": "4", "figure": "5"}, "found 2 of them"),
        ({"table": "4", "seeds": ()}, "seeds must be given and differ"),
        ({"table": "4", "seeds": (1, 1)}, "seeds must be given and differ"),
        ({"figure": "5", "only": ("x",)}, "only belongs to --table 4 and --study"),
        ({"study": "cycles", "final": True}, "final belongs to --table 4"),
    ],
)
def test_options_that_do_not_go_together_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ComparisonConfig(**asked)


def test_the_shipped_comparison_is_whole_and_spends_equally(tmp_path: Path) -> None:
    given = ComparisonConfig(table="4", out=str(tmp_path))
    rows, jobs = jobs_of(given)
    keys = {cell.row.key for cell in all_rows(given, jobs, rows).cells}
    assert {"stand_still", "constant_velocity", "human", "imitation", "dipole_plain", "dipole_anchored"} <= keys
    cells = cycles_and_anchor(given, jobs, rows).cells
    assert {cell.row.full().rollouts.cycles for cell in cells} == {1, 2, 5}
    assert Selection(given, jobs, rows).tried and Figure5(given, jobs, rows).trained
    assert len(ScalingFigure(given, jobs, rows).series) >= 2
    assert all(set(job.needs) <= set(jobs.asked) for job in jobs.asked.values())


def test_a_row_with_its_own_imitation_stands_beside_the_table_until_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mlp.yaml").write_text("split: navtrain\nmodel: {encoder: ego_status, head: regression}\n")
    given = write(tmp_path)
    before = {*asked_by(given)}
    given = write(tmp_path, rows={"beside": {"mlp": {"title": "MLP", "pretrain": "mlp.yaml"}}})
    assert {*asked_by(given)} == before, "neither the table nor a run of it is another one"
    with_it = asked_by(replace(given, only=("imitation", "mlp")))
    runs = sorted(job.name for job in with_it.values() if job.tool == "pretrain.py")
    assert len(runs) == 2 * len(given.seeds) and len(before & {*runs}) == len(given.seeds)
    mlp = [job for job in with_it.values() if "mlp.yaml" in " ".join(job.arguments)]
    assert all(job.arguments[1] == str(tmp_path / "mlp.yaml") for job in mlp) and len(mlp) == len(given.seeds)
    scored = [job for job in with_it.values() if job.needs and job.needs[0] in {run.name for run in mlp}]
    assert len(scored) == len(given.seeds) and all(job.tool == "evaluate.py" for job in scored)


def asked_by(config: ComparisonConfig) -> dict[str, Job]:
    rows, jobs = jobs_of(config)
    all_rows(config, jobs, rows)
    return jobs.asked


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"dipole": {"pretrain": "pretrain.yaml"}}, "beside.dipole is a row of the table as well"),
        ({"mlp": {"agent": "human", "pretrain": "pretrain.yaml"}}, "agent 'human' is not trained"),
        ({"mlp": {"pretrain": "absent.yaml"}}, "absent.yaml"),
    ],
)
def test_rows_beside_the_table_that_cannot_be_are_refused(beside: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        jobs_of(write(tmp_path, rows={"beside": beside}))
