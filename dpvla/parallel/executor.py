"""The contract of an executor, which runs independent jobs in workers, and how one is added.

To add one, write a file with a frozen ``Config`` (a subclass of ``ExecutorConfig`` that sets ``name``) and a subclass
of ``Executor``, and give it a name: ``EXECUTORS["mine"] = "dpvla.parallel.mine:Mine"`` in ``registry.py``, or
``EXECUTORS["mine"] = Mine`` in a module of your own that ``--plugin my_module`` names. It is made as
``Mine(config, workers)``; ``processes.py`` is the one to read.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dpvla.config import one_line


@dataclass(frozen=True)
class ExecutorConfig:
    """What every executor has; its own settings come in a subclass."""

    name: str  # in the registry of executors


@dataclass(frozen=True)
class Work:
    """Jobs, and what their workers need. Workers share nothing: each has its own pickled function and opener."""

    function: Callable[..., Any]  # what a worker can import
    jobs: Sequence[Sequence[Any]]  # its arguments
    in_order: bool = False  # results come in the order of the jobs, not as they are done
    opener: Callable[[], Any] | None = None  # called once in a worker; what it gives is the jobs' first argument
    gpu_each: bool = False  # each worker has one GPU to itself, which it sees as the only one
    preload: Sequence[str] = ()  # modules that the workers may share
    reads: Sequence[Path] = ()  # files and folders that workers must see
    writes: Path | None = None  # the folder that they write to

    def done_here(self) -> Iterator[Any]:
        """The results, made in this process."""
        run = Opened(self.function, self.opener)
        for job in self.jobs:
            yield run(job)


class Opened:
    """A function whose first argument, where there is an opener, is made at the first call."""

    def __init__(self, function: Callable[..., Any], opener: Callable[[], Any] | None) -> None:
        self._function, self._opener = function, opener
        self._first: tuple[Any, ...] | None = None if opener else ()

    def __call__(self, job: Sequence[Any]) -> Any:
        try:
            if self._first is None:
                assert self._opener is not None
                self._first = (self._opener(),)
            return self._function(*self._first, *job)
        except SystemExit as error:  # the program would end with it, at once and without a word
            raise ChildProcessError(f"a job ended its process by itself: SystemExit: {one_line(error)}") from error


class Executor(ABC):
    """Runs jobs in workers. Whatever runs them, the results are the same."""

    Config: ClassVar[type[ExecutorConfig]]

    def __init__(self, config: Any, workers: int = 0) -> None:
        """``workers``: at most so many; 0: as many as there are cores, or GPUs where each needs one."""
        self.config, self.workers = config, workers

    @property
    @abstractmethod
    def is_alone(self) -> bool:
        """Whether jobs are done in this process, one after the other."""

    @property
    @abstractmethod
    def num_gpus(self) -> int:
        """GPUs that workers can have."""

    @abstractmethod
    def worth(self, most: int) -> Executor:
        """This one, or one with at most ``most`` workers where it takes longer to start more than they save."""

    @abstractmethod
    def run(self, work: Work) -> Iterator[Any]:
        """The results.

        When a job fails, the caller stops or the user interrupts, jobs that have not begun are dropped and the workers
        are ended. What a job raises is raised here, as it is.

        Raises:
            ChildProcessError: workers were killed, and jobs are lost; the message says what to do.
            OSError: a worker does not see what it should read, or where it should write.
            ValueError: there are too few GPUs.
        """


def sendable(error: Exception) -> Exception:
    """``error``, or, where it would not arrive in another process, what it says as one of the nearest kind."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of its own class, which may do anything
        kind = next((kind for kind in (ValueError, OSError, MemoryError) if isinstance(error, kind)), RuntimeError)
        return kind(f"{type(error).__name__}: {one_line(error)}")
    return error
