"""Independent jobs over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[Sequence[Any]],
    workers: int,
    *,
    in_order: bool = False,
    preload: Sequence[str] = (),
    initializer: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield ``function(*job)`` of every job as it is done; in this process for one worker or job.

    Workers are started afresh (a fork would copy the threads of whatever the caller has loaded) and take one numeric
    thread each, since together they fill the cores. When a job fails, the caller stops or the user interrupts, jobs
    that have not begun are dropped and the workers are ended; an interruption is this process's alone, so that it is
    reported once.

    Args:
        function: what a worker process can import.
        jobs: its arguments.
        workers: processes, at most one a job.
        in_order: yield in the order of the jobs.
        preload: modules that a clean server process imports once for all workers, such as the caller's ``__name__``;
            the first call with some decides for all later ones of this process.
        initializer: called first in each worker process, not in this one.

    Raises:
        ChildProcessError: a worker process was killed.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield function(*job)
        return
    with (
        one_thread_each(),
        ProcessPoolExecutor(workers, _context(preload), initializer=_begin, initargs=(initializer,)) as pool,
    ):
        with _interruptions_held():  # workers inherit that they get none
            running = [pool.submit(function, *job) for job in jobs]
            processes = list(pool._processes.values())
        try:
            for done in running if in_order else as_completed(running):
                yield done.result()
        except BaseException as error:
            for process in processes:
                process.terminate()
            pool.shutdown(cancel_futures=True)  # its thread ends before the program does
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError(
                    "a worker process was killed, often for lack of memory: the same command with fewer --workers goes "
                    "on from what is done"
                ) from None
            raise


def _context(preload: Sequence[str]) -> BaseContext:
    """How worker processes start: each by itself, or from a server that has imported ``preload``."""
    if not preload:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """Ctrl-C waits until the end; processes started inside never see one."""
    resource_tracker.ensure_running()  # starting it lets interruptions through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """Cores this process may use: its affinity, and the limit of the container it runs in."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"
    if limit.is_file():
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _begin(initializer: Callable[[], None] | None) -> None:
    """First thing in a worker: no interruptions, and no life beyond the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    if initializer is not None:
        initializer()


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
