"""What mutated inputs and kills do to the tools: classes of outcomes by group.

python benchmarks/fault_campaign.py                                # 1,000 mutations and 200 kills, some 20 minutes
python benchmarks/fault_campaign.py --count 0 --kills 0            # every mutation there is
python benchmarks/fault_campaign.py --group log map --kills 0      # of some groups
python benchmarks/fault_campaign.py --case log/fifo --keep         # one, whose folder stays

Classes: clear (one line names file or key), accepted (nothing is wrong: the result is that of the pristine sample bit
for bit, or the format cannot tell), unclear (an error without them), traceback, silent (status 0 and another result),
hang, crash (a signal). Goal: no silent, hang, crash or traceback, at most 2 % unclear. Ends with 1 where it is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.parallel import available_cores
from tests.faults import campaign, crash_points, sample
from tests.faults.case import Outcome
from tests.faults.server import Server, Servers


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="mutations, spread over the groups; 0: all there are")
    parser.add_argument("--kills", type=int, default=200, help="kill points, spread over the tools")
    parser.add_argument("--every-write", action="store_true", help="SIGKILL at every write of every tool instead")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutations and moments")
    parser.add_argument("--group", nargs="+", default=[], help=f"of {', '.join(campaign.GROUPS)}")
    parser.add_argument("--work", nargs="+", default=[], help=f"to be killed: of {', '.join(crash_points.WORKS)}")
    parser.add_argument("--case", nargs="+", default=[], help="mutations by name, such as log/fifo; no kills then")
    parser.add_argument("--folder", type=Path, default=Path("runs/fault_campaign"), help="for samples and scratch")
    parser.add_argument("--report", type=Path, help="JSON of all that is not clear; default: FOLDER/report.json")
    parser.add_argument("--servers", type=int, default=available_cores(), help="cases at once")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the cases")
    options = parser.parse_args(argv)
    for given, there, name in ((options.group, campaign.GROUPS, "group"), (options.work, crash_points.WORKS, "work")):
        if unknown := set(given) - {*there}:
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    folder: Path = options.folder.absolute()
    with Servers(options.servers) as servers:
        outcomes = _outcomes(options, folder, servers)
    print(campaign.table(outcomes))
    report = options.report or folder / "report.json"
    named = [asdict(outcome) for outcome in outcomes if outcome.kind != "clear"]
    write_json(report, {"counts": campaign.counts(outcomes), "not clear": named})
    print(f"every case that is not clear: {report}")
    raise SystemExit(not campaign.reached(outcomes))


def _outcomes(options: argparse.Namespace, folder: Path, servers: Sequence[Server]) -> list[Outcome]:
    samples = sample.make(servers[0], folder / "sample")
    cases = campaign.all_cases(samples, options.group or [case.partition("/")[0] for case in options.case])
    if options.case:
        cases = [case for case in cases if case.title in options.case]
        if absent := {*options.case} - {case.title for case in cases}:
            raise SystemExit(f"there is no case {sorted(absent)[0]}")
    elif options.count:
        cases = campaign.chosen(cases, options.count, options.seed)
    progress = _Progress()
    outcomes = campaign.run(cases, folder, servers, progress.said, options.keep) if not options.work else []
    if options.case or (options.group and not options.work) or not (options.kills or options.every_write):
        return outcomes
    names = options.work or [*crash_points.WORKS]
    every = options.kills if not options.every_write else None
    return outcomes + crash_points.run(names, folder, servers, every, options.seed, progress.said, options.keep)


class _Progress:
    """Says what is not clear at once, and how far it is."""

    def __init__(self) -> None:
        self._started, self._done = time.monotonic(), 0

    def said(self, outcome: Outcome) -> None:
        self._done += 1
        if outcome.kind not in ("clear", "accepted"):
            words = " ".join(outcome.said.split())
            print(f"{outcome.kind:10}{outcome.title}: {outcome.why} | {words:.300}", flush=True)
        elif self._done % 50 == 0:
            print(f"{self._done} after {time.monotonic() - self._started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
