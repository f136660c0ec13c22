"""Run, or go on with, the runs behind a table or figure of the paper, and print ours beside the paper's numbers.

State-based track:

python tools/reproduce.py --table 7 --only cube-single-play dipole fql --dry-run   # what is missing, how long it takes
python tools/reproduce.py --table 7 --only cube-single-play dipole fql --seeds 0 1 2
python tools/reproduce.py --table small --protocol configs/state_based/protocol_cpu.yaml --seeds 0 1 2 \
    --out runs/small --ogbench-data data/ogbench --exorl-data data/exorl

Leaves OUT/table_<N>.md, OUT/times_<N>.md, and the scores by step as OUT/curves_<N>.csv and .png. Numbers of
scaled-down runs and of runs on locally generated data are marked.

Driving, which has options of its own (`--table 4 --help`); everything is chosen on the validation split:

python tools/reproduce.py --study selection            # hyperparameters, to OUT/selected.yaml
python tools/reproduce.py --table 4 --dry-run          # what is missing, how long it takes
python tools/reproduce.py --table 4                    # all rows on the validation split
python tools/reproduce.py --study cycles               # plain Eq. 9 and the anchor over one, two and five cycles
python tools/reproduce.py --figure 5                   # beta and omega, stability of losses; --figure scaling
python tools/reproduce.py --table 4 --final            # on the test split, once
python tools/reproduce.py --report docs/results/driving_rl.md
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.files import check_folder, one_writer, write_text
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.running.paper_tables import read_table
from navsim_bridge.comparison.config import ComparisonConfig


def write_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows as CSV and as a picture, beside ``path``; nothing where there are none."""
    from dpvla.report.learning_curves import draw_curves
    from dpvla.state_based.paper.comparison import curve_panels

    if not rows:
        return
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    draw_curves(curve_panels(rows), path.with_suffix(".png"))


DRIVING = ("--figure", "--study", "--report")
"""Options of the driving track; ``--table 4`` is of it, too."""


def is_driving(words: Sequence[str]) -> bool:
    """Whether a command line asks for the driving track."""
    after_table = [two for one, two in pairwise(words) if one == "--table"]
    return "4" in after_table or any(w == "--table=4" or w.partition("=")[0] in DRIVING for w in words)


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Say what is missing, run it unless it is a dry run, print the result."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not is_driving(words):
        return state_based(parse(ReproduceConfig, argv, __doc__))
    config = parse(ComparisonConfig, argv, __doc__)
    from navsim_bridge.comparison.reproduction import reproduce

    reproduce(config, Path(__file__).resolve().parent, shlex.join(["python", "tools/reproduce.py", *words]))


def state_based(config: ReproduceConfig) -> None:
    """A table of the state-based track."""
    from dpvla.state_based.paper.comparison import compare, curves, timings
    from dpvla.state_based.paper.reproduction import Grid

    check_folder(config.out)
    table_of_paper = read_table(config.table)
    if not table_of_paper.online:
        refuse_given(config, ["online_steps"], "--table 3")
    grid = Grid(table_of_paper, config)
    seconds, missing = 0.0, list(grid.missing())
    for run, needed in grid.estimate(missing):
        begun = f", begun: {run.begun_at} of {run.config.all_steps} updates" if run.begun_at else ""
        speed = f"{run.updates / needed:.3g} updates/s" if needed else "evaluation only"
        print(f"missing: {run.config.out}{begun}; {needed / 3600:.1f} h at {speed}", flush=True)
        seconds += needed
    print(f"{len(missing)} runs missing; their updates take about {seconds / 3600:.1f} h, evaluations not counted\n")
    try:
        failed = {} if config.dry_run else grid.run()
    finally:  # an interrupted grid leaves what it has, too
        table = compare(grid)
        if not config.dry_run:
            with one_writer(config.out, wait=True) as folder:
                write_text(folder / f"table_{config.table}.md", table)
                write_text(folder / f"times_{config.table}.md", timings(grid))
                write_curves(curves(grid), folder / f"curves_{config.table}")
        print(table)
    for out, why in failed.items():
        print(f"failed: {out}: {why}", file=sys.stderr)
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(missing)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
