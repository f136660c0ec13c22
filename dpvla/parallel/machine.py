"""Cores, numeric threads and GPUs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path

from dpvla.config import one_line


def available_cores() -> int:
    """Cores this process may use: its affinity, and the limit of the container it runs in."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"
    if limit.is_file():
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def visible_gpus() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, one by one."""
    import torch  # jobs that do without it need not load it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


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


@contextmanager
def starting_workers(alone: str) -> Iterator[None]:
    """Around what makes worker processes: where the system refuses one of its parts, the error says what they need.

    Args:
        alone: what does without them.

    Raises ChildProcessError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: of a thread that cannot be started
        if isinstance(error, (BrokenExecutor, ChildProcessError)):
            raise
        raise ChildProcessError(
            f"worker processes cannot be started ({one_line(error):.200}): they take shared memory (/dev/shm), open "
            f"files (ulimit -n), processes (ulimit -u), and a folder for temporary files (TMPDIR); {alone} needs none "
            "of that"
        ) from None
