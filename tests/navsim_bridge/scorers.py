"""For folders whose tests shall hold for the score's tensor code and for its compiled kernels alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from navsim_bridge.pdm.compiled import choice


@pytest.fixture(params=["torch", "compiled"], autouse=True, scope="module")
def scorer(request: pytest.FixtureRequest) -> Iterator[choice.Scorer]:
    """Each module's tests run with both, where numba is there."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with choice.using(request.param):
        yield request.param
