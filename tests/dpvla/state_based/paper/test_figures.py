"""Ablations of the state-based track at toy size: what runs are made, shared, gone on with, and drawn."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from dpvla.config import ConfigError
from dpvla.files import FileError
from dpvla.state_based.agents.recipes import load_recipe
from dpvla.state_based.paper import reproduction
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.paper.figure_file import Figure, figure_keys, read_figure
from dpvla.state_based.paper.figures import FigureRuns, logged
from dpvla.state_based.running.config import StateBasedConfig
from tools import reproduce

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
PROTOCOL = """
steps: 4
online_steps: 3
width: 8
eval_episodes: 2
environments: 2
options: [batch_size=8]
loop: {log_every: 2, evaluate_every: 2, save_every: 2, trackers: []}
launch: {threads: 1}
"""


@pytest.fixture
def settings(data: Path, tmp_path: Path, short_episodes: None) -> ReproduceConfig:
    """Tiny runs of two seeds in ``tmp_path``."""
    (tmp_path / "tiny.yaml").write_text(PROTOCOL)
    return ReproduceConfig(figure="beta", out=str(tmp_path / "grid"), protocol=str(tmp_path / "tiny.yaml"),
                           seeds=(0, 1), ogbench_data=str(data), workers=0)  # fmt: skip


def figure_of(key: str, values: tuple[float, ...]) -> Figure:
    """A figure of the data file with one task and fewer values."""
    return replace(read_figure(key), tasks=(MAZE,), values=values)


def test_every_value_of_every_figure_can_be_and_no_name_is_drivings(tmp_path: Path) -> None:
    assert not {"5", "scaling"} & {*figure_keys()}
    for key in figure_keys():
        figure = read_figure(key)
        runs = FigureRuns(figure, ReproduceConfig(figure=key, out=str(tmp_path), seeds=(0,)))
        assert len(runs.points) == len(figure.tasks) * len(figure.values)
        for grid in runs.grids:
            assert all(run.config.agent in figure.agents for run in grid.missing())


def test_a_value_has_a_run_of_its_own_but_for_the_recipes_which_the_tables_have_too(settings: ReproduceConfig) -> None:
    own = load_recipe("dipole", MAZE).beta  # type: ignore[attr-defined]
    runs = FigureRuns(figure_of("beta", (own, 3.0)), settings)
    assert [(point.own, point.value) for point in runs.points] == [(True, own), (False, 3.0)]
    assert [(run.config.out, run.config.options) for run in runs.missing()] == [
        (f"{settings.out}/{MAZE}/dipole/seeds_0-1", ("batch_size=8",)),
        (f"{settings.out}/beta=3.0/{MAZE}/dipole/seeds_0-1", ("batch_size=8", "beta=3.0")),
    ]


def test_a_figure_is_made_drawn_and_gone_on_with(
    settings: ReproduceConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[str] = []

    def try_speed(config: StateBasedConfig, accelerator: object) -> float:
        tries.append(config.agent)
        return 2.0

    monkeypatch.setattr(reproduction, "measure_updates_per_second", try_speed)
    from dpvla.state_based.paper import figure_file

    monkeypatch.setattr(figure_file, "read_figure", lambda key: figure_of("stability", (0.5, 8.0)))
    command = (f"--figure stability --protocol {settings.protocol} --ogbench-data {settings.ogbench_data} --workers 0 "
               f"--out {settings.out} --seeds 0..1").split()  # fmt: skip
    reproduce.main([*command, "--dry-run"])
    said = capsys.readouterr().out
    assert "beta=8.0/" in said and "2 runs missing" in said and tries == ["dipole"], "one try for all values"
    assert not Path(settings.out).exists()

    reproduce.main(command)
    out = Path(settings.out)
    rows = list(csv.DictReader((out / "figure_stability.csv").read_text().splitlines()))
    assert [(row["beta"], row["seeds"], row["metric"]) for row in rows] == [
        ("0.5", "2", "success"), ("8.0", "2", "success"),
    ]  # fmt: skip
    curves = list(csv.DictReader((out / "figure_stability_logged.csv").read_text().splitlines()))
    assert {(row["column"], row["step"]) for row in curves} >= {
        ("actor/loss_positive", "2"),
        ("actor/loss_negative", "4"),
    }
    for name in ("figure_stability", "figure_stability_logged"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Figure 'stability': losses and weights" in (out / "figure_stability.md").read_text()
    capsys.readouterr()
    reproduce.main(command)
    assert "0 runs missing" in capsys.readouterr().out, "nothing is made twice"


def test_what_is_varied_when_acting_is_one_run(settings: ReproduceConfig) -> None:
    runs = FigureRuns(figure_of("N", (1, 4, 8)), settings)
    assert [run.config.out for run in runs.missing()] == [f"{settings.out}/{MAZE}/dipole/seeds_0-1"]
    assert runs.run() == {} and runs.missing() == []
    (output,) = runs.outputs()
    assert [(row["samples"], row["recipe's"]) for row in output.rows] == [(1, ""), (4, "yes"), (8, "")]
    folder = Path(settings.out, MAZE, "dipole", "seeds_0-1")
    assert {path.name for path in folder.glob("acting_*")} == {"acting_samples=1.json", "acting_samples=8.json"}


def test_the_curves_go_from_offline_to_online(settings: ReproduceConfig) -> None:
    figure = replace(read_figure("online"), tasks=(MAZE,), agents=("flow_bc", "iql"))
    runs = FigureRuns(figure, replace(settings, figure="online"))
    assert runs.run() == {}
    (output,) = runs.outputs()
    assert {(row["agent"], row["step"]) for row in output.rows} >= {("iql", 4), ("iql", 7), ("flow_bc", 7)}
    assert "iql" in runs.table()


def test_what_is_wrong_is_named(settings: ReproduceConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="figure beta has no task 'cubes'; nearest valid name: 'cube-single"):
        FigureRuns(read_figure("beta"), replace(settings, only=("cubes",)))
    with pytest.raises(ConfigError, match="figure beta: beta must be at least 0"):
        FigureRuns(figure_of("beta", (-1.0,)), settings)
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,many\n")
    with pytest.raises(FileError, match=r"metrics\.csv, line 3: could not convert"):
        logged(tmp_path, ["loss"])


@pytest.mark.parametrize(
    "words, driving",
    [
        ("--figure 5", True),
        ("--figure=scaling", True),
        ("--table 4 --dry-run", True),
        ("--study cycles", True),
        ("--report page.md", True),
        ("--figure beta --only cube", False),
        ("--figure=N", False),
        ("--table 2 --seeds 4", False),
        ("--table small", False),
    ],
)
def test_names_of_figures_and_tables_say_whose_track_they_are_of(words: str, driving: bool) -> None:
    assert reproduce.is_driving(words.split()) == driving
