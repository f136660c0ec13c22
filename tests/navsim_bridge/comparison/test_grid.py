"""Doing what is missing: in order, once, on after failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpvla.config import ConfigError
from navsim_bridge.comparison.config import Minutes
from navsim_bridge.comparison.grid import Grid
from navsim_bridge.comparison.jobs import Job
from navsim_bridge.comparison.tables import all_rows
from tests.navsim_bridge.comparison.made import called, jobs_of, pretended_tools, write


def silent(text: str) -> None:
    """Say nothing."""


@pytest.fixture
def wanted(tmp_path: Path) -> list[Job]:
    given = write(tmp_path)
    rows, jobs = jobs_of(given)
    all_rows(given, jobs, rows)
    return list(jobs.asked.values())


def test_everything_is_done_once_and_after_what_it_needs(tmp_path: Path, wanted: list[Job]) -> None:
    tools = pretended_tools(tmp_path)
    grid = Grid(tmp_path / "out", tools, 4)
    assert grid.missing(wanted) == wanted
    assert grid.run(wanted, silent) == {}
    order = [line.split()[1] for line in (tools / "called.txt").read_text().splitlines()]
    assert sorted(order) == sorted(str(tmp_path / "out" / job.name) for job in wanted)
    place = {name: i for i, name in enumerate(order)}
    for job in wanted:
        assert all(place[str(grid.out / need)] < place[str(grid.out / job.name)] for need in job.needs)
    assert grid.missing(wanted) == []
    assert len({job.name for job in wanted if job.tool == "pretrain.py"}) == 3, "all rows share the imitation of a seed"


def test_only_what_is_gone_is_made_again(tmp_path: Path, wanted: list[Job]) -> None:
    tools = pretended_tools(tmp_path)
    grid = Grid(tmp_path / "out", tools, 3)
    grid.run(wanted, silent)
    lost = next(job for job in wanted if job.tool == "evaluate.py")
    (grid.out / lost.name / "summary.json").unlink()
    assert grid.missing(wanted) == [lost]
    (tools / "called.txt").unlink()
    assert Grid(tmp_path / "out", tools, 3).run([lost], silent) == {} and called(tools) == ["evaluate"]


def test_what_fails_stops_what_needs_it_and_nothing_else(tmp_path: Path, wanted: list[Job]) -> None:
    tools = pretended_tools(tmp_path)
    (tools / "fail").write_text("navtrain/seed_1")
    grid = Grid(tmp_path / "out", tools, 4)
    failed = grid.run(wanted, silent)
    first = next(job.name for job in wanted if job.tool == "pretrain.py" and job.name.endswith("seed_1"))
    assert failed[first].startswith("error: it did not work (all of it: ")
    assert set(failed) == {job.name for job in wanted if "seed_1" in job.name}
    assert {why for name, why in failed.items() if name != first and "runs" in name} == {f"needs {first}, which failed"}
    assert "$ " in (grid.out / "jobs" / f"{first}.log").read_text()
    (tools / "fail").unlink()
    assert Grid(tmp_path / "out", tools, 4).run(grid.missing(wanted), silent) == {}
    assert grid.missing(wanted) == []


def test_an_estimate_goes_by_what_is_done_and_else_by_what_the_protocol_says(tmp_path: Path, wanted: list[Job]) -> None:
    grid = Grid(tmp_path / "out", pretended_tools(tmp_path), 4)
    said = grid.estimate(wanted, wanted, Minutes(imitation=4, finetune=2, evaluation=1))
    assert {job.tool: said[job.name] for job in wanted} == {
        "pretrain.py": 240,
        "rl_finetune.py": 120,
        "evaluate.py": 60,
    }
    one = next(job for job in wanted if job.tool == "pretrain.py")
    grid.run([one], silent)
    note = grid.out / "jobs" / f"{one.name}.json"
    note.write_text(note.read_text().replace(f"{grid.seconds_of([one])[one.name]}", "17.5"))
    left = grid.missing(wanted)
    now = grid.estimate(left, wanted, Minutes(imitation=4))
    assert {now[job.name] for job in left if job.tool == "pretrain.py"} == {17.5}
    note.write_text("{}")
    with pytest.raises(ConfigError, match=r"command.*remove it to have runs/.* looked at again"):
        grid.estimate(left, wanted, Minutes())


def test_an_interruption_ends_the_processes(tmp_path: Path, wanted: list[Job]) -> None:
    tools = pretended_tools(tmp_path)
    (tools / "pretrain.py").write_text("import time\nprint('on it', flush=True)\ntime.sleep(600)\n")
    grid = Grid(tmp_path / "out", tools, 2)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    stills = [job for job in wanted if "stand_still" in job.name]
    slow = [job for job in wanted if job.tool == "pretrain.py"][:1]
    with pytest.raises(KeyboardInterrupt):
        grid.run([*slow, *stills], interrupt)
    assert grid.missing(slow) == slow
