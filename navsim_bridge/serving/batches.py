"""Requests that wait at the same time are planned together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.serving.requests import AskedScene

Plans = NDArray[np.float32]


class StoppedError(RuntimeError):
    """No more plans are made."""


class _Waiting:
    """A scene, and who waits for its plan."""

    def __init__(self, scene: AskedScene) -> None:
        self.scene = scene
        self.answered = threading.Event()
        self.plan: Plans | None = None
        self.error: Exception | None = None

    def answer(self, found: Plans | Exception) -> None:
        if isinstance(found, Exception):
            self.error = found
        else:
            self.plan = found
        self.answered.set()


class Batches:
    """Threads ask for plans; the one that `run`s makes them, of all that wait, up to so many at once."""

    def __init__(self, plan: Callable[[Sequence[AskedScene]], Plans], most: int) -> None:
        """``plan``: (scene, 8, 3) of scenes. ``most``: scenes at once."""
        self._plan, self._most = plan, most
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        """Set when no more plans are made."""

    def ask(self, scene: AskedScene) -> Plans:
        """(8, 3) its plan, when its turn has come. Raises what planning raises, or StoppedError."""
        waiting = _Waiting(scene)
        self._waiting.put(waiting)
        while not waiting.answered.wait(1.0):
            if self.stopped.is_set():
                raise StoppedError("the policy server has stopped")
        if waiting.error is not None:
            raise waiting.error
        assert waiting.plan is not None
        return waiting.plan

    def run(self) -> None:
        """Plan until it is stopped."""
        try:
            while (first := self._waiting.get()) is not None:
                group = [first]
                while len(group) < self._most and not self._waiting.empty():
                    another = self._waiting.get()
                    if another is None:
                        self.stop()  # once these are planned
                        break
                    group.append(another)
                self._answer(group)
        finally:
            self.stopped.set()

    def stop(self) -> None:
        """Plan no more than what waits already; may be called anywhere, in a signal's handler, too."""
        self._waiting.put(None)

    def _answer(self, group: Sequence[_Waiting]) -> None:
        try:
            plans = self._plan([waiting.scene for waiting in group])
        except Exception as error:
            if len(group) > 1:  # one of them may be to blame, or there are too many for the memory
                for waiting in group:
                    self._answer([waiting])
            else:
                group[0].answer(error)
            return
        for waiting, plan in zip(group, plans, strict=True):
            waiting.answer(plan)
