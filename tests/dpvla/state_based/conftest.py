"""Small recorded data for whole runs of the state-based tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, generate
from dpvla.state_based.running import training_run
from dpvla.state_based.running.environment_workers import EnvironmentPool
from tests.dpvla.state_based.countdown import Countdown


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recorded episodes of a point in a maze, two of them for training."""
    folder = tmp_path_factory.mktemp("ogbench")
    config = OGBenchGeneration(
        "pointmaze-medium-navigate", episodes=2, out=str(folder), steps=60, workers=1, quiet=True
    )
    generate(config)
    return folder


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate and collect in an environment of the maze's sizes whose episodes last a few steps."""

    class ShortEpisodes(EnvironmentPool):
        def __init__(self, name: str, count: int, workers: int) -> None:
            super().__init__(name, count, workers, make=Countdown)

    monkeypatch.setattr(training_run, "EnvironmentPool", ShortEpisodes)
