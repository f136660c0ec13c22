"""Worker processes end with their work, and say nothing of their own."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dpvla.parallel import Processes, ProcessesConfig, make_executor, processes, run_jobs
from dpvla.parallel.machine import visible_gpus
from dpvla.parallel.ray_cluster import RayConfig
from tests.paths import ROOT
from tests.worker_jobs import fail_unlikely, many_tensors, opened, refuse, worker_and_gpu

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


def test_an_error_that_cannot_be_sent_says_what_it_said() -> None:
    with pytest.raises(ValueError, match=r"^UnlikelyError: scene abc of log x is unlikely$"):
        list(run_jobs(fail_unlikely, [(1,), (2,)], 2))


def test_results_with_many_tensors_need_no_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, before[1]))
    try:
        results = list(run_jobs(many_tensors, [(n,) for n in range(4)], 2, in_order=True))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [int(tensors[0][0]) for tensors in results] == [0, 1, 2, 3]


def test_each_worker_opens_once_and_has_a_gpu_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "visible_gpus", lambda: ["3", "7"])
    executor, jobs = Processes(ProcessesConfig(), 0), [(n,) for n in range(6)]
    found = {*run_jobs(worker_and_gpu, jobs, executor, opener=opened, gpu_each=True)}
    assert {gpu for _, gpu in found} == {"3", "7"} and len(found) == 2
    with pytest.raises(ValueError, match="--workers 3: each needs a GPU to itself, and there are 2 here"):
        list(run_jobs(abs, [(1,)] * 3, Processes(ProcessesConfig(), 3), gpu_each=True))


def test_gpus_are_named_as_the_environment_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-af")
    assert visible_gpus() == ["5", "GPU-af"]


def test_an_executor_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"--executor ray needs Ray, .*: pip install 'dpvla\[ray\]'"):
        make_executor(RayConfig())


def test_an_executor_whose_package_is_broken_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises ImportError
    with pytest.raises(ImportError, match=r"^--executor ray: Ray does not work here \(.*\): pip install 'dpvla"):
        list(run_jobs(abs, [(1,)], make_executor(RayConfig())))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    executor = make_executor(RayConfig(address="127.0.0.1:1"))
    with pytest.raises(ConnectionError, match=r"^no Ray cluster can be used at 127.0.0.1:1 \(.*refused\): start one"):
        list(run_jobs(abs, [(1,)], executor))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_opened_is_told_by_its_own_error(workers: int) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        list(run_jobs(divmod, [(1,), (2,)], workers, opener=refuse))


def test_a_job_that_ends_its_process_by_itself_is_told() -> None:
    with pytest.raises(ChildProcessError, match=r"^a job ended its process by itself: SystemExit: 0$"):
        list(run_jobs(sys.exit, [(0,), (0,)], 1))


def test_workers_that_cannot_be_started_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
    with pytest.raises(ChildProcessError, match=r"cannot be started \(.*Too many open files\).*--workers 1 needs none"):
        list(run_jobs(abs, [(1,), (2,)], 2))
