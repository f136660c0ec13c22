"""A reproduction that has to end in time, e.g. where a GPU is lent for minutes; and data made on the spot."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from dpvla.state_based.data.ogbench.episodes import SOURCES
from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, data_path, generate

RESERVE = 20.0
"""Seconds of a budget that are kept for the last checkpoint, the tables and the end of the process."""

IS_UP = "the budget is spent; the same command goes on from here"


def end_of(minutes: float) -> float:
    """When work must end, by ``time.monotonic()``, for a budget that runs since this process began; inf for 0."""
    if not minutes:
        return math.inf
    return time.monotonic() + 60 * minutes - (time.time() - psutil.Process().create_time()) - RESERVE


def require_time(until: float) -> None:
    """Raise KeyboardInterrupt where there is none left."""
    if time.monotonic() >= until:
        raise KeyboardInterrupt(IS_UP)


def make_missing_data(
    domains: Iterable[str], folder: str, episodes: int, workers: int, until: float = math.inf
) -> None:
    """Make OGBench data for those of ``domains`` that have none in ``folder`` and can be made here.

    Raises KeyboardInterrupt when time is up; what is made by then stays, and the next call goes on with it.
    """
    for domain in domains:
        if domain in SOURCES and not data_path(Path(folder), f"{domain}-v0", "train").exists():
            with _interrupted(until):
                generate(OGBenchGeneration(domain, episodes=episodes, out=folder, workers=max(1, workers)))


@contextmanager
def _interrupted(until: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in the work inside when time is up."""
    require_time(until)
    if until == math.inf or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(IS_UP)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(until - time.monotonic(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
