"""Environments in worker processes: many take a step at once, and may do so while this process trains.

Nothing here depends on how the environments are spread over workers: a slot's answers follow from its own orders.

This is no second pool of jobs (``dpvla.parallel``): an environment lives in its worker as long as the run, and what
the worker is told next depends on what it said last.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpvla.config import one_line
from dpvla.parallel import one_thread_each, starting_workers
from dpvla.state_based.environments.environment import Environment, Step
from dpvla.state_based.environments.make import make_environment

Order = int | NDArray[Any]
"""What a slot is told: a seed starts an episode, an action (action_size,) takes a step."""

Answer = NDArray[np.float32] | Step
"""What a slot says: the first observation of an episode, or what the step led to."""

Make = Callable[[str], Environment]
"""Makes the environment of a name. With workers, it must stand in a module other than the program itself."""

_OWN = (ValueError, ModuleNotFoundError)
"""What environments raise for what they are asked, in words of ours; anything else is a failure of the simulator."""

SECONDS_TO_END = 5.0
"""How long a worker may take to leave when it is told to."""


class WorkerDied(ChildProcessError):  # noqa: N818 - what happened, not a kind of mistake
    """Environments are gone: their process was killed, or the simulator in it failed or ran out of memory."""


class EnvironmentPool:
    """``count`` environments of one task. ``send`` gives orders to slots, ``receive`` waits for all their answers.

    Between the two, workers step while the caller does something else. With 0 workers everything happens in this
    process, inside ``receive``. Environments are built when their slot gets its first order.
    """

    def __init__(self, name: str, count: int, workers: int, make: Make = make_environment) -> None:
        """``workers``: processes, at most one per environment."""
        if count < 1 or workers < 0:
            raise ValueError(f"a pool needs at least 1 environment and 0 workers, found {count} and {workers}")
        self.name, self.count, self.workers, self._make = name, count, min(workers, count), make
        self._hosts: list[_Here] | list[_Worker] = []
        self._asked: list[int] = []  # hosts that owe an answer

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, orders: Mapping[int, Order]) -> None:
        """Give each slot named in ``orders`` (0 to count - 1) its order.

        Raises:
            WorkerDied: a worker is gone. The pool is closed; its next use starts fresh workers and environments.
        """
        if self._asked:
            raise RuntimeError("the answers to the last orders have not been received")
        if not self._hosts:
            self._start()
        shares: dict[int, dict[int, Order]] = {}
        for slot, order in orders.items():
            shares.setdefault(slot % len(self._hosts), {})[slot] = order
        for number, share in shares.items():
            self._or_close(self._hosts[number].send, share)
            self._asked.append(number)

    def receive(self) -> dict[int, Answer]:
        """Answers of all slots that got an order.

        Raises:
            WorkerDied: as for ``send``.
            ValueError, ModuleNotFoundError: what an environment itself raised, e.g. for an action that is not finite.
        """
        answers: dict[int, Answer] = {}
        while self._asked:
            answers |= self._or_close(self._hosts[self._asked[0]].receive)
            self._asked.pop(0)
        return answers

    def close(self) -> None:
        """End all workers; the next use starts fresh ones."""
        for host in self._hosts:
            host.close()
        self._hosts, self._asked = [], []

    def _start(self) -> None:
        if self.workers == 0:
            self._hosts = [_Here(self.name, self._make)]
            return
        with one_thread_each(), _program_not_imported(), starting_workers("--workers 0"):
            self._hosts = [_Worker(self.name, self._make, n, self.workers) for n in range(self.workers)]

    def _or_close(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BaseException:
            self.close()
            raise


class _Environments:
    """The environments of one process, by slot."""

    def __init__(self, name: str, make: Make) -> None:
        self._name, self._make = name, make
        self._by_slot: dict[int, Environment] = {}

    def obey(self, orders: Mapping[int, Order]) -> dict[int, Answer]:
        """The answer to every order."""
        answers: dict[int, Answer] = {}
        for slot, order in orders.items():
            if slot not in self._by_slot:
                self._by_slot[slot] = self._make(self._name)
            environment = self._by_slot[slot]
            answers[slot] = environment.reset(order) if isinstance(order, int) else environment.step(order)
        return answers


class _Here:
    """The same conversation as with a worker, without a process."""

    def __init__(self, name: str, make: Make) -> None:
        self._name, self._environments = name, _Environments(name, make)
        self._orders: Mapping[int, Order] = {}

    def send(self, orders: Mapping[int, Order]) -> None:
        self._orders = orders

    def receive(self) -> dict[int, Answer]:
        try:
            return self._environments.obey(self._orders)
        except _OWN:
            raise
        except Exception as error:
            raise WorkerDied(f"the environments of {self._name} failed ({_said(error)})") from error

    def close(self) -> None:
        pass


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, name: str, make: Make, number: int, count: int) -> None:
        self._title = f"environment worker {number + 1} of {count} ({name})"
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of what the caller has loaded
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, name, make), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def send(self, orders: Mapping[int, Order]) -> None:
        try:
            self._pipe.send(orders)
        except OSError:
            raise self._died() from None

    def receive(self) -> dict[int, Answer]:
        kind: Literal["answers", "refused", "failed"]
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "refused":
            raise content
        if kind == "failed":
            said, trace = content
            raise WorkerDied(f"{self._title} failed ({said})") from RuntimeError(trace)
        return content

    def close(self) -> None:
        self._pipe.close()
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _died(self) -> WorkerDied:
        self.process.join(SECONDS_TO_END)
        code = self.process.exitcode
        why = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        hint = ", often for lack of memory: use fewer --workers or --environments" if code == -9 else ""
        return WorkerDied(f"{self._title} ended unexpectedly ({why}{hint})")


@contextmanager
def _program_not_imported() -> Iterator[None]:
    """Spawn imports the running program in every process. Workers need nothing of it, torch least of all: without it
    they start in a tenth of the time and take an eighth of the memory."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _work(pipe: Connection, name: str, make: Make) -> None:
    """A worker's life: obey until the pipe ends, which it also does when the parent is killed."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends workers itself
    environments = _Environments(name, make)
    while True:
        try:
            orders = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            message: tuple[str, Any] = ("answers", environments.obey(orders))
        except _OWN as error:
            message = ("refused", _plain(error))
        except Exception as error:
            message = ("failed", (_said(error), traceback.format_exc()[-10_000:]))
        try:
            pipe.send(message)
        except OSError:
            return


def _plain(error: ValueError | ModuleNotFoundError) -> Exception:
    """The same, but sure to survive the pipe."""
    return (ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ValueError)(str(error))


def _said(error: Exception) -> str:
    hint = ": use fewer --workers or --environments" if isinstance(error, MemoryError) else ""
    return f"{type(error).__name__}: {one_line(error)[:500]}{hint}"
