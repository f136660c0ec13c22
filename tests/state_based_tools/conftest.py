"""Small recorded data for whole runs of the state-based tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpvla.state_based.data.ogbench_generation import OGBenchGeneration, generate


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recorded episodes of a point in a maze, two of them for training."""
    folder = tmp_path_factory.mktemp("ogbench")
    config = OGBenchGeneration(
        "pointmaze-medium-navigate", episodes=2, out=str(folder), steps=60, workers=1, quiet=True
    )
    generate(config)
    return folder
