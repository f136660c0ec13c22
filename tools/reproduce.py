"""Run, or go on with, the runs behind a table of the paper, and print ours beside the paper's numbers.

python tools/reproduce.py --table 7 --only cube-single-play dipole fql --dry-run   # what is missing, how long it takes
python tools/reproduce.py --table 7 --only cube-single-play dipole fql --seeds 0 1 2
python tools/reproduce.py --table small --protocol configs/state_based/protocol_cpu.yaml --seeds 0 1 2 \
    --out runs/small --ogbench-data data/ogbench --exorl-data data/exorl

Leaves OUT/table_<N>.md, OUT/times_<N>.md, and the scores by step as OUT/curves_<N>.csv and .png. Numbers of
scaled-down runs and of runs on locally generated data are marked.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpvla.cli import command, refuse_given
from dpvla.files import check_folder, one_writer, write_text
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.running.paper_tables import read_table


def write_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows as CSV and as a picture, beside ``path``; nothing where there are none."""
    from dpvla.report.learning_curves import draw_curves
    from dpvla.state_based.paper.comparison import curve_panels

    if not rows:
        return
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    draw_curves(curve_panels(rows), path.with_suffix(".png"))


@command(ReproduceConfig, __doc__)
def main(config: ReproduceConfig) -> None:
    """Say what is missing, run it unless it is a dry run, print the table."""
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
