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
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dpvla.parallel import available_cores
from tests.faults import campaign, sample
from tests.faults.case import Outcome
from tests.faults.server import Server, Servers


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="mutations, spread over the groups; 0: all there are")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutations and moments")
    parser.add_argument("--group", nargs="+", default=[], help=f"of {', '.join(campaign.GROUPS)}")
    parser.add_argument("--case", nargs="+", default=[], help="cases by name, such as log/fifo")
    parser.add_argument("--folder", type=Path, default=Path("runs/fault_campaign"), help="for samples and scratch")
    parser.add_argument("--report", type=Path, help="JSON of all that is not clear; default: FOLDER/report.json")
    parser.add_argument("--servers", type=int, default=available_cores(), help="cases at once")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the cases")
    options = parser.parse_args(argv)
    if unknown := set(options.group) - {*campaign.GROUPS}:
        parser.error(f"--group: unknown {', '.join(sorted(unknown))}; there are {', '.join(campaign.GROUPS)}")
    folder: Path = options.folder.absolute()
    with Servers(options.servers) as servers:
        _campaign(options, folder, servers)


def _campaign(options: argparse.Namespace, folder: Path, servers: Sequence[Server]) -> None:
    samples = sample.make(servers[0], folder / "sample")
    cases = campaign.all_cases(samples, options.group or [case.partition("/")[0] for case in options.case])
    if options.case:
        cases = [case for case in cases if case.title in options.case]
    elif options.count:
        cases = campaign.chosen(cases, options.count, options.seed)
    started, done = time.monotonic(), 0

    def said(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.kind not in ("clear", "accepted"):
            print(f"{outcome.kind:10}{outcome.title}: {outcome.why} | {outcome.said[:200]}", flush=True)
        elif done % 50 == 0:
            print(f"{done} of {len(cases)} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    outcomes = campaign.run(cases, folder, servers, said, options.keep)
    print(campaign.table(outcomes))
    report = options.report or folder / "report.json"
    bad = [asdict(outcome) for outcome in outcomes if outcome.kind not in ("clear", "accepted")]
    accepted = [asdict(outcome) for outcome in outcomes if outcome.kind == "accepted"]
    report.write_text(json.dumps({"counts": campaign.counts(outcomes), "bad": bad, "accepted": accepted}, indent=1))
    print(f"{len(outcomes)} cases in {time.monotonic() - started:.0f} s; {report}")
    counts = campaign.counts(outcomes)
    unclear = counts["unclear"] > 0.02 * len(outcomes)
    raise SystemExit(unclear or any(counts[kind] for kind in ("silent", "hang", "crash", "traceback")))


if __name__ == "__main__":
    main()
