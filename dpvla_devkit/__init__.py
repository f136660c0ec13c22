"""dpvla in the official devkit's own environment: ``agent._target_=dpvla_devkit.Agent``, see docs/devkit.md.

Python 3.9, numpy and the standard library. The devkit itself is imported with ``Agent``, so that the process that
serves the policy, in another environment, can use the rest.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Agent"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "Agent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpvla_devkit.agent import Agent

    return Agent
