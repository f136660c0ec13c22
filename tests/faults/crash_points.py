"""Tools that are ended at a chosen write, and then called again: the end must be that of an unbroken run.

In a forked child every function by which a file comes, goes or changes its name is wrapped, and so are ``os.fsync`` and
opening for writing. A child sends itself a signal right before the n-th of these calls below its working directory;
right after it and before the next one the disk looks the same. The project knows nothing of this.
"""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pathlib
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.faults.case import Bench, Call, Outcome, as_typed, content_of, remove
from tests.faults.groups import driving, options, state_based, training
from tests.faults.sample import ROOTS, SHORT_EPISODES
from tests.faults.server import Ended, Job, Server

WATCHED = ("replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "fsync", "truncate")
"""Functions of ``os``; ``open`` for writing besides."""
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}


@dataclass(frozen=True)
class Work:
    """A call that writes, and what it leaves."""

    call: Call
    leaves: tuple[str, ...]  # files and folders, all of whose content counts


def _work(call: Call, *leaves: str) -> Work:
    return Work(call, leaves)


SMALL_WORLD = as_typed(
    "--root made --num-train-logs 1 --num-test-logs 1 --log-seconds 8 "
    "--image-width 16 --image-height 9 --cameras CAM_F0 --workers 1 --quiet"
)
WORKS: dict[str, Work] = {
    "pretrain": _work(options.NEW_PRETRAIN, "new"),
    "rl_finetune": _work(replace(training.START_DIPOLE, needs=training.DIPOLE_NEEDS), "new", "tokens"),
    "rl_finetune held out": _work(
        Call(
            "rl_finetune",
            ("--config", "held_out.yaml", "--out", "new"),
            (*training.TRAIN, "held_out.yaml", "runs/pre"),
            ("new/**/*",),
        ),
        "new",
    ),
    "train_selector": _work(
        Call(
            "train_selector",
            ("--config", "selector.yaml", "--out", "new"),
            (*training.DIPOLE_NEEDS, "selector.yaml", "runs/dip"),
            ("new/**/*",),
        ),
        "new",
    ),
    "cache_metrics": _work(driving.CACHE, "out"),
    "pack_images": _work(driving.PACK, "out"),
    "merge": _work(Call("cache_metrics", ("--merge", "shards", "--out", "out"), ("shards",), ("out/*",)), "out"),
    "export_submission": _work(options.EXPORT, "new.pkl", ".new.pkl.lock"),
    "train_state_based offline": _work(state_based.TRAIN, "new"),
    "train_state_based online": _work(
        Call(
            "train_state_based",
            ("--config", "state.yaml", "--steps", "2", "--online-steps", "4", "--out", "new"),
            ("state.yaml", "ogbench"),
            ("new/**/*",),
            before=SHORT_EPISODES,
        ),
        "new",
    ),
    "make_ogbench_data": _work(
        Call(
            "make_ogbench_data",
            as_typed("--env pointmaze-medium-navigate --episodes 2 --steps 20 --workers 1 --quiet --out data"),
            (),
            ("data/*",),
        ),
        "data",
    ),
    "collect_exorl": _work(
        Call(
            "collect_exorl",
            as_typed(
                "--domain walker --episodes 2 --steps 10 --hidden 8 "
                "--batch-size 4 --random-steps 5 --checkpoint-every 1 --quiet --out data"
            ),
            (),
            ("data/**/*",),
        ),
        "data",
    ),
    "make_demo_world": _work(Call("make_demo_world", SMALL_WORLD, (), ("made/**/*",)), "made"),
    "evaluate": _work(
        Call(
            "evaluate",
            (*ROOTS[:2], "--split", "navtest_all", "--agent", "human", "--metric-cache", "cache", "--out", "scores"),
            ("world/navsim_logs/test", "world/splits", "cache"),
            ("scores/*",),
        ),
        "scores",
    ),
}
"""Everything that goes on where it was stopped, at tiny size."""


@dataclass(frozen=True)
class Moment:
    """When a child ends itself."""

    by: str  # key of SIGNALS
    call: int | None = None  # before this of the watched calls, counted from 1
    cpu_s: float | None = None  # or after so much processor time


def install(data: dict[str, Any]) -> None:
    """Watch the calls of this process; ``data``: a `Moment`, and ``log``, the file that gets a line for each call."""
    if data["before"]:
        module, _, function = str(data["before"]).partition(":")
        getattr(importlib.import_module(module), function)(None)
    number = SIGNALS[data["by"]]
    if data["cpu_s"] is not None:
        signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_PROF, data["cpu_s"])
        return
    here, log, count, process = (
        os.getcwd(),
        os.open(data["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        [0],
        os.getpid(),
    )

    def note(name: str, path: Any, folder: int | None = None) -> None:
        place = _absolute(path, folder)
        if place is None or not place.startswith(here + os.sep) or os.getpid() != process:
            return
        count[0] += 1
        os.write(log, f"{name} {os.path.relpath(place, here)}\n".encode())
        if count[0] == data["call"]:
            os.kill(process, number)

    for name in WATCHED:
        _wrap(name, note)
    really_open, really_os_open = io.open, os.open

    def opening(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not isinstance(file, int) and set(mode) & set("wax+"):
            note("open", file)
        return really_open(file, mode, *arguments, **named)

    def os_opening(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            note("open", path, named.get("dir_fd"))
        return really_os_open(path, flags, *arguments, **named)

    builtins.open = io.open = opening  # type: ignore[assignment]
    os.open = os_opening


def _wrap(name: str, note: Callable[..., None]) -> None:
    real = getattr(os, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        last = arguments[1] if name in ("replace", "rename", "link", "symlink") else arguments[0]
        note("unlink" if name == "remove" else name, last, named.get("dir_fd"))
        return real(*arguments, **named)

    setattr(os, name, watched)
    accessor = getattr(pathlib, "_normal_accessor", None)  # Python 3.10 keeps its own
    if accessor is not None and hasattr(accessor, name):
        setattr(accessor, name, watched)


def _absolute(path: Any, folder: int | None) -> str | None:
    try:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        if folder is not None:
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        return os.path.abspath(os.fsdecode(path))
    except (OSError, TypeError):
        return None


class Breaker:
    """Runs a work, ends it at a moment, lets it go on, and compares."""

    def __init__(self, name: str) -> None:
        self.name, self.work = name, WORKS[name]
        self.calls: list[str] = []  # of an unbroken run
        self.cpu_s = 0.0
        self._whole: dict[str, bytes] = {}

    def unbroken(self, bench: Bench) -> None:
        """Run once without interruption: what it calls and leaves."""
        place = bench.folder(self.work.call, f"kill-{self.name.replace(' ', '-')}")
        log = place.parent / "log"
        ended, _, err = self._run(bench, place, Moment("KILL", call=0), log)
        assert ended.status == 0, f"{self.name} fails: {ended}\n{err[-3000:]}"
        self.calls = log.read_text().splitlines()
        self.cpu_s = ended.cpu_s
        self._whole = self._left(place)
        remove(place.parent)

    def kinds(self, seed: int) -> list[int]:
        """A call of each kind: function, and whether it is of a hidden (temporary) or a final name."""
        draw = random.Random(f"{self.name} {seed}")
        found: dict[tuple[str, bool], list[int]] = {}
        for number, line in enumerate(self.calls, 1):
            function, _, path = line.partition(" ")
            found.setdefault((function, bool(re.search(r"(^|/)\.", path))), []).append(number)
        first = [n for n, line in enumerate(self.calls, 1) if re.fullmatch(r"replace \S+/run\.yaml", line)][:1]
        return sorted({*first, *(draw.choice(numbers) for numbers in found.values())})

    def broken(self, bench: Bench, moments: Sequence[Moment]) -> Outcome:
        """End it at each moment, one call after the other, then run it to its end."""
        title = f"kill {self.name}/" + ",".join(
            f"{m.by}@{m.call if m.call is not None else f'{m.cpu_s:.2f}s'}" for m in moments
        )
        where = self.calls[(moments[0].call or 1) - 1] if moments[0].call else "a random moment"
        place = bench.folder(self.work.call, f"kill-{self.name.replace(' ', '-')}")
        try:
            for moment in moments:
                ended, _, err = self._run(bench, place, moment, place.parent / "log")
                if (wrong := _wrong_end(moment, ended, err)) is not None:
                    return Outcome(title, *wrong, err[-600:], where)
            ended, _, err = self._run(bench, place, None, place.parent / "log")
            whole_already = ended.hung is ended.signal is None and self._left(place) == self._whole and "exists" in err
            if (
                ended.status != 0 and not whole_already
            ):  # it was killed when all was done: there is nothing to go on with
                kind: Any = (
                    "hang"
                    if ended.hung
                    else "crash"
                    if ended.signal
                    else "traceback"
                    if "Traceback" in err
                    else "unclear"
                )
                return Outcome(title, kind, f"cannot go on after {where}", err[-600:], where)
            stopped = any(moment.by != "KILL" for moment in moments)
            left, whole = (_newest(found) if stopped else found for found in (self._left(place), self._whole))
            other = sorted(name for name in {*left, *whole} if left.get(name) != whole.get(name))
            if other:
                extra = [name for name in other if name not in whole]
                return Outcome(
                    title,
                    "silent",
                    f"ends otherwise after {where}: {'leaves ' if extra else ''}{other[0]}",
                    ", ".join(other[:6]),
                    where,
                )
            return Outcome(title, "clear", "", "", where)
        finally:
            if not bench.keep:
                remove(place.parent)

    def _run(self, bench: Bench, place: Path, moment: Moment | None, log: Path) -> tuple[Ended, str, str]:
        call, said = self.work.call, place.parent / "said"
        before, data = call.before, None
        if moment is not None:
            data = {"by": moment.by, "call": moment.call, "cpu_s": moment.cpu_s, "log": str(log), "before": call.before}
            before = "tests.faults.crash_points:install"
        job = Job(call.module, call.argv, str(place), str(said), 120, before, data)
        ended = bench.server.run(job)
        return ended, said.read_text(errors="replace"), Path(f"{said}.err").read_text(errors="replace")

    def _left(self, place: Path) -> dict[str, bytes]:
        """Every file and folder that counts, hidden ones as well, and what it holds."""
        found = {}
        for name in self.work.leaves:
            top = place / name
            for path in (top, *(top.rglob("*") if top.is_dir() else ())):
                if path.name != ".lock" and path.exists():
                    found[str(path.relative_to(place))] = content_of(path, place) if path.is_file() else b"folder"
        return found


def _newest(found: dict[str, bytes]) -> dict[str, bytes]:
    """Without older checkpoints: a run that is asked to stop saves where it stands, so that others are kept."""
    steps = sorted({match[0] for name in found if (match := re.search(r"/step_\d+", name))})
    return {name: value for name, value in found.items() if not any(step in name for step in steps[:-1])}


def _wrong_end(moment: Moment, ended: Ended, err: str) -> tuple[Any, str] | None:
    """What is wrong with how a tool ended that was sent a signal."""
    if ended.hung:
        return "hang", ended.hung
    if moment.by == "KILL":
        if ended.signal != signal.SIGKILL and ended.status != 0:
            return "unclear", f"ended with {ended} instead"
    elif "Traceback (most recent call last)" in err:
        return "traceback", err.strip().splitlines()[-1][:300]
    elif ended.signal not in (None, signal.SIGTERM, signal.SIGINT):
        return "crash", f"signal {ended.signal}"
    return None


Chain = list[Moment]


def _chains(breakers: Sequence[Breaker], count: int | None, seed: int) -> Iterator[tuple[Breaker, Chain]]:
    """Chains of one to three moments, ``count`` of them, spread over the works; None: a SIGKILL at every call of each.

    Of four, two are SIGKILL, one SIGTERM, one SIGINT; a quarter is at random moments, the others at calls.
    """
    if count is None:
        yield from ((b, [Moment("KILL", call=n)]) for b in breakers for n in range(1, len(b.calls) + 1))
        return
    draw = random.Random(seed)
    for number in range(count):
        breaker = breakers[number % len(breakers)]
        by = ("KILL", "TERM", "KILL", "INT")[number // len(breakers) % 4]
        if draw.random() < 0.25:
            yield breaker, [Moment(by, cpu_s=draw.uniform(0.02, 1) * breaker.cpu_s) for _ in range(draw.choice((1, 3)))]
        else:
            yield breaker, [Moment(by, call=draw.randint(1, len(breaker.calls))) for _ in range(draw.choice((1, 1, 2)))]


def run(
    names: Sequence[str],
    folder: Path,
    servers: Sequence[Server],
    count: int | None,
    seed: int,
    report: Callable[[Outcome], object],
    keep: bool = False,
) -> list[Outcome]:
    """Break works by name on several servers; ``count`` as of chains, and 0 for a call of each kind of each work."""
    benches: SimpleQueue[Bench] = SimpleQueue()
    for number, server in enumerate(servers):
        benches.put(Bench(folder / "sample", folder / f"kills{number}", server, keep))
    whole = {name: Breaker(name) for name in names}

    def unbroken(name: str) -> None:
        with _one_of(benches) as bench:
            whole[name].unbroken(bench)

    def broken(job: tuple[Breaker, Chain]) -> Outcome:
        with _one_of(benches) as bench:
            outcome = job[0].broken(bench, job[1])
        report(outcome)
        return outcome

    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(unbroken, names))
        breakers = list(whole.values())
        of_each_kind = ((b, [Moment("KILL", call=n)]) for b in breakers for n in b.kinds(seed))
        return list(threads.map(broken, of_each_kind if count == 0 else _chains(breakers, count, seed)))


@contextmanager
def _one_of(benches: SimpleQueue[Bench]) -> Iterator[Bench]:
    bench = benches.get()
    try:
        yield bench
    finally:
        benches.put(bench)
