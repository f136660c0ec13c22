"""Worker processes end with their work, and say nothing of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpvla.parallel import run_jobs
from tests.paths import ROOT

PROGRAM = """
import os, sys, time
from pathlib import Path
from dpvla.cli import reporting_errors
from dpvla.parallel import run_jobs

def work(folder, number):
    Path(folder, f"{os.getpid()}").touch()
    time.sleep(60)

@reporting_errors
def main():
    for _ in run_jobs(work, [(sys.argv[1], i) for i in range(4)], 2, preload=sys.argv[2:]):
        pass

if __name__ == "__main__":
    main()
"""


def start(tmp_path: Path, *preload: str) -> tuple[subprocess.Popen[str], Path]:
    program, folder = tmp_path / "program.py", tmp_path / "workers"
    program.write_text(PROGRAM)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(program), str(folder), *preload], stderr=subprocess.PIPE, text=True,
                               start_new_session=True, env=environment)  # fmt: skip
    return process, folder


def workers_of(folder: Path, count: int) -> list[int]:
    until = time.monotonic() + 60
    while len(found := [int(path.name) for path in folder.iterdir()]) < count:
        assert time.monotonic() < until, "the workers did not begin"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def assert_gone(pids: list[int]) -> None:
    until = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < until, "a worker lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("preload", [(), ("json",)], ids=["spawn", "forkserver"])
@pytest.mark.parametrize("moment", ["working", "starting"])
def test_an_interruption_is_reported_once_and_ends_the_workers(
    tmp_path: Path, preload: tuple[str, ...], moment: str
) -> None:
    process, folder = start(tmp_path, *preload)
    pids = workers_of(folder, 2 if moment == "working" else 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and all its workers
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert_gone(pids)


@pytest.mark.parametrize("preload", [(), ("json",)], ids=["spawn", "forkserver"])
def test_workers_do_not_outlive_a_killed_program(tmp_path: Path, preload: tuple[str, ...]) -> None:
    process, folder = start(tmp_path, *preload)
    pids = workers_of(folder, 2)
    process.kill()
    process.communicate(timeout=30)
    assert_gone(pids)


def test_a_killed_worker_is_told_in_one_line(tmp_path: Path) -> None:
    process, folder = start(tmp_path)
    pids = workers_of(folder, 2)
    os.kill(pids[0], signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.startswith("error: a worker process was killed") and said.count("\n") == 1
    assert_gone(pids)


def test_results_come_in_the_order_of_the_jobs_when_asked() -> None:
    jobs = [(n,) for n in range(6)]
    assert list(run_jobs(abs, jobs, 2, in_order=True)) == list(range(6))
    assert sorted(run_jobs(abs, jobs, 2)) == list(range(6))
    assert list(run_jobs(abs, jobs, 1)) == list(range(6))


def test_a_job_that_fails_ends_the_others_with_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(divmod, [(1, 1), (1, 0), (1, 2)], 2))
