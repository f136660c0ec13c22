"""Runs tools in forked children of a process that has loaded everything once: a case costs its own work alone.

``python -m tests.faults.server FD...`` loads, then forks a server for each of the sockets it was given. A server reads
one job a line (JSON of ``Job``) and answers each with a line (JSON of ``Ended``). The child that does a job is a
session of its own, so that whatever it starts can be ended with it.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.paths import ROOT

MEMORY, FILE_SIZE = 4 << 30, 1 << 30
"""Address space [bytes] beyond what is loaded already, and length of any file that is written."""
BLOCKED = 30.0
"""Seconds in which nothing of a job runs nor wants to: it waits for what will never come."""


@dataclass(frozen=True)
class Job:
    """A call of a tool."""

    call: str  # module that has ``main(argv)``, such as tools.evaluate
    argv: tuple[str, ...]
    cwd: str
    said: str  # file for its standard output; the error stream goes to the same name with .err
    cpu_s: float  # processor time after which it hangs
    before: str = ""  # "module:function" that is called first, with ``data``
    data: Any = None
    wall_s: float = 900.0  # last resort


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    status: int | None  # exit status
    signal: int | None  # that ended it
    hung: str | None  # why it was ended
    cpu_s: float
    left: int  # processes of its own that it left behind


class Servers:
    """Servers that work side by side, forked from one process that has loaded everything."""

    def __init__(self, count: int = 1) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENSCENE", "NUPLAN", "NAVSIM"))}
        nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "ftp")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disabled", **nowhere}
        pairs = [socket.socketpair() for _ in range(count)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", *(str(theirs.fileno()) for _, theirs in pairs)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno() for _, theirs in pairs],
        )
        for _, theirs in pairs:
            theirs.close()
        self.all = [Server(ours) for ours, _ in pairs]

    def __enter__(self) -> list[Server]:
        return self.all

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self.all:
            server.end()
        self._process.wait()


class Server:
    """A server as its user sees it. One job at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lines = connection, connection.makefile("r")

    def run(self, job: Job) -> Ended:
        """Run a job to its end."""
        self._connection.sendall(json.dumps(asdict(job)).encode() + b"\n")
        answer = self._lines.readline()
        if not answer:
            raise RuntimeError(f"the server ended during {job}")
        return Ended(**json.loads(answer))

    def end(self) -> None:
        """Let it go."""
        self._lines.close()
        self._connection.close()


def main() -> None:
    """Load, fork, and serve until the users are gone."""
    _end_with_parent()
    _load()
    connections = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    for connection in connections:
        if os.fork() == 0:
            for other in connections:
                if other is not connection:
                    other.close()
            _serve(connection)
            os._exit(0)
    for connection in connections:
        connection.close()
    for _ in connections:
        os.wait()


def _end_with_parent() -> None:
    """Nothing of this stays when whoever started it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _serve(connection: socket.socket) -> None:
    _end_with_parent()
    for line in connection.makefile("r"):
        data = json.loads(line)
        job = Job(**{**data, "argv": tuple(data["argv"])})
        connection.sendall(json.dumps(asdict(_run(job))).encode() + b"\n")


def _load() -> None:
    import torch

    torch.set_num_threads(1)
    for name in ("accelerate", "timm", "safetensors.torch", "tyro", "scipy.optimize", "PIL.Image", "gymnasium",
                 "ogbench", "dm_control.suite", "numba"):  # fmt: skip
        with suppress(ImportError):
            importlib.import_module(name)
    for package in ("dpvla", "navsim_bridge"):
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if module.name.rpartition(".")[2] not in ("triton_tracker", "ray_cluster"):
                with suppress(ImportError):
                    importlib.import_module(module.name)
    for tool in sorted((ROOT / "tools").glob("[a-z]*.py")):
        importlib.import_module(f"tools.{tool.stem}")
    from navsim_bridge.pdm.compiled import choice

    choice.on_cpu()  # kernels are loaded, or compiled, once for all


def _run(job: Job) -> Ended:
    child = os.fork()
    if child == 0:
        _be_child(job)
    try:
        return _watch(job, child)
    finally:
        _end_group(child)


def _be_child(job: Job) -> None:
    """Never returns."""
    code: int = 1
    try:
        _end_with_parent()
        os.setsid()
        for stream, name, flags in ((0, os.devnull, os.O_RDONLY), (1, job.said, _NEW), (2, f"{job.said}.err", _NEW)):
            os.dup2(os.open(name, flags, 0o644), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False, errors="replace")
        os.chdir(job.cwd)
        loaded = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (loaded + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CPU, (int(job.cpu_s), int(job.cpu_s) + 5))
        sys.argv = [f"{job.call.replace('.', '/')}.py", *job.argv]
        if job.before:
            module, _, function = job.before.partition(":")
            getattr(importlib.import_module(module), function)(job.data)
        code = _status(job)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _status(job: Job) -> int:
    """As the interpreter makes it of what ``main`` raises."""
    try:
        importlib.import_module(job.call).main(list(job.argv))
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _watch(job: Job, child: int) -> Ended:
    """Wait for the child; ends one that waits for ever."""
    descriptor = os.pidfd_open(child)
    started = quiet_since = time.monotonic()
    before, hung = -1.0, None
    try:
        while not select.select([descriptor], [], [], 0.5)[0]:
            now = time.monotonic()
            used, wants = _activity(child)
            if used != before or wants:
                before, quiet_since = used, now
            if now - quiet_since > BLOCKED:
                hung = "blocked"
            elif now - started > job.wall_s:
                hung = f"still there after {job.wall_s:g} s"
            if hung:
                _end_group(child)
    finally:
        os.close(descriptor)
    _, ended, usage = os.wait4(child, 0)
    left = len(_group(child))
    cpu = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(ended):
        by = os.WTERMSIG(ended)
        if by == signal.SIGXCPU or (by == signal.SIGKILL and cpu >= job.cpu_s):
            hung = hung or f"{cpu:.0f} s of processor time"
        return Ended(None, by, hung, cpu, left)
    return Ended(os.WEXITSTATUS(ended), None, hung, cpu, left)


def _group(session: int) -> list[tuple[int, str, int]]:
    """Number, state and processor time (ticks) of each process of a session that has not ended."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b") ")[2].split()
                if int(fields[3]) == session and fields[0] not in b"ZX":
                    found.append((int(entry), fields[0].decode(), int(fields[11]) + int(fields[12])))
    return found


def _activity(session: int) -> tuple[float, bool]:
    """Processor time that its processes have used, and whether one of them runs, wants to, or waits for a disk."""
    group = _group(session)
    return sum(ticks for _, _, ticks in group), any(state in "RD" for _, state, _ in group)


def _end_group(session: int) -> None:
    for number, _, _ in _group(session):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    main()
