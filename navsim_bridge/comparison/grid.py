"""Making what is missing: processes of the tools side by side, in an order that what needs others allows."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import yaml

from dpvla.checkpoint_layout import CHECKPOINTS
from dpvla.config import ConfigError, NotNegative
from dpvla.files import FileError, write_json, write_text
from dpvla.schema import read_as
from navsim_bridge.comparison.config import Minutes
from navsim_bridge.comparison.jobs import EVALUATION, FINETUNE, SELECTOR, Job
from navsim_bridge.evaluation.results import SUMMARY

LONGEST_REASON = 400


class _Note(TypedDict):
    """What stands beside a finished job."""

    command: str
    seconds: NotNegative


@dataclass
class Grid:
    """Jobs below one folder: which are done, how long the others take, and doing them."""

    out: Path
    tools: Path  # folder of the tools
    workers: int = 1
    cache_of: Callable[[str, str], Path] | None = None  # metric cache of a split and a metric, made if absent
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def is_done(self, job: Job) -> bool:
        """Whether it was done here, and what it made is there."""
        made = self.out / job.name / (SUMMARY if job.kind == EVALUATION else CHECKPOINTS)
        return made.exists() and self._note(job).exists()

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that are not done, in their order."""
        return [job for job in jobs if not self.is_done(job)]

    def seconds_of(self, jobs: Iterable[Job]) -> dict[str, float]:
        """How long each that is done took."""
        found: dict[str, float] = {}
        for job in jobs:
            if self.is_done(job):
                path = self._note(job)
                try:
                    found[job.name] = read_as(path, _Note)["seconds"]
                except FileError as error:
                    raise ConfigError(f"{error}: remove it to have {job.name} looked at again") from None
        return found

    def estimate(self, jobs: Sequence[Job], known: Iterable[Job], minutes: Minutes) -> dict[str, float]:
        """Seconds that each job takes: as jobs of its kind that are ``known`` took, else as the protocol says."""
        measured: dict[str, list[float]] = {}
        by_name = {job.name: job for job in known}
        for name, seconds in self.seconds_of(by_name.values()).items():
            job = by_name[name]
            for kind in {job.kind, job.kind.partition(" ")[0]}:
                measured.setdefault(kind, []).append(seconds / job.work)
        said = {"imitation": minutes.imitation, FINETUNE: minutes.finetune, EVALUATION: minutes.evaluation,
                SELECTOR: minutes.selector}  # fmt: skip
        found = {}
        for job in jobs:
            general = job.kind.partition(" ")[0]
            each = measured.get(job.kind) or measured.get(general) or [60 * said[general]]
            found[job.name] = statistics.median(each) * job.work
        return found

    def run(self, jobs: Sequence[Job], say: Callable[[str], None] = print) -> dict[str, str]:
        """Do ``jobs``, each after those of them that it needs; returns those that failed, with the reason.

        What one that failed leaves is gone on with when it is asked for again. An interruption ends the processes.
        """
        caches = {pair: str(self.cache_of(*pair)) for pair in {j.scored_in for j in jobs if j.scored_in}
                  } if self.cache_of else {}  # fmt: skip
        waiting = {job.name: job for job in jobs}
        failed: dict[str, str] = {}
        doing: dict[Future[str], Job] = {}
        done = 0
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            try:
                while waiting or doing:
                    for name, job in list(waiting.items()):
                        broken = next((need for need in job.needs if need in failed), None)
                        if broken is not None:
                            failed[name] = f"needs {broken}, which failed"
                            del waiting[name]
                        elif len(doing) < max(1, self.workers) and not _pending(job, waiting, doing.values()):
                            del waiting[name]
                            doing[pool.submit(self._do, job, caches.get(job.scored_in))] = job  # type: ignore[arg-type]
                    if not doing:
                        continue
                    for future in wait(doing, return_when=FIRST_COMPLETED).done:
                        job, why = doing.pop(future), future.result()
                        done += 1
                        say(f"{done}/{len(jobs)} {'failed: ' if why else ''}{job.name}")
                        if why:
                            failed[job.name] = why
            except BaseException:
                self._stop()
                raise
        return failed

    def command(self, job: Job, cache: str | None = None) -> list[str]:
        """What is called."""
        also = ["--metric-cache", cache] if cache else []
        words = [*job.arguments, *also, "--out", str(self.out / job.name)]
        return [sys.executable, str(self.tools / job.tool), *words]

    def _do(self, job: Job, cache: str | None) -> str:
        """Call the tool and note how long it took; returns why it failed, if it did."""
        if job.recipe is not None:
            path, content = job.recipe
            write_text(self.out / path, yaml.safe_dump(dict(content), sort_keys=False))
        note = self._note(job)
        log = note.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = self.command(job, cache)
        began = time.perf_counter()
        with log.open("wb") as said:
            said.write(f"$ {shlex.join(command)}\n".encode())
            said.flush()
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with self._lock:
                if self._stopped:
                    return "interrupted"
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        if status:
            return f"{_last_line(log)} (all of it: {log})"
        shown = shlex.join(["python", f"tools/{job.tool}", *command[2:]])
        write_json(note, {"command": shown, "seconds": round(time.perf_counter() - began, 1)})
        return ""

    def _stop(self) -> None:
        """End the processes that run: they go on from their checkpoints another time."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _note(self, job: Job) -> Path:
        return self.out / "jobs" / f"{job.name}.json"


def _pending(job: Job, waiting: Mapping[str, Any], doing: Iterable[Job]) -> bool:
    """Whether something it needs is yet to be done."""
    under_way = {other.name for other in doing}
    return any(need in waiting or need in under_way for need in job.needs)


def _last_line(log: Path) -> str:
    """The last line that a tool said, which is its error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:LONGEST_REASON] if lines else "it said nothing"
