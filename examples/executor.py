"""An executor to copy: threads of this process. What each part is for stands in dpvla/parallel/executor.py.

python tools/evaluate.py --plugin examples/executor.py --executor threads --workers 4 --agent human --split navtest \
    --out runs/human
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, ClassVar

from dpvla.config import Count
from dpvla.parallel import Executor, ExecutorConfig, available_cores
from dpvla.parallel.executor import Opened, Work
from dpvla.parallel.registry import EXECUTORS


@dataclass(frozen=True)
class ThreadsConfig(ExecutorConfig):
    """Options of the executor: --executor.per-core."""

    name: str = "threads"  # the name in the registry
    per_core: Count = 1  # threads for each core where --workers does not say how many


class Threads(Executor):
    """Threads: they start at once, but Python runs one of them at a time."""

    Config: ClassVar[type[ExecutorConfig]] = ThreadsConfig
    is_alone = False
    num_gpus = 0

    def worth(self, most: int) -> Threads:
        """This one: threads cost nothing."""
        return self

    def run(self, work: Work) -> Iterator[Any]:
        """The results; jobs that have not begun are dropped when one fails."""
        own, start = threading.local(), pickle.dumps((work.function, work.opener))

        def do(job: Sequence[Any]) -> Any:
            if not hasattr(own, "opened"):
                own.opened = Opened(*pickle.loads(start))  # workers share nothing
            return own.opened(job)

        with ThreadPoolExecutor(self.workers or self.config.per_core * available_cores()) as pool:
            running = [pool.submit(do, job) for job in work.jobs]
            try:
                for done in running if work.in_order else as_completed(running):
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)


EXECUTORS["threads"] = Threads
