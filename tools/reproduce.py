"""Run, or go on with, the runs behind a table or figure of the paper, and print ours beside the paper's numbers.

State-based track:

python tools/reproduce.py --table 7 --only cube-single-play dipole fql --dry-run   # what is missing, how long it takes
python tools/reproduce.py --table 7 --only cube-single-play dipole fql --seeds 0 1 2
python tools/reproduce.py --table small --protocol configs/state_based/protocol_cpu.yaml --seeds 0 1 2 \
    --out runs/small --ogbench-data data/ogbench --exorl-data data/exorl
python tools/reproduce.py --table 2 --only cube-single-play dipole --seeds 0..7 --budget-minutes 15 \
    --protocol configs/state_based/protocol_gpu.yaml      # on a GPU, a piece each time
python tools/reproduce.py --figure beta --only cube-single-play --seeds 0..2 \
    --protocol configs/state_based/protocol_cpu_full_batch.yaml   # an ablation; --dry-run says what it costs

Leaves OUT/table_<N>.md, OUT/times_<N>.md, and the scores by step as OUT/curves_<N>.csv and .png. Numbers of
scaled-down runs and of runs on locally generated data are marked. A figure leaves OUT/figure_<NAME>.md, .csv and .png.

Driving (--table 4, --figure 5 and --figure scaling) has options of its own (`--table 4 --help`); everything is chosen
on the validation split:

python tools/reproduce.py --study selection            # hyperparameters, to OUT/selected.yaml
python tools/reproduce.py --table 4 --dry-run          # what is missing, how long it takes
python tools/reproduce.py --table 4                    # all rows on the validation split
python tools/reproduce.py --study cycles               # plain Eq. 9 and the anchor over one, two and five cycles
python tools/reproduce.py --figure 5                   # beta and omega, stability of losses; --figure scaling
python tools/reproduce.py --table 4 --final            # on the test split, once
python tools/reproduce.py --report docs/results/driving_rl.md
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.files import check_folder, one_writer, write_text
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.running.paper_tables import read_table
from navsim_bridge.comparison.config import ComparisonConfig

if TYPE_CHECKING:
    from dpvla.state_based.paper.comparison import Panels
    from dpvla.state_based.paper.reproduction import MissingRun


def write_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows as CSV and as a picture, beside ``path``; nothing where there are none."""
    from dpvla.state_based.paper.comparison import curve_panels

    write_rows(rows, curve_panels(rows), path)


def write_rows(rows: Sequence[Mapping[str, Any]], panels: Panels, path: Path, across: str = "updates") -> None:
    """The same with panels of one's own."""
    from dpvla.report.learning_curves import draw_curves

    if not rows:
        return
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    draw_curves(panels, path.with_suffix(".png"), across)


DRIVING = ("--study", "--report")
"""Options of the driving track alone; ``--table 4`` and two figures are of it, too."""

OF_DRIVING = {"--table": ("4",), "--figure": ("5", "scaling")}


def is_driving(words: Sequence[str]) -> bool:
    """Whether a command line asks for the driving track."""
    given = [*pairwise(words), *((option, value) for option, _, value in (word.partition("=") for word in words))]
    asked = any(value in OF_DRIVING.get(option, ()) for option, value in given)
    return asked or any(word.partition("=")[0] in DRIVING for word in words)


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
    """A table or a figure of the state-based track."""
    from dpvla.state_based.paper.budget import end_of

    check_folder(config.out)
    made = _table(config) if config.figure is None else _figure(config)
    seconds, missing = 0.0, made.missing()
    for run, needed in made.estimate():
        begun = f", begun: {run.begun_at} of {run.config.all_steps} updates" if run.begun_at else ""
        speed = f"{run.updates / needed:.3g} updates/s" if needed else "evaluation only"
        print(f"missing: {run.config.out}{begun}; {needed / 3600:.1f} h at {speed}", flush=True)
        seconds += needed
    calls = f", {math.ceil(seconds / 60 / config.budget_minutes)} calls or more" if config.budget_minutes else ""
    hours = f"{seconds / 3600:.1f} h{calls}"
    print(f"{len(missing)} runs missing; their updates take about {hours}, evaluations not counted\n")
    try:
        failed = {} if config.dry_run else made.run(end_of(config.budget_minutes))
    finally:  # an interrupted grid leaves what it has, too
        if not config.dry_run:
            with one_writer(config.out, wait=True) as folder:
                made.write(folder)
        print(made.text())
    for out, why in failed.items():
        print(f"failed: {out}: {why}", file=sys.stderr)
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(missing)} runs failed; the same command tries them again")


class _Made(NamedTuple):
    """What a table and a figure have in common."""

    missing: Callable[[], list[MissingRun]]
    estimate: Callable[[], Iterator[tuple[MissingRun, float]]]
    run: Callable[[float], dict[str, str]]
    write: Callable[[Path], None]
    text: Callable[[], str]


def _table(config: ReproduceConfig) -> _Made:
    from dpvla.state_based.paper.comparison import compare, curves, timings
    from dpvla.state_based.paper.reproduction import Grid

    assert config.table is not None
    table = read_table(config.table)
    if not table.online:
        refuse_given(config, ["online_steps"], "--table 3 and --figure online")
    grid = Grid(table, config)

    def write(folder: Path) -> None:
        write_text(folder / f"table_{config.table}.md", compare(grid))
        write_text(folder / f"times_{config.table}.md", timings(grid))
        write_curves(curves(grid), folder / f"curves_{config.table}")

    missing = list(grid.missing())
    return _Made(lambda: missing, lambda: grid.estimate(missing), grid.run, write, lambda: compare(grid))


def _figure(config: ReproduceConfig) -> _Made:
    from dpvla.state_based.paper.figure_file import read_figure
    from dpvla.state_based.paper.figures import FigureRuns

    assert config.figure is not None
    figure = read_figure(config.figure)
    if not figure.online:
        refuse_given(config, ["online_steps"], "--table 3 and --figure online")
    runs = FigureRuns(figure, config)

    def write(folder: Path) -> None:
        write_text(folder / f"figure_{figure.key}.md", runs.table())
        for output in runs.outputs():
            write_rows(output.rows, output.panels, folder / output.stem, output.across)

    return _Made(runs.missing, runs.estimate, runs.run, write, runs.table)


if __name__ == "__main__":
    main()
