"""Score every golden scene and compare with the official results stored beside the inputs.

    python benchmarks/pdm_parity.py --golden tests/fixtures/golden_v1 --out parity.json
    python benchmarks/pdm_parity.py --metric epdms --golden tests/fixtures/golden_v2 --out parity_v2.json

Works on files without results as well; then it only writes the scores. Exits with 1 when a case that is
not fragile disagrees. A case is fragile when the official scorer itself changes its mind after a shift of
the simulated states by a micrometer; the flags are in the v1 files. FILE.provenance.json says what made FILE.json.

With --metric epdms, FILE.json holds what the devkit 2.1.2 gives (human filter as released), `unf_*` before the
human filter, and `main_*` with the corrected filter; NaN is null.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from navsim_bridge.golden import v2
from navsim_bridge.golden.v1 import FRAGILE_COLUMNS, GoldenScene, golden_fields, read_golden
from navsim_bridge.metric_cache.official import OfficialCache
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.pdm import (
    SUB_SCORES,
    EPDMSBatch,
    SceneBatch,
    epdms_scores,
    epdms_terms,
    score_plans,
    two_frame_extended_comfort,
)
from navsim_bridge.pdm.epdms import EXTENDED_COMFORT, MULTIPLIERS, TERMS

TOLERANCE = 1e-6
"""Largest difference that counts as equal, for every continuous sub-score; discrete ones must be the same."""
CONTINUOUS = ("ego_progress", "score", "score_without_ec", "pdm_score")
PRODUCT = "multiplicative_metrics_prod"
FINAL = ("pdm_score", "score", "score_without_ec")

Values = dict[str, NDArray[np.float64]]


@dataclass
class Agreement:
    """How one sub-score agrees over all files that hold official results."""

    tolerance: float
    cases: int = 0
    fragile: int = 0
    fragile_mismatches: int = 0
    mismatches: int = 0
    largest_difference: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, stem: str, ours: NDArray, official: NDArray, fragile: NDArray) -> None:
        """Count one file's cases; NaN equals NaN."""
        difference = np.where(np.isnan(ours) & np.isnan(official), 0.0, np.abs(ours - official))
        wrong = ~(difference <= self.tolerance)
        self.cases += len(ours)
        self.fragile += int(fragile.sum())
        self.fragile_mismatches += int((wrong & fragile).sum())
        self.mismatches += int((wrong & ~fragile).sum())
        if (~fragile).any():
            self.largest_difference = max(self.largest_difference, float(difference[~fragile].max()))
        for index in np.flatnonzero(wrong & ~fragile)[:3]:
            self.examples.append(f"{stem}[{index}]: ours {ours[index]:.9g}, official {official[index]:.9g}")


@dataclass(frozen=True)
class Scored:
    """One golden file: what we make of it, what the official code made of it, and which columns are fragile."""

    scores: Values
    official: Values  # by the names of ``scores``; empty when the file holds no results
    fragile: dict[str, NDArray[np.bool_]]  # by the names of ``scores``
    plans: int


def score_pdms(paths: list[Path], device: str, cache: OfficialCache | None) -> tuple[dict[str, Scored], float]:
    """PDM score v1 by file stem, and the seconds spent packing and scoring."""
    golden = {path.stem: read_golden(path) for path in paths}
    scenes = {stem: item.scene for stem, item in golden.items()}
    if cache is not None:
        golden = {stem: item for stem, item in golden.items() if item.scene.token in cache.tokens}
        scenes = {stem: cache.read(item.scene.token) for stem, item in golden.items()}
    results: dict[str, Scored] = {}
    seconds = 0.0
    for stems in _by_count({stem: len(item.proposals) for stem, item in golden.items()}):
        plans = torch.from_numpy(np.stack([golden[stem].proposals for stem in stems])).to(device)
        begin = time.perf_counter()
        found = score_plans(SceneBatch.from_scenes([scenes[stem] for stem in stems]).to(device), plans)
        values = {name: getattr(found, name).cpu().numpy() for name in SUB_SCORES}
        seconds += time.perf_counter() - begin
        for row, stem in enumerate(stems):
            results[stem] = _scored_pdms({name: values[name][row] for name in SUB_SCORES}, golden[stem])
    return results, seconds


def _scored_pdms(scores: Values, item: GoldenScene) -> Scored:
    official = {name: item.results[f"res_{name}"] for name in scores if f"res_{name}" in item.results}
    flags = item.results.get("dbg_fragile")
    return Scored(scores, official, _fragile(scores, flags, FRAGILE_COLUMNS), len(item.proposals))


def score_epdms(paths: list[Path], device: str, golden_v1: Path | None) -> tuple[dict[str, Scored], float]:
    """EPDMS with all human filters by file stem, and the seconds spent packing and scoring."""
    golden = {path.stem: v2.read_golden_epdms(path) for path in paths}
    results: dict[str, Scored] = {}
    seconds = 0.0
    for stems in _by_count({stem: len(item.proposals) for stem, item in golden.items()}):
        items = [golden[stem] for stem in stems]
        plans = torch.from_numpy(np.stack([item.proposals for item in items])).to(device)
        begin = time.perf_counter()
        terms = epdms_terms(EPDMSBatch.from_scenes([item.scene for item in items]).to(device), plans)
        previous = torch.stack([item.previous_motion() for item in items]).to(device)
        apart = torch.tensor([item.previous_seconds for item in items], dtype=torch.float64, device=device)
        comfort = two_frame_extended_comfort(terms.motion, previous, apart)
        found = {key: epdms_scores(terms, key, comfort) for key in ("v2.1.2", "off", "fixed")}
        values = {name: getattr(found["v2.1.2"], name) for name in (*TERMS, EXTENDED_COMFORT, *FINAL)}
        values[PRODUCT] = terms.values[..., : len(MULTIPLIERS)].prod(-1)
        values |= {f"unf_{name}": getattr(found["off"], name) for name in (*TERMS, "pdm_score")}
        values[f"unf_{PRODUCT}"] = values[PRODUCT]
        values |= {f"main_{name}": getattr(found["fixed"], name) for name in ("score", "score_without_ec")}
        filtered = torch.stack([getattr(found["fixed"], name) for name in MULTIPLIERS], dim=-1)
        values[f"main_{PRODUCT}"] = filtered.prod(-1)
        arrays = {name: value.cpu().numpy() for name, value in values.items()}
        seconds += time.perf_counter() - begin
        for row, stem in enumerate(stems):
            results[stem] = _scored_epdms({n: a[row] for n, a in arrays.items()}, stem, golden[stem], golden_v1)
    return results, seconds


def _scored_epdms(scores: Values, stem: str, item: v2.GoldenEPDMS, golden_v1: Path | None) -> Scored:
    fields = {name: name if name.startswith(("unf_", "main_")) else f"res_{name}" for name in scores}
    official = {name: item.results[key] for name, key in fields.items() if key in item.results}
    flags = None
    if golden_v1 is not None and (golden_v1 / f"{stem}.npz").is_file():
        flags = golden_fields(golden_v1 / f"{stem}.npz").get("dbg_fragile")
    columns = {name: v2.FRAGILE_COLUMNS[_plain(name)] for name in scores}
    return Scored(scores, official, _fragile(scores, flags, columns), len(item.proposals))


def _plain(name: str) -> str:
    return name.removeprefix("unf_").removeprefix("main_")


def _fragile(
    scores: Values, flags: NDArray | None, columns: dict[str, tuple[int, ...]]
) -> dict[str, NDArray[np.bool_]]:
    none = {name: np.zeros(len(values), dtype=bool) for name, values in scores.items()}
    if flags is None:
        return none
    return {name: np.asarray(flags[: len(none[name]), list(columns[name])].any(axis=1)) for name in scores}


def _by_count(counts: dict[str, int]) -> Iterator[list[str]]:
    """Stems grouped by their number of plans."""
    for count in sorted(set(counts.values())):
        yield [stem for stem, found in counts.items() if found == count]


def compare(results: dict[str, Scored]) -> dict[str, Agreement]:
    """Agreement per sub-score over the files that hold official results."""
    table: dict[str, Agreement] = {}
    for stem, item in results.items():
        for name, official in item.official.items():
            tolerance = TOLERANCE if _plain(name) in CONTINUOUS else 0.0
            row = table.setdefault(name, Agreement(tolerance))
            row.add(stem, item.scores[name], official[: item.plans], item.fragile[name])
    return table


def _plain_json(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _write(options: Any, paths: list[Path], results: dict[str, Scored]) -> None:
    written = {stem: {n: _plain_json(values) for n, values in item.scores.items()} for stem, item in results.items()}
    write_json(options.out, written)
    digest = hashlib.sha256()
    for path in paths:
        if path.stem in results:
            digest.update(path.read_bytes())
    about = {
        "metric": make_metric(options.metric).version,
        "human_filter": {"": "v2.1.2", "unf_": "off", "main_": "fixed"} if options.metric == "epdms" else None,
        "golden": str(options.golden),
        "golden_fingerprint": digest.hexdigest(),
        "official_cache": str(options.official_cache) if options.official_cache else None,
        "scenes": len(results),
        "candidates_per_scene": sorted({item.plans for item in results.values()}),
        "trained_on": [],  # no weights: the plans are in the files
        "provenance": made_by(device=options.device),
    }
    write_json(options.out.with_name(f"{options.out.stem}.provenance.json"), about)


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="directory of golden .npz files")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--metric", choices=("pdms", "epdms"), default="pdms", help="NAVSIM v1 or v2")
    parser.add_argument("--golden-v1", type=Path, help="epdms: v1 files with the fragility flags; golden_v1 beside")
    parser.add_argument("--official-cache", type=Path, help="pdms: read the scenes from this official metric cache")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    paths = sorted(options.golden.glob("*.npz"))
    if not paths:
        parser.error(f"no .npz files in {options.golden}")
    if options.metric == "epdms":
        if options.official_cache:
            parser.error("--official-cache holds scenes of the PDM score v1: use it with --metric pdms")
        beside = options.golden.resolve().parent / "golden_v1"
        results, seconds = score_epdms(
            paths, options.device, options.golden_v1 or (beside if beside.is_dir() else None)
        )
    else:
        cache = OfficialCache(options.official_cache) if options.official_cache else None
        results, seconds = score_pdms(paths, options.device, cache)
        if not results:
            parser.error(f"{options.official_cache} holds none of the scenes in {options.golden}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    _write(options, paths, results)
    plans = sum(item.plans for item in results.values())
    print(
        f"{len(results)} scenes, {plans} plans in {seconds:.2f} s on {options.device} "
        f"({plans / seconds:.0f} plans/s with {torch.get_num_threads()} threads) -> {options.out}"
    )
    return _report(compare(results), v1=options.metric == "pdms")


def _report(table: dict[str, Agreement], v1: bool) -> int:
    """Print the table; 1 when a case that is not fragile disagrees."""
    if not table:
        print("no official results in these files: nothing to compare")
        return 0
    print(f"{'sub-score':<38}{'cases':>7}{'equal':>7}{'differ':>8}{'largest diff.':>15}{'fragile':>9}{'(differ)':>10}")
    for name, row in table.items():
        label = name if v1 or name.startswith(("unf_", "main_")) else f"res_{name}"
        firm = row.cases - row.fragile
        print(
            f"{label:<38}{row.cases:>7}{firm - row.mismatches:>7}{row.mismatches:>8}"
            f"{row.largest_difference:>15.2e}{row.fragile:>9}{row.fragile_mismatches:>10}"
        )
    for row in table.values():
        for example in row.examples[:10]:
            print(f"  {example}")
    return 1 if any(row.mismatches for row in table.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
