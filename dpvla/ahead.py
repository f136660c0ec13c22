"""Work done by a thread before its results are asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def ahead(items: Iterable[Result], depth: int) -> Iterator[Result]:
    """``items``, made by a thread up to ``depth`` before they are asked for; errors come out where the item would.

    The thread begins when the first item is asked for, and has ended when the iterator has: behind its last item, or
    when it is closed.
    """
    made: queue.Queue[tuple[Result | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Result | None, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
