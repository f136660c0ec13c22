"""Files that stay open while they are used: few enough for what a process may have open."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Key = TypeVar("Key", bound=Hashable)
Opened = TypeVar("Opened")

_PART, _MOST, _UNKNOWN = 4, 4096, 256


def most_open() -> int:
    """How many files one reader may keep open: a quarter of the process's descriptors, since there are several."""
    if resource is None:
        return _UNKNOWN
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if limit == resource.RLIM_INFINITY else max(1, min(_MOST, limit // _PART))


class KeptOpen(Generic[Key, Opened]):
    """What was opened under the keys that were last asked for. Safe to use from several threads.

    A map of a file takes a descriptor until nothing looks at it any more: whoever asks keeps no part of it.
    """

    def __init__(self, size: Callable[[Opened], int] = lambda _: 0, most_bytes: int = 0) -> None:
        """``size``: bytes of memory that an opened one takes; at most ``most_bytes`` are kept, or one."""
        self._size, self._most_bytes = size, most_bytes
        self._most, self._bytes = most_open(), 0
        self._kept: OrderedDict[Key, Opened] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key, opened: Callable[[], Opened]) -> Opened:
        """What is kept under ``key``, or else what ``opened()`` gives."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            found = self._kept[key] = opened()
            self._bytes += self._size(found)
            while len(self._kept) > 1 and (len(self._kept) > self._most or self._bytes > self._most_bytes):
                self._bytes -= self._size(self._kept.popitem(last=False)[1])
            return found
