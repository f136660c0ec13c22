"""The fast part of the campaign: hundreds of mutations of all groups; `benchmarks/fault_campaign.py` has them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults import campaign
from tests.faults.case import Outcome
from tests.faults.server import Server

pytestmark = pytest.mark.timeout(2400)  # all of them are run for the first test; a hang of one ends sooner
COUNT, SEED = 305, 14


@pytest.fixture(scope="module")
def outcomes(folder: Path, servers: list[Server]) -> Mapping[str, list[Outcome]]:
    """Of cases that are chosen once and for all, by group."""
    cases = campaign.chosen(campaign.all_cases(folder / "sample"), COUNT, SEED)
    found: dict[str, list[Outcome]] = {name: [] for name in campaign.GROUPS}
    for outcome in campaign.run(cases, folder, servers):
        found[outcome.title.partition("/")[0]].append(outcome)
    return found


@pytest.mark.parametrize("group", campaign.GROUPS)
def test_no_broken_input_is_believed_hangs_crashes_or_ends_in_a_traceback(
    outcomes: Mapping[str, list[Outcome]], group: str
) -> None:
    worst = [o for o in outcomes[group] if o.kind not in ("clear", "accepted", "unclear")]
    assert outcomes[group] and not worst, "\n".join(
        f"{o.kind} {o.title}: {o.why}; {o.said}; {o.command}" for o in worst
    )


def test_nearly_every_error_names_file_or_key(outcomes: Mapping[str, list[Outcome]]) -> None:
    found = [outcome for of_group in outcomes.values() for outcome in of_group]
    unclear = [o for o in found if o.kind == "unclear"]
    assert len(found) >= 300 and len(unclear) <= 0.02 * len(found), "\n".join(
        f"{o.title}: {o.why}; {o.said}" for o in unclear
    )
