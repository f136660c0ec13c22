"""Compare our metric scenes and scores with what the official devkit made of the same world.

    python benchmarks/world_parity.py --world DIR --out parity.json

DIR holds a small world in NAVSIM's formats (`data/navsim_logs`, `data/maps`, `split.yaml`, `split_v2.yaml`) and what
the devkit made of it: `official_metric_cache/` (v1.1), `human.csv` and `constant_velocity.csv` (`run_pdm_score` of
v1.1), `v2_human.csv` and `v2_constant_velocity.csv` (the one-stage script of v2.1.2 with recorded traffic). Parts that
are not there are named and left out.

Our side is what users run: the packed cache of `tools/cache_metrics.py`, read back and scored by the evaluation of
`tools/evaluate.py`. Every scene that differs is listed with what differs, by how much, and which part of the official
cache, put in the place of ours, gives the official score. Exits with 1 when a required share is not reached: all
scenes, for scores 99 %.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from navsim_bridge.agents import find_agent
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.run import evaluate
from navsim_bridge.golden.compare import PARTS, differences, with_part_of
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.metric_cache.official import OfficialCache
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, NAVSIM_V2
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes

TOLERANCE = 1e-6
"""Largest difference that counts as equal: meters, radians, parts of a score."""
AGENTS = ("human", "constant_velocity")
SCORES_EQUAL = 0.99
"""Share of scenes whose scores must be equal; everything else must be equal everywhere."""


@dataclass
class Row:
    """One line of the table."""

    name: str
    required: float = 1.0  # share of scenes that must be equal
    compared: int = 0
    equal: int = 0
    largest: float = 0.0  # difference over all scenes where one can be measured
    exceptions: list[dict[str, Any]] = field(default_factory=list)  # token, difference, cause
    missing: str = ""  # why nothing was compared

    def add(self, token: str, difference: float, detail: str) -> None:
        """Count one scene; ``difference`` is infinite where things cannot be matched."""
        self.compared += 1
        if np.isfinite(difference):
            self.largest = max(self.largest, difference)
        if difference <= TOLERANCE:
            self.equal += 1
        else:
            self.exceptions.append({"token": token, "difference": _plain(difference), "cause": detail})

    @property
    def share(self) -> float:
        return self.equal / self.compared if self.compared else 0.0

    @property
    def passed(self) -> bool:
        return bool(self.missing) or (self.compared > 0 and self.share >= self.required)


@dataclass(frozen=True)
class Caching:
    """What writing the packed cache of a split cost."""

    name: str
    scenes: int
    cpu_seconds: float  # of this process, reading logs and maps and writing the file included
    wall_seconds: float

    @property
    def per_cpu_second(self) -> float:
        return self.scenes / self.cpu_seconds


class World:
    """Where the parts of a world lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data, self.maps = root / "data", root / "data/maps"
        cache = root / "official_metric_cache"
        self.official = OfficialCache(cache) if cache.is_dir() else None

    def split(self, name: str) -> Split | None:
        path = self.root / f"{name}.yaml"
        return load_split(path) if path.is_file() else None

    def official_rows(self, name: str) -> dict[str, dict[str, float]] | None:
        """Official scores by token and column; NaN where a cell is empty. The row of averages is kept."""
        path = self.root / f"{name}.csv"
        if not path.is_file():
            return None
        with open(path, newline="") as file:
            return {row["token"]: {k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)}


def compare_world(root: Path, folder: Path) -> tuple[list[Row], list[Caching]]:
    """All rows for the world at ``root``; packed caches go to ``folder``."""
    world = World(root)
    rows, costs = [], []
    for version, name, prefix in (("v1", "split", ""), ("v2", "split_v2", "v2_")):
        split = world.split(name)
        if split is None or not (world.data / "navsim_logs").is_dir():
            rows.append(Row(f"{version} scenes", missing=f"no {name}.yaml or no data/navsim_logs"))
            continue
        found, cost = _compare_version(world, version, split, prefix, folder / version)
        rows += found
        costs += [cost]
    return rows, costs


def _compare_version(world: World, version: str, split: Split, prefix: str, folder: Path) -> tuple[list[Row], Caching]:
    metric: Metric[Any] = PDMS() if version == "v1" else EPDMS()
    rules = NAVSIM_V1 if version == "v1" else NAVSIM_V2
    tables = {agent: world.official_rows(f"{prefix}{agent}") for agent in AGENTS}
    records = select_scenes(split, world.data)
    wanted = {r.token for r in records}
    rows = []
    for agent, table in tables.items():
        rows.append(_same_tokens(f"{version} scenes of {prefix}{agent}.csv", wanted, _tokens(table, metric)))
    official: dict[str, MetricScene] = {}
    if version == "v1":
        rows.append(_same_tokens("v1 scenes of the cache", wanted, world.official.tokens if world.official else None))
        if world.official is not None:
            official = {r.token: world.official.read(r.token) for r in records if r.token in world.official}
    begin, begin_wall = time.process_time(), time.perf_counter()
    cache = build_metric_cache(world.data, world.maps, split, folder, rules=rules, progress=False)
    cost = Caching(version, len(records), time.process_time() - begin, time.perf_counter() - begin_wall)
    scenes = dict(zip((r.token for r in records), cache.load([r.token for r in records])))
    if version == "v1":
        rows += _compare_parts(scenes, official)
    for agent, table in tables.items():
        rows += _compare_scores(f"{version} {agent}", agent, metric, records, scenes, official, table)
    return rows, cost


def _same_tokens(name: str, ours: set[str], official: Iterable[str] | None) -> Row:
    row = Row(name)
    if official is None:
        row.missing = "not in this world"
        return row
    theirs = set(official)
    for token in sorted(ours | theirs):
        only = "" if token in ours and token in theirs else "only ours" if token in ours else "only official"
        row.add(token, np.inf if only else 0.0, only)
    return row


def _tokens(table: dict[str, dict[str, float]] | None, metric: Metric[Any]) -> list[str] | None:
    return None if table is None else [token for token in table if token != metric.average_row]


def _compare_parts(ours: dict[str, MetricScene], official: dict[str, MetricScene]) -> list[Row]:
    rows = {part: Row(f"v1 {part}", missing="" if official else "no official_metric_cache") for part in PARTS}
    for token, theirs in official.items():
        for part, (size, detail) in differences(ours[token], theirs).items():
            rows[part].add(token, size, detail)
    return list(rows.values())


def _compare_scores(
    name: str,
    agent: str,
    metric: Metric[Any],
    records: Sequence[SceneRecord],
    scenes: dict[str, MetricScene],
    official: dict[str, MetricScene],
    table: dict[str, dict[str, float]] | None,
) -> list[Row]:
    row, mean = Row(f"{name}: score", required=SCORES_EQUAL), Row(f"{name}: average score")
    subs = Row(f"{name}: all sub-scores", required=SCORES_EQUAL)
    if table is None:
        row.missing = mean.missing = subs.missing = "no CSV"
        return [row, subs, mean]

    def values(of: Sequence[SceneRecord], load: Callable[[SceneRecord], MetricScene]) -> Evaluation:
        return evaluate(find_agent(agent), of, lambda some: [load(r) for r in some], metric=metric, progress=False)

    here = [r for r in records if r.token in table]
    result = values(here, lambda r: scenes[r.token])
    for record, found in zip(here, result.values):
        expected = np.array([table[record.token][column] for column in result.columns])
        gaps = _gaps(found, expected)
        detail = "; ".join(
            f"{column}: ours {a:.9g}, official {b:.9g}"
            for column, a, b, gap in zip(result.columns, found, expected, gaps)
            if not gap <= TOLERANCE
        )
        if not gaps[-1] <= TOLERANCE and record.token in official:
            detail += f" (equal with the official {_cure(record, values, scenes, official, expected)})"
        row.add(record.token, float(gaps[-1]), detail)
        subs.add(record.token, float(gaps.max()), detail)
    if metric.average_row in table:
        expected = np.array([table[metric.average_row][column] for column in result.columns])
        gaps = _gaps(np.array(list(result.averages.values())), expected)
        off = [column for column, gap in zip(result.columns, gaps) if not gap <= TOLERANCE]
        mean.add(metric.average_row, float(gaps.max()), f"averages that differ: {', '.join(off)}")
        mean.name += f" (ours {result.averages['score']:.6f}, official {expected[-1]:.6f})"
    else:
        mean.missing = f"no row {metric.average_row} in the CSV"
    return [row, subs, mean]


def _cure(
    record: SceneRecord,
    values: Callable[..., Evaluation],
    scenes: dict[str, MetricScene],
    official: dict[str, MetricScene],
    expected: NDArray[np.float64],
) -> str:
    """Which parts of the official cache give the official score in the place of ours."""
    mine, theirs = scenes[record.token], official[record.token]
    for parts in [(part,) for part in PARTS] + [("centerline", "reference plan"), PARTS]:
        mixed = with_part_of(mine, theirs, parts)
        found = values([record], lambda _, scene=mixed: scene).values[0]
        if (_gaps(found, expected) <= TOLERANCE).all():
            return " and ".join(parts) if parts != PARTS else "scene as a whole"
    return "nothing: the scorers differ"


def _gaps(ours: NDArray[np.float64], official: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences; 0 where both are missing, infinite where one is."""
    both = np.isnan(ours) & np.isnan(official)
    return np.where(both, 0.0, np.nan_to_num(np.abs(ours - official), nan=np.inf))


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def report(rows: Sequence[Row], costs: Sequence[Caching]) -> str:
    """The table and the exceptions as text."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}{'scenes':>8}{'equal':>8}{'largest diff.':>15}"]
    for row in rows:
        if row.missing:
            lines.append(f"{row.name:<{width}}{'-':>8}  not compared: {row.missing}")
            continue
        mark = "" if row.passed else f"  below the required {row.required:.0%}"
        lines.append(f"{row.name:<{width}}{row.compared:>8}{row.equal:>8}{row.largest:>15.1e}{mark}")
    told: set[tuple[str, str]] = set()
    for row in rows:
        by_cause: dict[str, list[str]] = {}
        for exception in row.exceptions:
            by_cause.setdefault(exception["cause"], []).append(exception["token"])
        for cause, tokens in by_cause.items():
            new = [token for token in tokens if (token, cause) not in told]
            told.update((token, cause) for token in new)
            if new:
                lines.append(f"  {row.name}: {', '.join(new)}: {cause}")
    for cost in costs:
        lines.append(
            f"{cost.name} caching: {cost.scenes} scenes in {cost.cpu_seconds:.2f} CPU s ({cost.wall_seconds:.2f} s): "
            f"{cost.per_cpu_second:.1f} scenes/s per core, logs and maps read included"
        )
    return "\n".join(lines)


@reporting_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    assert __doc__ is not None
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder of the world")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    if not options.world.is_dir():
        parser.error(f"no folder {options.world}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows, costs = compare_world(options.world, Path(folder))
    print(report(rows, costs))
    if options.out:
        table = [{**dataclasses.asdict(row), "share": row.share, "passed": row.passed} for row in rows]
        caching = [{**dataclasses.asdict(cost), "scenes_per_cpu_second": cost.per_cpu_second} for cost in costs]
        write_json(
            options.out,
            {"world": str(options.world), "tolerance": TOLERANCE, "rows": table, "caching": caching,
             "provenance": made_by(seed=None)},
        )  # fmt: skip
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
