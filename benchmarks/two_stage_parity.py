"""Compare our scores of a split of two stages with what the official devkit made of the same files.

    python benchmarks/two_stage_parity.py --reference DIR --json parity.json

DIR holds two-stage data in NAVSIM's formats and what the devkit (navsim v2.1.2) made of them; see
`navsim_bridge/golden/two_stage.py`: `data/` (logs, maps, synthetic scenes), `config/*.yaml` (splits), `metric_cache/`,
`official/` (sets of plans, results of tokens, tables, traffic, submissions), and made-up rows for the aggregation.
Every part that is there is compared, every split and every set of plans; parts that are not are named.

Our side is what users run: metric scenes made from logs, maps and pickles as `tools/cache_metrics.py` does, and those
read from the official cache; scored by the evaluation of `tools/evaluate.py`. FILE gets `tokens`, `traffic_frames` and
`aggregations`, how many were compared, and `differ`, how many of them do not agree. Exits with 1 unless that is 0.

Discrete values, tokens and empty cells must be the same. Others may differ by what `TOLERANCES` says.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.run import evaluate
from navsim_bridge.golden.two_stage import (
    PRODUCT,
    AggregationCase,
    OfficialFrames,
    PlanSet,
    TokenResults,
    aggregation_cases,
    plan_sets,
)
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.metric_cache.official import OfficialCache
from navsim_bridge.metrics.config import EPDMSConfig
from navsim_bridge.metrics.epdms import EPDMS, TwoStageEPDMS
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.metrics.two_stage import aggregate, pair_comfort
from navsim_bridge.pdm import EPDMSBatch, simulate_plans
from navsim_bridge.pdm.epdms import EXTENDED_COMFORT, MULTIPLIERS, TERMS, epdms_scores
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, total
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from navsim_bridge.traffic.idm import IDM
from navsim_bridge.traffic.policy import STATE, listed

TOLERANCES = {"scores and progress": 1e-6, "states": 1e-6, "traffic": 1e-8, "aggregation": 1e-12}
"""[m, m/s, rad, or a share of one] Largest difference that counts as equal, for what is not discrete."""
CONTINUOUS = ("ego_progress", "score", "pdm_score")
MOST_TOLD = 20


@dataclass
class Tally:
    """What was compared."""

    tokens: int = 0
    traffic_frames: int = 0
    aggregations: int = 0
    differ: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # what -> largest difference
    told: list[str] = field(default_factory=list)  # the first things that differ
    missing: list[str] = field(default_factory=list)  # what was not there to compare

    def compare(self, what: str, gaps: Mapping[str, float], limits: Mapping[str, float]) -> None:
        """Count one thing: it differs when a gap is beyond its limit, which is 0 where none is given."""
        bad = [f"{name} by {gap:.3g}" for name, gap in gaps.items() if not gap <= limits.get(name, 0.0)]
        for name, gap in gaps.items():
            if np.isfinite(gap):
                self.largest[name] = max(self.largest.get(name, 0.0), float(gap))
        self.add(what, ", ".join(bad))

    def add(self, what: str, problem: str) -> None:
        """Count one thing; it differs when there is a problem."""
        if problem:
            self.differ += 1
            if len(self.told) < MOST_TOLD:
                self.told.append(f"{what}: {problem}")


def compare_aggregations(folder: Path, tally: Tally) -> None:
    """Made-up rows."""
    cases = list(aggregation_cases(folder))
    if not cases:
        tally.missing.append("aggregation cases")
    for case in cases:
        tally.aggregations += 1
        _compare_aggregation(case, tally)


def _compare_aggregation(case: AggregationCase, tally: Tally) -> None:
    comfort = pair_comfort(case.groups, case.tokens, torch.from_numpy(case.motion), case.times_us).numpy()
    subs = {name: torch.from_numpy(column) for name, column in case.values.items() if name != PRODUCT}
    subs[EXTENDED_COMFORT] = torch.from_numpy(comfort)
    weighed = total([c for c in EXTENDED_PDM_SCORE if not c.multiplies], subs).numpy()
    score = np.where(np.isnan(comfort), np.nan, case.values[PRODUCT] * weighed)
    values = {name: column.numpy() for name, column in subs.items()} | {"score": score}
    found = aggregate(case.groups, case.tokens, values, case.ends, case.starts)
    if not case.official:
        whole = all(np.isfinite(value) for value in found.combined.values())
        return tally.add(f"case {case.name}", "" if found.excluded or not whole else "the devkit gave no score")
    weights = {token: weight for group in found.weights for token, weight in group.items()}
    gaps: dict[str, float] = {}
    for row, token in enumerate(case.tokens):
        official = case.official["rows"][token]
        ours = {"weight": weights.get(token, 1.0), EXTENDED_COMFORT: comfort[row], "score": score[row]}
        for name, value in ours.items():
            _worse(gaps, f"case {name}", value, official[name])
    for part in ("combined", "stage_one", "stage_two"):
        for name, value in case.official[part].items():
            _worse(gaps, f"case {part}", getattr(found, part)[name], value)
    limits = dict.fromkeys(gaps, TOLERANCES["aggregation"]) | {f"case {EXTENDED_COMFORT}": 0.0}
    tally.compare(f"case {case.name}", gaps, limits)


def _worse(gaps: dict[str, float], name: str, ours: float, official: float | None) -> None:
    """Keep the largest gap; none where both are missing, infinite where one is."""
    there = np.nan if official is None else official
    gap = 0.0 if np.isnan(ours) and np.isnan(there) else abs(ours - there)
    gaps[name] = max(gaps.get(name, 0.0), np.inf if np.isnan(gap) else gap)


def compare_split(split: Split, root: Path, sets: Sequence[PlanSet], tally: Tally, folder: Path) -> None:
    """Everything of one split: metric scenes made anew and read, with each set of plans."""
    data, maps = root / "data", root / "data/maps"
    records = select_scenes(split, data)
    cache = build_metric_cache(data, maps, split, folder, rules=NAVSIM_V2, progress=False)
    sources = {"rebuilt": dict(zip((r.token for r in records), cache.load([r.token for r in records])))}
    if (root / "metric_cache").is_dir():
        official = OfficialCache(root / "metric_cache")
        sources["official cache"] = {r.token: official.read(r.token, maps) for r in records if r.token in official}
        lacking = [r.token for r in records if r.token not in official]
        if lacking:
            tally.missing.append(f"{len(lacking)} tokens of {split.name} in the official cache, first {lacking[0]}")
    else:
        tally.missing.append("official metric cache")
    for source, scenes in sources.items():
        for plans in sets:
            here = [r for r in records if r.token in plans.plans and r.token in scenes]
            if here:
                _compare_plans(f"{split.name}, {plans.name}, {source}", split, here, plans, scenes, tally)


def _compare_submission(plans: PlanSet, tally: Tally) -> None:
    """The same plans in a submission file."""
    if plans.submitted is None:
        tally.missing.append(f"submission of {plans.name}")
        return
    for token in sorted({*plans.plans, *plans.submitted}):
        none = np.zeros((0, 3))
        same = np.array_equal(plans.plans.get(token, none), plans.submitted.get(token, none))
        tally.add(f"{plans.name}, submission, {token}", "" if same else "another plan than in the arrays")


def _compare_plans(
    what: str,
    split: Split,
    records: Sequence[SceneRecord],
    plans: PlanSet,
    scenes: Mapping[str, MetricScene],
    tally: Tally,
) -> None:
    tally.tokens += len(records)

    def load(some: Sequence[SceneRecord]) -> list[MetricScene]:
        return [scenes[r.token] for r in some]

    for name, table in plans.tables.items():
        metric = EPDMS(_config(name)).on(split)
        assert isinstance(metric, TwoStageEPDMS)
        found = evaluate(
            lambda some: np.stack([plans.plans[r.token] for r in some]),
            records,
            load,
            metric=metric,
            allow_failures=True,
            progress=False,
        )
        _compare_table(f"{what}, {name}", found, table, tally)
    batch, tokens = EPDMSBatch.from_scenes(load(records)), [r.token for r in records]
    given = torch.from_numpy(np.stack([plans.plans[r.token] for r in records])[:, None]).double()
    for name, results in plans.results.items():
        _compare_results(f"{what}, {name}", _config(name), tokens, batch, given, results, tally)
    _compare_traffic(what, tokens, batch, given, plans.traffic, tally)


def _config(name: str) -> EPDMSConfig:
    """Of results by the name of their file."""
    return EPDMSConfig(human_filter="v2.1.2" if "_v212" in name else "fixed", traffic="idm")


def _compare_table(what: str, found: Evaluation, table: Mapping[str, Mapping[str, float]], tally: Tally) -> None:
    ours: Mapping[str, Mapping[str, float]] = {
        token: dict(zip(found.columns, row)) for token, row in zip(found.tokens, found.values.tolist())
    }
    ours = {**ours, **found.part_averages, found.metric.average_row: found.averages}
    valid = dict(zip(found.tokens, found.valid.tolist()))
    further = [token for token in table if token not in ours]  # of another split, or not in the official cache
    if further:
        tally.missing.append(f"{what}: {len(further)} tokens of the table, first {further[0]}, and so its totals")
        ours, table = ({t: dict(rows[t]) for t in valid if t in rows} for rows in (ours, table))
    for token in sorted({*ours, *table}):
        if token not in table or token not in ours:
            tally.add(f"{what}, {token}", f"only {'ours' if token in ours else 'official'}")
            continue
        is_mean = token not in valid
        gaps: dict[str, float] = {}
        for name in found.columns:
            kind = name.removesuffix("_stage_one").removesuffix("_stage_two")
            _worse(gaps, f"{'mean ' * is_mean}{kind}", ours[token][name], table[token][name])
        _worse(gaps, "valid", float(valid.get(token, not found.caveats)), table[token]["valid"])
        smooth = TOLERANCES["scores and progress"]
        limits = {name: smooth for name in gaps if is_mean or name in CONTINUOUS} | {"valid": 0.0}
        tally.compare(f"{what}, {token}", gaps, limits)


def _compare_results(
    what: str,
    config: EPDMSConfig,
    tokens: Sequence[str],
    batch: EPDMSBatch,
    plans: torch.Tensor,
    results: TokenResults,
    tally: Tally,
) -> None:
    metric = EPDMS(config)
    terms = metric.terms(batch, plans)
    scores = epdms_scores(terms, config.human_filter)
    values = {name: getattr(scores, name)[:, 0] for name in (*TERMS, "pdm_score")}
    values[PRODUCT] = terms.values[:, 0, : len(MULTIPLIERS)].prod(-1)
    states = simulate_plans(batch.scenes, plans)[:, 1]
    states[..., :2] += batch.scenes.origin[:, None]
    tally.missing += [f"{what}: column {name}, which is not compared" for name in results.values.keys() - values.keys()]
    row_of = {token: row for row, token in enumerate(results.tokens)}
    for row, token in enumerate(tokens):
        if token not in row_of:
            continue
        at = row_of[token]
        if all(np.isnan(official[at]) for official in results.values.values()):
            tally.missing.append(f"{what}, {token}: the devkit failed")
            continue
        gaps: dict[str, float] = {}
        for name in values.keys() & results.values.keys():
            _worse(gaps, name, float(values[name][row]), float(results.values[name][at]))
        if results.states is not None:
            gaps["states"] = float(np.abs(states[row].numpy() - results.states[at]).max())
        limits = dict.fromkeys(CONTINUOUS, TOLERANCES["scores and progress"]) | {"states": TOLERANCES["states"]}
        tally.compare(f"{what}, {token}", gaps, limits)


def _compare_traffic(
    what: str,
    tokens: Sequence[str],
    batch: EPDMSBatch,
    plans: torch.Tensor,
    official: Mapping[tuple[str, str], OfficialFrames],
    tally: Tally,
) -> None:
    """Objects in every frame: the same, in the same order, in the same places."""
    states = simulate_plans(batch.scenes, torch.cat((plans, batch.human_plans[:, None]), dim=1))
    for (token, who), expected in official.items():
        if token not in tokens:
            continue
        row = tokens.index(token)
        ours = simulated_frames(batch.select([row]), states[row, 1 if who == "plan" else 2])
        for frame in range(len(expected.offsets) - 1):
            tally.traffic_frames += 1
            a, b = (slice(*one.offsets[frame : frame + 2]) for one in (ours, expected))
            where = f"{what}, {token}, traffic of the {who}, frame {frame}"
            if ours.tokens[a] != expected.tokens[b] or ours.types[a] != expected.types[b]:
                tally.add(
                    where, f"{len(ours.tokens[a])} objects, officially {len(expected.tokens[b])}, or another order"
                )
                continue
            gap = np.abs(ours.boxes[a] - expected.boxes[b])
            gap[:, 2] = np.minimum(gap[:, 2], np.abs(gap[:, 2] - 2 * np.pi))
            vehicle = np.array([kind == "VEHICLE" for kind in ours.types[a]], dtype=bool)
            gaps = {
                "traffic": float(gap[:, :5].max(initial=0.0)),
                "traffic's velocity": float(gap[vehicle, 5:].max(initial=0.0)),
            }
            tally.compare(where, gaps, dict.fromkeys(gaps, TOLERANCES["traffic"]))


def simulated_frames(scene: EPDMSBatch, states: torch.Tensor) -> OfficialFrames:
    """The frames of one scene in the traffic that reacts to states (41, 11), as the devkit lists them.

    Velocities of what is no vehicle are NaN: a metric scene has none.
    """
    (vehicles,), batch = scene.traffic.vehicles, scene.scenes
    assert vehicles is not None and batch.names is not None
    ego = states[None, :, :STATE].numpy().copy()
    ego[..., :2] += vehicles.origin
    moved = IDM().move([vehicles], np.zeros(1, dtype=np.int64), ego)
    kinds, names = batch.names[0].track_types, batch.names[0].track_tokens
    tracks = batch.object_track[0].tolist()
    shown, is_vehicle = scene.traffic.recorded[0].clone(), scene.traffic.is_vehicle[0]
    shown[0] &= scene.traffic.annotated[0]
    shown[1:] &= ~is_vehicle
    recorded = batch.object_boxes[0].numpy() * [1, 1, 1, 2, 2] + np.append(vehicles.origin, [0, 0, 0])
    velocity = {int(track): at for at, track in enumerate(vehicles.inputs.vehicle_track)}
    rows: list[list[tuple[str, str, NDArray[np.float64]]]] = []
    for frame, listing in enumerate([[], *listed(vehicles, moved, 0)]):
        rows.append([])
        for at in listing:
            box = np.concatenate(
                [moved.poses[0, frame - 1, at], vehicles.boxes[at, 3:], moved.velocities[0, frame - 1, at]]
            )
            rows[-1].append((vehicles.tokens[at], "VEHICLE", box))
        for column in shown[frame].nonzero().flatten().tolist():
            track = tracks[column]
            known = vehicles.inputs.vehicle_velocity[velocity[track]] if track in velocity else [np.nan] * 2
            rows[-1].append((names[track], kinds[track], np.append(recorded[frame, column], known)))
    flat = [item for of_frame in rows for item in of_frame]
    return OfficialFrames(
        np.cumsum([0, *map(len, rows)]),
        tuple(token for token, _, _ in flat),
        tuple(kind for _, kind, _ in flat),
        np.array([box for _, _, box in flat]).reshape(-1, 7),
    )


def report(tally: Tally) -> str:
    """What was compared, and what differs."""
    lines = [
        f"{tally.tokens} tokens, {tally.traffic_frames} frames of traffic, {tally.aggregations} aggregations: "
        f"{tally.differ} differ"
    ]
    lines += [f"not there: {what}" for what in tally.missing]
    lines += [f"  {name}: largest difference {gap:.1e}" for name, gap in sorted(tally.largest.items()) if gap]
    more = tally.differ - len(tally.told)
    return "\n".join([*lines, *tally.told, *([f"and {more} more"] if more > 0 else [])])


def compare(root: Path, folder: Path) -> Tally:
    """Everything below ``root``; caches are made in ``folder``."""
    tally = Tally()
    compare_aggregations(root, tally)
    sets = list(plan_sets(root))
    if not sets:
        tally.missing.append("sets of plans")
    for plans in sets:
        _compare_submission(plans, tally)
    for path in sorted((root / "config").glob("*.yaml")):
        split = load_split(path, root / "data")
        if split.two_stage is None or split.two_stage.groups is None:
            tally.missing.append(f"groups of {split.name}")
            continue
        try:
            compare_split(split, root, sets, tally, folder / path.stem)
        except ValueError as error:
            tally.add(f"split {split.name}", f"could not be compared: {error}")
    return tally


@reporting_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    assert __doc__ is not None
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder of the reference set")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args(argv)
    if not options.reference.is_dir():
        parser.error(f"no folder {options.reference}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tally = compare(options.reference, Path(folder))
    write_json(
        options.json,
        {**dataclasses.asdict(tally), "tolerances": TOLERANCES, "reference": str(options.reference),
         "provenance": made_by(seed=None)},
    )  # fmt: skip
    print(report(tally))
    return 1 if tally.differ else 0


if __name__ == "__main__":
    sys.exit(main())
