"""Jobs for workers, which import them by this name; loading them loads no torch."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fail_at_two(number: int) -> int:
    """Gives ``number``, but raises for 2."""
    if number == 2:
        raise ValueError("scene abc of log x is odd")
    return number


class UnlikelyError(ValueError):
    """What pickle cannot make again."""

    def __init__(self, scene: str, log: str) -> None:
        super().__init__(f"scene {scene} of log {log} is unlikely")


def fail_unlikely(number: int) -> int:
    """Raises an error that does not survive the way to another process."""
    raise UnlikelyError("abc", "x")


def end_the_worker(number: int) -> int:
    """Ends the process as a crash does."""
    os._exit(1)


def opened() -> str:
    """What a worker opens: its name."""
    return f"worker {os.getpid()}"


def large(worker: str, number: int) -> tuple[int, NDArray[np.int64], str, str]:
    """Takes a while; 1.6 MB, the worker and the node."""
    import ray

    time.sleep(0.3)
    return number, np.full(200_000, number), worker, ray.get_runtime_context().get_node_id()


def many_tensors(number: int) -> list[Any]:
    """201 tensors, the first of which holds ``number``."""
    import torch

    return [torch.full((2,), number), *(torch.zeros(1) for _ in range(200))]


def worker_and_gpu(worker: str, number: int) -> tuple[str, str]:
    """Who it is and which GPU it has; takes a while, so that every worker has some."""
    assert worker == opened()
    time.sleep(0.5)
    return worker, os.environ["CUDA_VISIBLE_DEVICES"]


def refuse() -> str:
    """Opens nothing."""
    raise ValueError("no such checkpoint")
