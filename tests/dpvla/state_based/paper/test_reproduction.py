"""The paper's tables and the grid of runs behind them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpvla.config import ConfigError
from dpvla.files import FileError
from dpvla.state_based.paper import reproduction
from dpvla.state_based.paper.comparison import compare, curve_panels, curves, letter
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.paper.reproduction import Grid
from dpvla.state_based.paper.time_estimate import SIZES
from dpvla.state_based.running.config import StateBasedConfig, read_task
from dpvla.state_based.running.paper_tables import PaperTable, Printed, TableMethod, read_table
from dpvla.state_based.running.tasks import DEFAULT_TASKS, find_task
from tools import reproduce as tool

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
PROTOCOL = """
steps: 4
width: 8
eval_episodes: 2
environments: 2
options: [batch_size=16]
loop: {log_every: 2, evaluate_every: 0, save_every: 2, trackers: []}
"""


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> ReproduceConfig:
    """Tiny runs in ``tmp_path``."""
    (tmp_path / "tiny.yaml").write_text(PROTOCOL)
    return ReproduceConfig(
        table="small",
        out=str(tmp_path / "grid"),
        protocol=str(tmp_path / "tiny.yaml"),
        seeds=(0, 1),
        ogbench_data=str(data),
        workers=0,
    )


def maze_table(**changes: Any) -> PaperTable:
    """One task with two methods, the second of which is the first one acting otherwise."""
    methods = (TableMethod("dipole", "DIPOLE", "dipole"), TableMethod("no_rs", "w/o rs", "dipole", {"samples": 1}))
    printed = {(MAZE, "dipole"): Printed(61, 10, (97, 2)), (MAZE, "no_rs"): Printed(50, 3)}
    table = PaperTable("3", "a maze", methods, (MAZE,), False, printed, False, ("a note",), {})
    return replace(table, **changes)


def summary(scores: dict[int, float], metric: str = "success") -> dict[str, Any]:
    """An evaluation as a run keeps it."""
    rows = [{"seed": seed, metric: score} for seed, score in scores.items()]
    return {metric: 0.5, "std": 0.0, "seconds": 1.0, "per_seed": rows}


def write_result(
    folder: Path, env: str, agent: str, scores: dict[int, float], metric: str = "success", **changes: Any
) -> Path:
    """A finished run's ``result.json`` with what the tables read."""
    found = summary(scores, metric)
    result = found | {"env": env, "agent": agent, "seeds": [*scores], "steps": 4, "offline_steps": 4, "online_steps": 0}
    result |= {"updates_per_s": 0.0, "evaluations": {"4": found}, "deviations_from_the_paper": []}
    path = folder / env / agent / ("seeds_" + "-".join(map(str, scores))) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result | {"config": {"out": str(path.parent)}} | changes))
    return path


def test_every_run_of_every_table_has_a_recipe_and_known_sizes() -> None:
    for key in ("1", "2", "3", "7", "small"):
        table = read_table(key)
        one_of_each = {find_task(task).domain: task for row in table.rows for task in table.tasks(row)}
        assert one_of_each.keys() <= SIZES.keys()
        for task in table.rows if key == "1" else one_of_each.values():
            for method in table.methods:
                options = table.options_of(task, method.agent)
                read_task(StateBasedConfig(env=task, agent=method.agent, options=options))
    counts = {key: (len(read_table(key).rows), len(read_table(key).printed)) for key in ("1", "2", "3", "7")}
    assert counts == {"1": (9, 63), "2": (6, 36), "3": (4, 20), "7": (30, 180)}


def test_the_papers_aggregates_are_the_means_of_its_full_table() -> None:
    full, aggregate = read_table("7"), read_table("2")
    for row in aggregate.rows:
        for method in aggregate.methods:
            tasks = [full.printed[task, method.key].mean for task in aggregate.tasks(row)]
            misprint = (row, method.key) == ("humanoidmaze-medium-navigate", "rebrac")
            printed = 22 if misprint else aggregate.printed[row, method.key].mean
            assert abs(sum(tasks) / 5 - printed) <= 1.0, (row, method.key)


def test_the_online_table_is_about_the_default_tasks() -> None:
    table = read_table("3")
    assert {find_task(row).domain: int(row[-4]) for row in table.rows}.items() <= DEFAULT_TASKS.items()
    assert table.printed[table.rows[0], "dipole"] == Printed(61, 10, (97, 2))
    assert table.options_of("antsoccer-arena-navigate-singletask-task4-v0", "fql") == ("alpha=30",)
    assert table.options_of("antsoccer-arena-navigate-singletask-task4-v0", "dipole") == ()


def test_the_tool_runs_what_is_missing_and_prints_ours_beside_the_papers(
    settings: ReproduceConfig,
    tmp_path: Path,
    short_episodes: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[str] = []

    def try_speed(config: StateBasedConfig, accelerator: object) -> float:
        tries.append(config.agent)
        return 2.0

    monkeypatch.setattr(reproduction, "measure_updates_per_second", try_speed)
    command = (
        f"--table small --only pointmaze iql flow_bc --protocol {settings.protocol} --ogbench-data "
        f"{settings.ogbench_data} --workers 0 --out {settings.out}"
    ).split()
    tool.main([*command, "--seeds", "0", "1", "--dry-run"])
    said = capsys.readouterr().out
    assert f"{MAZE}/iql/seeds_0-1; 0.0 h at 2 updates/s" in said and "2 runs missing" in said
    assert tries == ["iql", "flow_bc"] and not Path(settings.out, MAZE).exists()

    tool.main([*command, "--seeds", "0", "1"])
    assert "(2 seeds)\\* / –" in capsys.readouterr().out
    assert "data: locally generated" in Path(settings.out, "table_small.md").read_text()
    times = Path(settings.out, "times_small.md").read_text().splitlines()
    assert len(times) == 4 and times[2].startswith("| pointmaze-medium-navigate-task1 | iql")
    _, _, seeds, update, per_seed, updates, evaluations = (cell.strip() for cell in times[2].strip("| ").split("|"))
    assert (seeds, updates) == ("2", "4") and 0 < float(per_seed) < float(update) and float(evaluations) >= 0

    tool.main([*command, "--seeds", "0", "1", "2"])
    said = capsys.readouterr().out
    assert "iql/seeds_2; " in said and "2 runs missing" in said and "(3 seeds)\\* / –" in said
    with pytest.raises(SystemExit, match=r"holds runs with protocol .*choose another --out"):
        tool.main([*command, "--steps", "8"])


def test_an_interrupted_grid_goes_on_with_what_was_begun(settings: ReproduceConfig, short_episodes: None) -> None:
    grid = Grid(maze_table(), settings)
    begun = grid.config_of(MAZE, "dipole", (0, 1))
    with pytest.raises(KeyboardInterrupt):
        reproduction.train_state_based(replace(begun, loop=replace(begun.loop, stop_after_step=2)))
    (run,) = Grid(maze_table(), replace(settings, seeds=(0, 1))).missing()
    assert (run.config, run.begun_at, run.updates) == (begun, 2, 2)
    more = [
        run.config.seeds for run in Grid(maze_table(), replace(settings, seeds=(0, 1, 2), seeds_per_run=1)).missing()
    ]
    assert more == [(0, 1), (2,)], "begun runs keep their seeds"
    assert grid.run() == {} and not [*grid.missing()]
    table = compare(grid)
    for method in grid.methods:
        assert method.title in table
    assert table.count("(2 seeds)\\* / ") == 2, "the agents acting otherwise were evaluated too"
    assert "61±10→97±2" in table and "/ 50±3" in table and "- a note" in table


def test_an_interrupted_tool_leaves_the_table_of_what_is_there(
    settings: ReproduceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: StateBasedConfig, until: float) -> None:
        raise KeyboardInterrupt("stopped after step 2")

    monkeypatch.setattr(reproduction, "measure_updates_per_second", lambda config, accelerator: 2.0)
    monkeypatch.setattr(reproduction, "train_state_based", interrupted)
    write_result(Path(settings.out), MAZE, "iql", {0: 0.25, 1: 0.75}, updates_per_s=50.0)
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--table", "small", "--only", MAZE, "iql", "flow_bc", "--seeds", "0", "1", "--out", settings.out])
    assert stopped.value.code == 130
    assert "| 50.0±25.0 (2 seeds) / –" in Path(settings.out, "table_small.md").read_text()


def test_an_online_table_shows_before_and_after(settings: ReproduceConfig, short_episodes: None) -> None:
    table = maze_table(online=True, methods=maze_table().methods[:1], options={"pointmaze": {"dipole": ("omega=2",)}})
    grid = Grid(table, replace(settings, online_steps=6, seeds=(3,)))
    assert grid.run() == {}
    (result,) = grid.results(MAZE, "dipole")
    assert (result["steps"], result["online_steps"], result["hyperparameters"]["omega"]) == (10, 6, 2)
    before, after = (100 * result["evaluations"][step]["success"] for step in ("4", "10"))
    assert f"{before:.1f}→{after:.1f} (1 seed)\\* / 61±10→97±2" in compare(grid)
    assert not Grid(maze_table(), settings).results(MAZE, "dipole"), "offline tables do not take online runs"


def test_missing_data_fails_its_runs_once_and_the_rest_goes_on(
    settings: ReproduceConfig, short_episodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    train = reproduction.train_state_based

    def without_walker(config: StateBasedConfig, until: float) -> dict[str, Any]:
        asked.append(config.env)
        if config.env == "walker-walk":
            raise FileNotFoundError("no walker")
        return train(config)

    monkeypatch.setattr(reproduction, "train_state_based", without_walker)
    table = replace(read_table("small"), rows=("walker-walk", MAZE))
    failed = Grid(table, replace(settings, only=("flow_bc", "iql"))).run()
    assert asked == ["walker-walk", MAZE, MAZE]
    assert [*failed.values()] == ["no walker"] * 2


def test_a_domains_number_is_a_seeds_mean_over_tasks_then_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    table = replace(read_table("2"), rows=("cube-single-play", "scene-play"))
    grid = Grid(table, ReproduceConfig("2", out=str(tmp_path), seeds=(0, 1)))
    for number in range(1, 6):
        scores = {0: 0.1 * number, 1: 0.5}
        write_result(tmp_path, f"cube-single-play-singletask-task{number}-v0", "dipole", scores)
    write_result(tmp_path, "scene-play-singletask-task1-v0", "fql", {0: 1.0})
    lines = compare(grid).splitlines()
    cube, scene = (next(line for line in lines if line.startswith(f"| {row}")) for row in table.rows)
    assert "| 40.0±10.0 (2 seeds) / 97±2" in cube, "0.3 and 0.5; nothing is marked"
    assert "1 of 5 tasks / 56±2" in scene


def test_all_eight_seeds_are_not_mentioned_and_returns_are_not_scaled(tmp_path: Path) -> None:
    grid = Grid(read_table("1"), ReproduceConfig("1", out=str(tmp_path)))
    write_result(tmp_path, "walker-walk", "dipole", {seed: 900.0 + seed for seed in range(8)}, "return")
    line = next(line for line in compare(grid).splitlines() if line.startswith("| walker-walk"))
    assert "| 903.5±2.3 / 910±5" in line and "| – / 679±16" in line


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"steps": None}, "steps: expected a whole number, found None"),
        ({"seeds": [0, "1"]}, r"seeds\[1\]: expected a whole number, found '1'"),
        ({"per_seed": [{"seed": 0}]}, r"per_seed\[0\]\.success is missing"),
        ({"per_seed": {}}, "per_seed: expected a list"),
        ({"evaluations": {}}, r"evaluations\.4 is missing"),
        ({"evaluations": {"soon": summary({0: 1.0})}}, r"evaluations\.'soon' is no number of updates"),
        ({"evaluations": {"4": summary({0: 1.0}, "return")}}, r"evaluations\.4: success is missing"),
        ({"env": "walker-walk"}, "env is 'walker-walk', its run's is 'cube-single-play-singletask-task1-v0'"),
        ({"agent": "fql"}, "agent is 'fql', its run's is 'dipole': it is of another run"),
        ({"updates_per_s": -1.0}, "updates_per_s: expected a number at least 0, found -1"),
        ({"deviations_from_the_paper": [7]}, r"deviations_from_the_paper\[0\]: expected a text, found 7"),
    ],
)
def test_a_result_that_cannot_be_is_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write_result(tmp_path, "cube-single-play-singletask-task1-v0", "dipole", {0: 1.0})
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    grid = Grid(replace(read_table("2"), rows=("cube-single-play",)), ReproduceConfig("2", out=str(tmp_path)))
    with pytest.raises(FileError, match=f"^{path}: {reason}"):
        compare(grid)


def test_each_cell_says_which_reading_size_data_and_seeds_made_it(tmp_path: Path) -> None:
    about: dict[str, Any] = {"hyperparameters": {"hidden": [64, 64], "batch_size": 32},
             "provenance": {"data": {"origin": "locally generated", "rows_used": {"train": 900}}}}  # fmt: skip
    write_result(tmp_path, MAZE, "dipole", {0: 0.5, 1: 0.7}, config={"reading": "release"}, **about)
    write_result(tmp_path, MAZE, "dipole", {2: 0.5}, config={}, **about)
    write_result(tmp_path, MAZE, "iql", {0: 0.25}, **about)
    table = compare(Grid(read_table("small"), ReproduceConfig("small", out=str(tmp_path), seeds=(0, 1, 2))))
    row = next(line for line in table.splitlines() if line.startswith("| pointmaze"))
    assert "(3 seeds) / – [a, b] |" in row and "25.0 (1 seed) / – [c] |" in row
    size = "layers 64 x 64; 4 updates of 32 rows; locally generated data, 900 rows"
    assert f"- [a] reading release; {size}; seeds 0 1\n- [b] reading paper; {size}; seeds 2\n" in table
    assert f"- [c] {size}; seeds 0\n" in table
    assert [letter(number) for number in (0, 25, 26, 51, 52, 702)] == ["a", "z", "aa", "az", "ba", "aaa"]


def test_the_two_readings_of_dipole_stand_side_by_side(settings: ReproduceConfig) -> None:
    given = replace(settings, only=("pointmaze", "dipole_release", "dipole_paper", "iql"), seeds=(0,))
    grid = Grid(read_table("small"), given)
    runs = {Path(run.config.out).parent.name: run.config for run in grid.missing()}
    assert {name: run.reading for name, run in runs.items()} == {
        "dipole": "release", "dipole-paper": "paper", "iql": "release"
    }  # fmt: skip
    assert read_task(runs["dipole-paper"])[1] != read_task(runs["dipole"])[1]
    write_result(Path(settings.out), MAZE, "dipole", {0: 0.5}, config={"reading": "release"})
    header, _, line = compare(grid).splitlines()[2:5]
    cells = {name.strip(): cell.strip() for name, cell in zip(header.split("|"), line.split("|"), strict=True)}
    assert cells["DIPOLE as released"].startswith("50.0 (1 seed) / – [a]")
    assert cells["DIPOLE by the text"] == cells["IQL"] == "– / –"


def test_readings_share_the_papers_number_of_their_method(tmp_path: Path) -> None:
    table = read_table("7")
    task = table.rows[0]
    grid = Grid(table, ReproduceConfig("7", out=str(tmp_path), only=(task, "dipole", "dipole_paper")))
    assert compare(grid).count("63±6") == 2


def test_a_grid_of_an_earlier_version_goes_on_in_its_reading(
    settings: ReproduceConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runs have no reading: they are of the paper's, and lie where those of a new folder's first one do."""
    folder = Path(settings.out) / MAZE / "dipole" / "seeds_0"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("{}")
    (Path(settings.out) / "grid.json").write_text('{"protocol": {}}')
    bare = ReproduceConfig("small", out=settings.out, only=("dipole", "pointmaze"))
    old = Grid(maze_table(), bare)
    assert "go on in reading paper; --reading release" in capsys.readouterr().err
    config = old.config_of(MAZE, "dipole", (1,))
    assert (config.reading, Path(config.out).parent.name) == ("paper", "dipole")
    asked = Grid(maze_table(), replace(bare, reading="release")).config_of(MAZE, "dipole", (1,))
    assert (asked.reading, Path(asked.out).parent.name) == ("release", "dipole-release")
    assert capsys.readouterr().err == "" and old._protocols()["reading"] == "paper"


def test_unknown_rows_and_methods_get_the_nearest_valid_name(settings: ReproduceConfig) -> None:
    with pytest.raises(ConfigError, match="no row or method 'fqll'; nearest valid name: 'fql'"):
        Grid(read_table("7"), replace(settings, only=("fqll",)))


def test_curves_join_the_runs_of_a_cell_and_count_the_seeds(tmp_path: Path) -> None:
    for seeds, by_step in (((0, 1), {"10": {0: 0.1, 1: 0.3}, "20": {0: 0.5, 1: 0.7}}), ((2,), {"10": {2: 0.5}})):
        folder = tmp_path / MAZE / "dipole" / ("seeds_" + "-".join(map(str, seeds)))
        folder.mkdir(parents=True)
        (folder / "evaluations.json").write_text(json.dumps({k: summary(v) for k, v in by_step.items()}))
    grid = Grid(maze_table(), ReproduceConfig(table="3", out=str(tmp_path), seeds=(0, 1, 2), dry_run=True))
    grid.table = replace(grid.table, online=False)
    rows = curves(grid)
    assert [(row["step"], row["seeds"]) for row in rows] == [(10, 3), (20, 2)]
    assert [row["mean"] for row in rows] == pytest.approx([30.0, 60.0])
    assert rows[1]["std"] == pytest.approx(10.0)
    assert curve_panels(rows)[0][:2] == (MAZE, "success [%]")
    tool.write_curves(rows, tmp_path / "curves")
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == "task,agent,metric,step,mean,std,seeds" and len(lines) == 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_prints_each_run_when_its_speed_is_known_and_slow_speeds_as_they_are(
    settings: ReproduceConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said_before: list[str] = []

    def try_speed(config: StateBasedConfig, accelerator: object) -> float:
        said_before.append(capsys.readouterr().out)
        return 0.0984

    monkeypatch.setattr(reproduction, "measure_updates_per_second", try_speed)
    tool.main(f"--table small --only {MAZE} iql flow_bc --out {settings.out} --seeds 0 --dry-run".split())
    assert said_before[0] == ""
    assert "iql/seeds_0; 2822.9 h at 0.0984 updates/s" in said_before[1]


def test_a_grid_that_could_not_begin_does_not_hold_its_folder(settings: ReproduceConfig, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(PROTOCOL.replace("batch_size=16", "batch_size=-16"))
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        Grid(maze_table(), replace(settings, protocol=str(wrong))).run()
    assert not Path(settings.out).exists()
    failed = Grid(maze_table(), replace(settings, ogbench_data=str(tmp_path / "nowhere"))).run()
    assert all("is not in" in why for why in failed.values()) and failed
    Grid(maze_table(), replace(settings, steps=8))


def test_a_tables_own_option_wins_over_the_protocols(settings: ReproduceConfig, tmp_path: Path) -> None:
    table = maze_table(options={"pointmaze": {"dipole": ("batch_size=8",)}})
    config = Grid(table, settings).config_of(MAZE, "dipole", (0,))
    assert config.options == ("batch_size=8",)


def test_a_grid_may_log_and_save_otherwise_but_not_learn_otherwise(
    settings: ReproduceConfig, tmp_path: Path, short_episodes: None
) -> None:
    assert Grid(maze_table(), replace(settings, only=("dipole",))).run() == {}
    for old, new, fits in (
        ("save_every: 2", "save_every: 4", True),
        ("environments: 2", "environments: 3", True),
        ("width: 8", "width: 16", False),
        ("log_every: 2,", "log_every: 2, lr: 0.1,", False),
    ):
        (tmp_path / "other.yaml").write_text(PROTOCOL.replace(old, new))
        other = replace(settings, protocol=str(tmp_path / "other.yaml"))
        if fits:
            Grid(maze_table(), other)
        else:
            with pytest.raises(ConfigError, match=r"holds runs with protocol .*choose another --out"):
                Grid(maze_table(), other)
