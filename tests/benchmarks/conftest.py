"""Shared by the tests of the PDM score."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.navsim_bridge.conftest import official_world, two_stages, world
from tests.paths import ROOT

__all__ = ["official_world", "two_stages", "world"]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def load_benchmark() -> Iterator[Callable[..., Any]]:
    """Import a file of benchmarks/ by name, as if run from there."""
    loaded = []

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        loaded.append(name)
        specification.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]
