"""The environment of a task's name; importing this loads no simulator."""

from __future__ import annotations

from dpvla.state_based.environments.control_suite import ControlEnvironment
from dpvla.state_based.environments.environment import Environment
from dpvla.state_based.environments.ogbench import OGBenchEnvironment


def make_environment(name: str, seed: int = 0) -> Environment:
    """The environment of an OGBench single-task name (ends in -v0) or an ExORL task name such as walker-run.

    Raises:
        ValueError: no such task.
        ModuleNotFoundError: the simulators are not installed.
    """
    if name.endswith("-v0"):
        return OGBenchEnvironment(name, seed)
    return ControlEnvironment(name, seed)
