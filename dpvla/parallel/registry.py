"""The executors by name; a plug-in adds its own."""

from __future__ import annotations

from typing import Annotated

from dpvla.config import OneOf
from dpvla.parallel.executor import Executor, ExecutorConfig
from dpvla.registry import Registry, look_up

EXECUTORS = Registry(
    Executor,
    processes="dpvla.parallel.processes:Processes",
    ray="dpvla.parallel.ray_cluster:RayCluster",
)

AnyExecutor = Annotated[ExecutorConfig, OneOf(EXECUTORS, "executor")]
"""Type of a config field that chooses an executor by its ``name``."""


def make_executor(config: ExecutorConfig, workers: int = 0) -> Executor:
    """The executor of a config with at most so many workers, see ``Executor``.

    Raises RegistryError for an unknown one, ImportError for one that is not installed.
    """
    made: Executor = look_up(EXECUTORS, config.name, "executor")(config, workers)
    return made
