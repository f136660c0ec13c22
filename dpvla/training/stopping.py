"""Stopping a run from outside without losing anything."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from dpvla.training.config import LoopConfig


class Stopper:
    """Turns SIGINT and SIGTERM into 'save after this step, then stop', agreed between processes at logged steps.

    A second signal stops at once; one that follows within a second is taken for the same (`timeout` signals twice).
    Time that is up does the same as a signal.
    """

    def __init__(self, accelerator: Accelerator, config: LoopConfig, until: float = math.inf) -> None:
        """``until``: when time is up, by ``time.monotonic()``."""
        self._accelerator, self._config, self._until = accelerator, config, until
        self._signalled, self._first = False, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():  # elsewhere the host program handles signals
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt
        if not self._signalled:
            self._signalled, self._first = True, time.monotonic()

    def asked(self, step: int) -> bool:
        """Whether to stop after ``step``."""
        if step == self._config.stop_after_step:
            return True
        asked = self._signalled or time.monotonic() >= self._until
        if self._accelerator.num_processes == 1:
            return asked
        if step % self._config.log_every:
            return False
        flag = torch.tensor([float(asked)], device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum").item() > 0)
