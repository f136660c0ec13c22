"""From options to results: what is asked for, what of it is missing, making it, writing it down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from dpvla.files import check_folder, one_writer
from dpvla.parallel import available_cores
from dpvla.registry import import_plugin
from navsim_bridge.comparison.cells import Results
from navsim_bridge.comparison.config import ComparisonConfig
from navsim_bridge.comparison.figures import Figure5, ScalingFigure
from navsim_bridge.comparison.grid import Grid
from navsim_bridge.comparison.jobs import Jobs
from navsim_bridge.comparison.page import note_made, write_page
from navsim_bridge.comparison.rows import Rows
from navsim_bridge.comparison.selection import NAME as SELECTION
from navsim_bridge.comparison.selection import Selection
from navsim_bridge.comparison.tables import Table, all_rows, cycles_and_anchor, look_at_test_split
from navsim_bridge.data.training_data import own_metric_cache
from navsim_bridge.files import roots
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.splits.scene_filter import load_split


class _Result(Protocol):
    def write(self, results: Results, out: Path) -> str: ...


def reproduce(config: ComparisonConfig, tools: Path, command: str) -> None:
    """Say what is missing, make it unless it is a dry run, write and print the result.

    Args:
        tools: folder of the tools that are called.
        command: what was asked for, to stand beside the result.

    Raises:
        ConfigError: of options and files, before anything is spent; of runs that do not belong together.
        SystemExit: some runs failed; what is finished is written.
    """
    out = Path(config.out)
    check_folder(out)
    if config.report is not None:
        print("\n".join(f"written: {path}" for path in write_page(out, Path(config.report))))
        return
    for module in config.plugin:
        import_plugin(module)
    rules = Rows(config.rows, config.protocol, out)
    data_root, maps_root = roots.data_root(config.data_root), roots.maps_root(config.maps_root)
    protocol = rules.protocol
    for split in dict.fromkeys((protocol.train, protocol.validation, protocol.test, protocol.adapt)):
        if split is not None:
            load_split(split, data_root)  # one that is not there is told now
    jobs = Jobs(config, rules, data_root, maps_root)
    name, asked = _asked(config, jobs, rules)
    if config.final and not config.dry_run and isinstance(asked, Table):
        look_at_test_split(asked, out)

    def cache_of(split: str, metric: str) -> Path:
        scene_rules = make_metric(metric).scene_rules
        assert scene_rules is not None
        return own_metric_cache(load_split(split, data_root), data_root, maps_root, workers, rules=scene_rules).path

    workers = config.workers or available_cores()
    grid = Grid(out, tools, workers, cache_of)
    wanted = list(jobs.asked.values())
    missing = grid.missing(wanted)
    needed = grid.estimate(missing, wanted, protocol.minutes)
    for kind in dict.fromkeys(job.kind for job in missing):
        of_kind = [job for job in missing if job.kind == kind]
        minutes = sum(needed[job.name] for job in of_kind) / 60
        print(f"missing: {len(of_kind)} of {sum(job.kind == kind for job in wanted)} {kind}, {minutes:.0f} CPU minutes")
    total = sum(needed.values())
    print(
        f"{len(missing)} of {len(wanted)} runs and evaluations missing; about {total / 60:.0f} CPU minutes, "
        f"{total / 3600 / workers:.1f} h on {workers} cores\n",
        flush=True,
    )
    results = Results(grid, data_root, rules.comparison.bootstrap)
    failed: dict[str, str] = {}
    if config.dry_run:
        for job in missing:
            print(f"  {job.name}: {needed[job.name] / 60:.1f} min")
        return
    with one_writer(out):
        try:
            failed = grid.run(missing)
        finally:  # an interrupted grid leaves what it has, too
            text = asked.write(results, out)
            note_made(out, name, command)
    print(f"\n{text}")
    for job_name, why in failed.items():
        print(f"failed: {job_name}: {why}", file=sys.stderr)
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(missing)} failed; the same command tries them again")


def _asked(config: ComparisonConfig, jobs: Jobs, rules: Rows) -> tuple[str, _Result]:
    """The result that the options ask for, and the name of its files; ``jobs`` knows afterwards what it needs."""
    if config.figure == "5":
        return "figure_5", Figure5(config, jobs, rules)
    if config.figure == "scaling":
        return "figure_scaling", ScalingFigure(config, jobs, rules)
    if config.study == "selection":
        return SELECTION, Selection(config, jobs, rules)
    table = all_rows(config, jobs, rules) if config.table else cycles_and_anchor(config, jobs, rules)
    return table.name, table
