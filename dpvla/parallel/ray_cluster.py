"""Jobs over the machines of a Ray cluster.

Every worker is an actor with one core (and one GPU where it needs one) that has one job at a time. A job whose worker
is lost, with its machine or alone, is done again by another one; machines that join the cluster later get workers,
too. The machines have to share the folders that are read and written, and the working directory, at the same paths:
each worker looks before its first job. They need the same dpvla and Ray; logs of dead machines are not repeated here.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import platform
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from dpvla import __version__
from dpvla.config import one_line
from dpvla.parallel.executor import Executor, ExecutorConfig, Work

TRIES = 4
"""Workers that a job may cost: it may be what kills them."""
SECONDS_BETWEEN_LOOKS = 5.0
"""How often the cluster is asked for its size."""
SECONDS_OF_PATIENCE = 30.0
"""Without any worker, until that is said."""
NOT_REPEATED = r"Raylet is terminated|has been marked dead|A worker died or was killed|Workers .* killed due to"
"""What Ray prints of the lost, logs included; one line is said here instead."""


@dataclass(frozen=True)
class RayConfig(ExecutorConfig):
    """A Ray cluster that has been started (``ray start --head``, then ``ray start --address HEAD:6379``)."""

    name: str = "ray"  # ray, or another executor
    address: str = "auto"  # HOST:PORT of its head; auto: RAY_ADDRESS, or this machine's; local: start one here


class RayCluster(Executor):
    """Workers on all machines of a cluster."""

    Config: ClassVar[type[ExecutorConfig]] = RayConfig

    def __init__(self, config: RayConfig, workers: int = 0) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ImportError("--executor ray needs Ray, which is not installed: pip install 'dpvla[ray]'")
        super().__init__(config, workers)
        self._free: dict[bool, list[Any]] = {True: [], False: []}  # workers of earlier runs, with a GPU or without

    @property
    def is_alone(self) -> bool:
        """Never: who asks for a cluster gets it, for few jobs, too."""
        return False

    @property
    def num_gpus(self) -> int:
        """Of the whole cluster."""
        return int(self._ray().cluster_resources().get("GPU", 0))

    def worth(self, most: int) -> RayCluster:
        """This one."""
        return self

    def run(self, work: Work) -> Iterator[Any]:
        """See `Executor.run`."""
        if not work.jobs:
            return
        ray = self._ray()
        if work.gpu_each and not self.num_gpus:
            raise ValueError("the Ray cluster has no GPU: give --device cpu, or add machines that have some")
        free = self._free[work.gpu_each]
        for actor in self._free[not work.gpu_each]:
            ray.kill(actor)
        self._free[not work.gpu_each] = []
        with _marked(work.writes) as marker, _Team(ray, work, self.workers, marker, free) as team:
            yield from _ordered(team.results()) if work.in_order else (result for _, result in team.results())

    def _ray(self) -> Any:
        """The module, connected to the cluster."""
        ray = import_ray()
        if not ray.is_initialized():
            own: dict[str, Any] = {"include_dashboard": False} if self.config.address == "local" else {}
            try:
                _knock(self.config.address)
                ray.init(self.config.address, log_to_driver=False, logging_level=logging.ERROR, **own)
            except (OSError, RuntimeError, ValueError) as error:
                raise ConnectionError(
                    f"no Ray cluster can be used at {self.config.address} ({one_line(error):.200}): start one with "
                    "`ray start --head` and on the other machines `ray start --address HEAD:6379`, or give "
                    "--executor.address"
                ) from None
        return ray


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray would try for minutes, with lines of its own."""
    address = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def import_ray() -> Any:
    """The module, told to report nothing to its makers and to leave out logs of the lost."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", NOT_REPEATED)  # read when it is imported
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"--executor ray: Ray does not work here ({one_line(error):.200}): pip install 'dpvla[ray]' again"
        ) from None
    return ray


def _ordered(numbered: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """Results by their numbers from 0."""
    early: dict[int, Any] = {}
    following = 0
    for number, result in numbered:
        early[number] = result
        while following in early:
            yield early.pop(following)
            following += 1


@contextmanager
def _marked(folder: Path | None) -> Iterator[Path | None]:
    """A file in ``folder`` by which workers know it: another machine may have one of the same name."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".workers-*"):  # by a process that was killed: who writes holds the folder alone
        left.unlink(missing_ok=True)
    marker = folder / f".workers-{uuid.uuid4().hex}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


@dataclass(frozen=True)
class Place:
    """What a worker must find before its first job."""

    version: str  # of dpvla
    folder: str  # working directory
    reads: tuple[Path, ...]
    marker: Path | None  # a file in the folder that is written to

    def enter(self) -> str:
        """Go to the working directory; gives the machine's name.

        Raises OSError or ValueError, which name the machine, where something is not as it should be.
        """
        machine = platform.node()
        if self.version != __version__:
            raise ValueError(f"{machine} has dpvla {__version__}, not {self.version}: install the same on all machines")
        try:
            os.chdir(self.folder)
        except OSError:
            raise _not_shared(machine, self.folder, "the working directory") from None
        for path in self.reads:
            if not path.exists():
                raise _not_shared(machine, path, "to be read")
        if self.marker is not None:
            if not self.marker.exists():
                raise _not_shared(machine, self.marker.parent, "to be written to")
            if not os.access(self.marker.parent, os.W_OK):
                raise PermissionError(f"{machine} may not write to {self.marker.parent}")
        return machine


def _worker_class() -> type:
    """The actors'. A class that no module holds is sent as it is: it can say where modules are before any is needed."""

    class Worker:
        def begin(self, path: Sequence[str], place: bytes, work: bytes) -> str:
            """Find what the jobs need; gives the machine's name."""
            import pickle
            import sys

            sys.path[:0] = [folder for folder in path if folder not in sys.path]
            try:
                machine: str = pickle.loads(place).enter()
            except ImportError as error:
                import platform

                raise ImportError(
                    f"{platform.node()} cannot import dpvla as it is here ({error}): install the same on all machines"
                ) from None
            from dpvla.parallel.executor import Opened

            self._run = Opened(*pickle.loads(work))
            return machine

        def work(self, job: Sequence[Any]) -> bytes:
            """The pickled result of a job: unpickled by Ray itself, its arrays would be read-only."""
            import pickle

            return pickle.dumps(self._run(job), protocol=pickle.HIGHEST_PROTOCOL)

    return Worker


def _not_shared(machine: str, path: Path | str, use: str) -> OSError:
    return FileNotFoundError(
        f"{machine} does not see {os.path.abspath(path)} ({use}): with --executor ray all machines share folders, at "
        "the same paths (elsewhere --shard works on copies)"
    )


class _Team:
    """The workers of one run, and who has which job."""

    def __init__(self, ray: Any, work: Work, most: int, marker: Path | None, free: list[Any]) -> None:
        """``most``: workers; 0: as many as the cluster can have. ``free``: actors that are there; those that are left
        at the end are put there again."""
        self._free = free
        self._ray, self._jobs, self._most, self._resource = ray, work.jobs, most, "GPU" if work.gpu_each else "CPU"
        needs: dict[str, int] = {"num_cpus": 1, "num_gpus": int(work.gpu_each), "max_restarts": 0}
        self._actor = ray.remote(**needs, max_task_retries=0)(_worker_class())
        place = Place(__version__, os.getcwd(), tuple(work.reads), marker)
        told = tuple(sys.path), pickle.dumps(place), ray.cloudpickle.dumps((work.function, work.opener))
        self._told = [ray.put(part) for part in told]
        self._waiting = deque(range(len(work.jobs)))
        self._starting: dict[Any, Any] = {}  # reference -> actor
        self._busy: dict[Any, tuple[Any, int]] = {}  # reference -> actor and number of its job
        self._idle: list[Any] = []
        self._machine: dict[Any, str] = {}  # of actors that have begun
        self._lost: Counter[int | None] = Counter()  # workers by the number of their job; None: when they began
        self._told_of: set[str] = set()  # machines
        self._looked = self._last_worker = time.monotonic()
        self._room = self._size()

    def __enter__(self) -> _Team:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._free += self._idle
            self._idle = []
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)

    def results(self) -> Iterator[tuple[int, Any]]:
        """Number and result of every job, as it is done."""
        while self._waiting or self._busy:
            self._hire()
            while self._waiting and self._idle:
                actor, number = self._idle.pop(), self._waiting.popleft()
                self._busy[actor.work.remote(self._jobs[number])] = actor, number
            references = [*self._busy, *self._starting]
            if not references:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                continue
            for reference in self._ray.wait(references, timeout=SECONDS_BETWEEN_LOOKS)[0]:
                yield from self._answer(reference)

    def _hire(self) -> None:
        """Start workers for what is left to do, as many as the cluster has room for."""
        now = time.monotonic()
        if now - self._looked > SECONDS_BETWEEN_LOOKS:
            self._room, self._looked = self._size(), now
        at_work = len(self._busy) + len(self._idle)
        if at_work:
            self._last_worker = now
        elif now - self._last_worker > SECONDS_OF_PATIENCE:
            self._last_worker = now
            _say(f"waiting for the Ray cluster: none of its {self._room} {self._resource}s is free for a worker")
        if self._lost[None] > TRIES * self._room:
            return  # others go on
        wanted = min(len(self._waiting) + len(self._busy), self._most or self._room, self._room)
        for _ in range(wanted - at_work - len(self._starting)):
            actor = self._free.pop() if self._free else self._actor.remote()
            self._starting[actor.begin.remote(*self._told)] = actor

    def _size(self) -> int:
        return int(self._ray.cluster_resources().get(self._resource, 0))

    def _answer(self, reference: Any) -> Iterator[tuple[int, Any]]:
        """What a reference that is ready has: a worker that can begin, a result, or an error."""
        number = None
        if reference in self._starting:
            actor = self._starting.pop(reference)
        else:
            actor, number = self._busy.pop(reference)
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # the job's own
            self._ray.kill(actor)
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            self._lose(actor, number, error)
            return
        if number is None:
            self._machine[actor] = found
        self._idle.append(actor)
        if number is not None:
            yield number, pickle.loads(found)

    def _lose(self, actor: Any, number: int | None, error: Exception) -> None:
        self._ray.kill(actor)  # it may live on behind a broken connection
        self._lost[number] += 1
        machine = self._machine.pop(actor, None)
        given_up = not (self._busy or self._idle) if number is None else True
        if given_up and self._lost[number] >= TRIES:
            what = "no worker can begin" if number is None else f"a job has cost {TRIES} workers"
            raise ChildProcessError(
                f"{what}, often for lack of memory or of a package on the machine ({one_line(error):.300}); what has "
                "been written is kept"
            )
        if number is not None:
            self._waiting.appendleft(number)
        if machine is not None and machine not in self._told_of:
            self._told_of.add(machine)
            _say(f"a worker on {machine} was lost; what it was doing is done again")


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
