"""What is tested of the score holds for its tensor code and for its compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from navsim_bridge.pdm.compiled import choice


@pytest.fixture(params=["torch", "compiled"], autouse=True)
def scorer(request: pytest.FixtureRequest) -> Iterator[choice.Scorer]:
    """Each test runs with both."""
    with choice.using(request.param):
        yield request.param
