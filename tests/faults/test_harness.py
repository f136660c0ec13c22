"""The harness tells apart what it is there to tell apart, of a toy tool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import campaign, crash_points
from tests.faults.case import Bench, Call, Case, Class, Outcome
from tests.faults.server import Server

TOY = "tests.faults.toy_tool"


@pytest.fixture
def bench(tmp_path: Path, servers: list[Server]) -> Bench:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample/input").write_text("5")
    return Bench(tmp_path / "sample", tmp_path / "work", servers[0])


def case(how: str, mutate: Callable[[Path], object] = lambda place: (place / "input").write_text("6")) -> Case:
    return Case("toy", how, Call(TOY, (how,), ("input",), ("out",), cpu_s=2.0), mutate, ("input",))


@pytest.mark.parametrize(
    ("how", "kind"),
    [("copies", "silent"), ("spins", "hang"), ("dies", "crash"), ("raises", "traceback"), ("eats", "traceback"),
     ("names", "clear"), ("mumbles", "unclear"), ("mutters", "unclear"), ("repeats", "unclear"), ("rambles", "unclear"),
     ("leaves", "unclear"), ("strays", "silent")],
)  # fmt: skip
def test_each_end_has_its_class(bench: Bench, how: str, kind: Class) -> None:
    outcome = bench.run(case(how))
    assert outcome.kind == kind, outcome


def test_what_waits_for_ever_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.run(case("waits")).kind == "hang"


def test_a_change_that_nobody_can_see_is_accepted(bench: Bench) -> None:
    assert bench.run(case("copies", lambda place: None)).kind == "accepted"


def test_a_result_that_does_not_depend_on_the_input_is_no_proof(bench: Bench) -> None:
    """The same whatever was broken: the class says that nothing wrong came out, not that it was noticed."""
    outcome = bench.run(case("ignores"))
    assert outcome.kind == "accepted" and "bit for bit" in outcome.why


def test_the_folder_of_a_case_goes_and_the_samples_stay(bench: Bench) -> None:
    bench.run(case("copies"))
    assert (bench.samples / "input").read_text() == "5" and not any(bench.scratch.iterdir())


def test_the_goal_is_missed_by_one_that_is_believed_or_by_many_unclear() -> None:
    def outcomes(**kinds: int) -> list[Outcome]:
        return [Outcome("toy/x", kind, "", "", "") for kind, count in kinds.items() for _ in range(count)]  # type: ignore[arg-type]

    assert campaign.reached(outcomes(clear=98, unclear=2))
    assert not campaign.reached(outcomes(clear=97, unclear=3))
    assert not campaign.reached(outcomes(clear=999, silent=1))


def test_every_case_has_a_name_of_its_own_and_a_choice_has_every_group(folder: Path) -> None:
    cases = campaign.all_cases(folder / "sample")
    assert len(cases) >= 1000 and {case.group for case in cases} == {*campaign.GROUPS}
    assert {case.group for case in campaign.chosen(cases, 50, 0)} == {*campaign.GROUPS}
    assert [c.title for c in campaign.chosen(cases, 50, 3)] == [c.title for c in campaign.chosen(cases, 50, 3)]


@pytest.mark.parametrize(("careful", "kind"), [("careful", "clear"), ("careless", "silent"), ("stuck", "traceback")])
def test_a_tool_that_a_kill_harms_is_found_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, careful: str, kind: Class
) -> None:
    call = Call("tests.faults.toy_writer", (careful,), ("input",), ("out",))
    monkeypatch.setitem(crash_points.WORKS, "toy", crash_points.Work(call, ("out",)))
    breaker = crash_points.Breaker("toy")
    breaker.unbroken(bench)
    calls = [line.partition(" ")[0] for line in breaker.calls]
    assert {"mkdir", "open", "fsync", "replace"} <= {*calls}
    outcomes = [
        breaker.broken(bench, [crash_points.Moment("KILL", call=number)]) for number in range(1, len(calls) + 1)
    ]
    assert (kind in {o.kind for o in outcomes}) if kind != "clear" else ({o.kind for o in outcomes} == {"clear"})
