"""Independent jobs over processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_jobs(function: Callable[..., Result], jobs: Sequence[Sequence[Any]], workers: int) -> Iterator[Result]:
    """Yield ``function(*job)`` of every job as it is done, in any order; in this process for one worker or job.

    Workers are started afresh (a fork would copy the threads of whatever the caller has loaded) and take one numeric
    thread each, since together they fill the cores. When a job fails or the caller stops, jobs that have not begun
    are dropped.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield function(*job)
        return
    with (
        one_thread_each(),
        ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
        ) as pool,
    ):
        running = [pool.submit(function, *job) for job in jobs]
        try:
            for done in as_completed(running):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def available_cores() -> int:
    """Cores this process may use: its affinity, and the limit of the container it runs in."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"
    if limit.is_file():
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _end_with_parent() -> None:
    """Leave no worker behind when the process that started it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside take one numeric thread each: together they fill the cores."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch takes ``count`` threads inside.

    One is best for many small operations: threads that wait for each other are several times slower on a busy machine.
    """
    import torch  # jobs that do without it need not load it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
