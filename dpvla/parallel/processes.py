"""Jobs over processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any, ClassVar

from dpvla.parallel.executor import Executor, ExecutorConfig, Opened, Work, sendable
from dpvla.parallel.machine import available_cores, one_thread_each, starting_workers, visible_gpus


@dataclass(frozen=True)
class ProcessesConfig(ExecutorConfig):
    """Processes of this machine."""

    name: str = "processes"  # processes (of this machine), ray (a cluster's machines), or one of a plug-in


class Processes(Executor):
    """Workers are started afresh (a fork would copy the threads of whatever the caller has loaded) and take one numeric
    thread each, since together they fill the cores. An interruption is this process's alone, so that it is reported
    once."""

    Config: ClassVar[type[ExecutorConfig]] = ProcessesConfig

    @property
    def is_alone(self) -> bool:
        """One worker is this process itself."""
        return self._count() <= 1

    @property
    def num_gpus(self) -> int:
        """Of this machine, as far as CUDA_VISIBLE_DEVICES shows them."""
        return len(visible_gpus())

    def worth(self, most: int) -> Processes:
        """At most ``most`` processes, and at least this one."""
        return Processes(self.config, max(1, min(self._count(), most)))

    def _count(self) -> int:
        """One a core, divided among the processes that a launcher starts here, unless asked for otherwise."""
        return self.workers or max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def run(self, work: Work) -> Iterator[Any]:
        """See `Executor.run`."""
        gpus = visible_gpus() if work.gpu_each and self.workers != 1 else []
        count = self._count() if not work.gpu_each else self.workers or len(gpus)
        if work.gpu_each and count > max(1, len(gpus)):
            raise ValueError(f"--workers {count}: each needs a GPU to itself, and there are {len(gpus)} here")
        count = min(count, len(work.jobs))
        if count <= 1:
            yield from work.done_here()
            return
        start = pickle.dumps((work.function, work.opener))
        with one_thread_each(), _started(count, _context(work.preload), start, gpus) as pool:
            try:
                with _interruptions_held(), starting_workers(_ALONE):  # workers inherit that they get none
                    running = [pool.submit(_work, job) for job in work.jobs]
                for done in running if work.in_order else as_completed(running):
                    yield pickle.loads(done.result())
            except BaseException as error:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                pool.shutdown(cancel_futures=True)  # its thread ends before the program does
                if isinstance(error, BrokenProcessPool):
                    raise ChildProcessError(
                        "a worker process was killed, often for lack of memory: start the same command again with "
                        "fewer --workers; what it has written is kept"
                    ) from None
                raise


def _started(count: int, context: BaseContext, start: bytes, gpus: Sequence[str]) -> ProcessPoolExecutor:
    """A pool without processes yet; the first jobs start them."""
    with starting_workers(_ALONE):
        free = context.SimpleQueue() if gpus else None
        for gpu in gpus:
            assert free is not None
            free.put(gpu)
        return ProcessPoolExecutor(count, context, _begin, (start, free))


_ALONE = "--workers 1"


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


_start = b""
"""In a worker: function and opener of its pool."""
_opened: list[Opened] = []


def _begin(start: bytes, free_gpus: Any) -> None:
    """First thing in a worker: no interruptions, no life beyond the process that started it, a GPU of its own."""
    global _start
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    _start = start
    if free_gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = free_gpus.get()  # before anything touches CUDA


def _work(job: Sequence[Any]) -> bytes:
    """The pickled result: by themselves tensors would be sent as open files, of which a process may have 1024."""
    if not _opened:
        _opened.append(Opened(*pickle.loads(_start)))
    try:
        return pickle.dumps(_opened[0](job), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise sendable(error) from error


def _end_with_parent() -> None:
    """Leave no worker behind when the process that started it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
