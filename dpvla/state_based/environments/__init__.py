"""Simulators of the state-based track behind one interface; importing this loads none of them."""

from __future__ import annotations

from dpvla.state_based.environments.environment import Environment, Step

__all__ = ["Environment", "Step", "make_environment"]


def make_environment(name: str, seed: int = 0) -> Environment:
    """The environment of an OGBench single-task name (ends in -v0) or an ExORL task name such as walker-run.

    Raises:
        ValueError: no such task.
        ModuleNotFoundError: the simulators are not installed.
    """
    # Imported here: a process that only wants one of the two should not load both.
    if name.endswith("-v0"):
        from dpvla.state_based.environments.ogbench_environment import OGBenchEnvironment

        return OGBenchEnvironment(name, seed)
    from dpvla.state_based.environments.control_suite import ControlEnvironment

    return ControlEnvironment(name, seed)
