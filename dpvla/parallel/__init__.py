"""Independent jobs over processes or machines, whichever executor runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dpvla.parallel.executor import Executor, ExecutorConfig, Work, sendable
from dpvla.parallel.machine import available_cores, one_thread_each, starting_workers, torch_threads
from dpvla.parallel.processes import Processes, ProcessesConfig
from dpvla.parallel.registry import AnyExecutor, make_executor

__all__ = [
    "AnyExecutor", "Executor", "ExecutorConfig", "Processes", "ProcessesConfig", "Workers", "available_cores",
    "executor_of", "make_executor", "one_thread_each", "run_jobs", "sendable", "starting_workers",
    "torch_threads",
]  # fmt: skip

Result = TypeVar("Result")
Workers = int | Executor
"""Who does the jobs: so many processes of this machine, or an executor."""


def executor_of(workers: Workers) -> Executor:
    """The executor; a number, at least 1, is that of local processes."""
    return workers if isinstance(workers, Executor) else Processes(ProcessesConfig(), max(1, workers))


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[Sequence[Any]],
    workers: Workers,
    *,
    in_order: bool = False,
    opener: Callable[[], Any] | None = None,
    gpu_each: bool = False,
    preload: Sequence[str] = (),
    reads: Sequence[Path] = (),
    writes: Path | None = None,
) -> Iterator[Result]:
    """Yield ``function(*job)`` of every job as it is done; in this process for one process or job.

    Args:
        function: what a worker can import.
        jobs: its arguments.
        workers: processes, at most one a job, or an executor.
        in_order: yield in the order of the jobs.
        opener: called once in each worker, at its first job; what it gives is the function's first argument.
        gpu_each: each worker has one GPU to itself; without effect in this process.
        preload: modules that a clean server process imports once for all processes, such as the caller's
            ``__name__``; the first call with some decides for all later ones of this process.
        reads: files and folders that the workers read: on other machines it is seen to that they are there.
        writes: folder that they write to, likewise.

    Raises as `Executor.run`.
    """
    yield from executor_of(workers).run(
        Work(function, jobs, in_order, opener, gpu_each, tuple(preload), tuple(reads), writes)
    )
