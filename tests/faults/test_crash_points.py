"""Each tool is killed at a write of each kind, and called again; `benchmarks/fault_campaign.py` takes every write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import crash_points
from tests.faults.case import Outcome
from tests.faults.server import Server

pytestmark = pytest.mark.timeout(2400)  # all of them are run for the first test; a hang of one ends sooner


@pytest.fixture(scope="module")
def outcomes(folder: Path, servers: list[Server]) -> list[Outcome]:
    return crash_points.run([*crash_points.WORKS], folder, servers, 0, 0, lambda outcome: None)


@pytest.mark.parametrize("work", crash_points.WORKS)
def test_a_tool_that_was_killed_ends_as_if_it_had_not_been(outcomes: list[Outcome], work: str) -> None:
    found = [outcome for outcome in outcomes if outcome.title.startswith(f"kill {work}/")]
    other = [f"{o.kind} {o.title}: {o.why}; {o.said}" for o in found if o.kind != "clear"]
    assert len(found) >= 3 and not other, "\n".join(other)
