"""Where the time of a cycle goes."""

from __future__ import annotations

import time
from collections import defaultdict


class TimeSplit:
    """Seconds by what they were spent on, from one lap to the next.

    Laps are taken where the device has just been waited for anyway, so that none is added.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        """What passed since the last lap was spent on ``what``."""
        now = time.perf_counter()
        self.seconds[what] += now - self._last
        self._last = now

    def __str__(self) -> str:
        """'encode 12 %, sample 30 %, score 3 %, train 55 %'."""
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{what} {spent / total:.0%}" for what, spent in self.seconds.items())
