"""Logs to scene files, over processes; what is already there is kept, so that a killed run goes on where it stopped.

A log's scenes are built `SCENES_PER_PART` at a time. Finished parts of a long log lie beside its file until that is
whole: a kill costs each process one part at most.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from dpvla.parallel import Executor, Workers, executor_of, run_jobs
from navsim_bridge.metric_cache.container import CacheError
from navsim_bridge.metric_cache.store import SUFFIX, SceneFile, write_scenes
from navsim_bridge.pdm.metric_scene import MetricScene, odd_causes

SCENES_PER_PROCESS = 250
"""A process takes seconds to start and builds some 50 scenes a second: fewer are not worth another one."""
SCENES_PER_PART = 64
SECONDS_BETWEEN_LINES = 30.0
"""How often progress is printed where it does not go to a terminal."""


class Job(Protocol):
    """The scenes of one log, to be written to ``out``."""

    @property
    def out(self) -> Path: ...

    @property
    def num_scenes(self) -> int: ...

    def run(self) -> dict[str, Any]:
        """Write the file unless an unchanged one is there; returns its entry of the index, see `log_entry`."""


AnyJob = TypeVar("AnyJob", bound=Job)


def executor_for(jobs: Sequence[Job], workers: Workers) -> Executor:
    """Processes worth starting, of at most ``workers``; another executor as it is."""
    num_scenes = sum(job.num_scenes for job in jobs)
    return executor_of(workers).worth(min(len(jobs), num_scenes // SCENES_PER_PROCESS))


def run_log_jobs(
    jobs: Sequence[AnyJob],
    workers: Workers,
    title: str,
    progress: bool,
    preload: Sequence[str] = (),
    opener: Callable[[], None] | None = None,
    reads: Sequence[Path] = (),
) -> dict[str, dict[str, Any]]:
    """Index entries of all jobs by log name, sorted; ``preload`` and ``reads`` as for `run_jobs`.

    ``opener`` is called once in each worker. All jobs write to one folder.

    Logs whose file is there come first: they take no time, so that the progress bar foretells the end from then on.
    """
    done: dict[str, dict[str, Any]] = {}
    jobs = sorted(jobs, key=lambda job: not job.out.exists())
    total = sum(job.num_scenes for job in jobs)
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    with tqdm(total=total, desc=title, unit="scene", disable=not progress, mininterval=interval, delay=1) as bar:
        writes = next((job.out.parent for job in jobs), None)
        numbered = list(enumerate(jobs))
        for number, entry in run_jobs(
            _run_one,
            numbered,
            executor_for(jobs, workers),
            opener=opener or _nothing,
            preload=preload,
            reads=reads,
            writes=writes,
        ):
            job = jobs[number]
            done[job.out.name.removesuffix(SUFFIX)] = entry
            bar.update(job.num_scenes)
    return {name: done[name] for name in sorted(done)}


def _nothing() -> None:
    pass


def _run_one(_: None, number: int, job: Job) -> tuple[int, dict[str, Any]]:
    return number, job.run()


def log_entry(
    out: Path, source: str, count: int, scenes_of: Callable[[], list[MetricScene]], traffic: bool = False
) -> dict[str, Any]:
    """The index entry of one log, whose scenes are written to ``out`` unless a whole file of ``count`` scenes from the
    same ``source`` is there.

    ``traffic``: one that lacks what vehicles need to react is of an earlier version, and is written again. Nothing else
    of it is another: the source stays the same, so that a run that learns from it goes on.
    """
    file = _whole_file(out, source, count, traffic)
    if file is None:
        write_scenes(out, scenes_of(), source)
        file = SceneFile(out)
        for part in out.parent.glob(f".{out.name}.part-*"):
            part.unlink()
    return entry_of(file)


def entry_of(file: SceneFile) -> dict[str, Any]:
    """What the index says of a scene file."""
    return {
        "file": file.path.name,
        "crc32": file.crc,
        "source": file.source,
        "tokens": file.tokens,
        "centerlines": dict(Counter(p.get("centerline", "unknown") for p in file.provenances)),
        "odd": dict(Counter(cause for p in file.provenances for cause in odd_causes(p))),
    }


def in_parts(
    out: Path, source: str, count: int, build: Callable[[slice], list[MetricScene]], traffic: bool = False
) -> list[MetricScene]:
    """The ``count`` scenes of a log, part by part; parts that an earlier run left beside ``out`` are read back.

    ``build`` gets the places of a part's scenes; ``traffic`` as for `log_entry`.
    """
    if count <= SCENES_PER_PART:
        return build(slice(0, count))
    scenes: list[MetricScene] = []
    for first in range(0, count, SCENES_PER_PART):
        size = min(SCENES_PER_PART, count - first)
        path = out.with_name(f".{out.name}.part-{first}")
        file = _whole_file(path, source, size, traffic)
        if file is None:
            write_scenes(path, build(slice(first, first + size)), source)
            file = SceneFile(path)
        scenes += [file.scene(row) for row in range(size)]
    return scenes


def _whole_file(path: Path, source: str, count: int, traffic: bool) -> SceneFile | None:
    try:
        file = SceneFile(path)
    except CacheError:
        return None
    if traffic and not file.has_traffic:
        return None
    return file if file.source == source and len(file.tokens) == count else None
