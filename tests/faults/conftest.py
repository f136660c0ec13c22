"""Servers and samples, once for all tests of faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpvla.parallel import available_cores
from tests.faults import sample
from tests.faults.server import Server, Servers


@pytest.fixture(scope="session")
def servers() -> Iterator[list[Server]]:
    with Servers(min(4, available_cores())) as servers:
        yield servers


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, servers: list[Server]) -> Path:
    """Holds the samples."""
    folder = tmp_path_factory.mktemp("faults")
    sample.make(servers[0], folder / "sample")
    return folder
