"""Score every golden scene and compare with the official results stored beside the inputs.

    python benchmarks/pdm_parity.py --golden tests/fixtures/golden_v1 --out parity.json

Works on files without results as well; then it only writes the scores. Exits with 1 when a case that is
not fragile disagrees. A case is fragile when the official scorer itself changes its mind after a shift of
the simulated states by a micrometre.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dpvla.files import write_json
from navsim_bridge.pdm import SUB_SCORES, SceneBatch, score_plans
from navsim_bridge.pdm.golden import FRAGILE_COLUMNS, GoldenScene, read_golden

TOLERANCE = 1e-6
"""Largest difference that counts as equal, for every sub-score."""


@dataclass
class Agreement:
    """How one sub-score agrees over all files that hold official results."""

    cases: int = 0
    fragile: int = 0
    fragile_mismatches: int = 0
    mismatches: int = 0
    largest_difference: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, stem: str, ours: np.ndarray, official: np.ndarray, fragile: np.ndarray) -> None:
        """Count one file's cases."""
        difference = np.abs(ours - official)
        wrong = ~(difference <= TOLERANCE)
        self.cases += len(ours)
        self.fragile += int(fragile.sum())
        self.fragile_mismatches += int((wrong & fragile).sum())
        self.mismatches += int((wrong & ~fragile).sum())
        if (~fragile).any():
            self.largest_difference = max(self.largest_difference, float(difference[~fragile].max()))
        for index in np.flatnonzero(wrong & ~fragile)[:3]:
            self.examples.append(f"{stem}[{index}]: ours {ours[index]:.9g}, official {official[index]:.9g}")


def score_files(
    paths: list[Path], device: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, GoldenScene], float]:
    """Scores by file stem, the files, and the seconds spent packing and scoring."""
    golden = {path.stem: read_golden(path) for path in paths}
    by_count: dict[int, list[str]] = {}
    for stem, item in golden.items():
        by_count.setdefault(len(item.proposals), []).append(stem)
    scores: dict[str, dict[str, np.ndarray]] = {}
    seconds = 0.0
    for stems in by_count.values():
        plans = torch.from_numpy(np.stack([golden[stem].proposals for stem in stems])).to(device)
        begin = time.perf_counter()
        result = score_plans(SceneBatch.from_scenes([golden[stem].scene for stem in stems]).to(device), plans)
        values = {name: getattr(result, name).cpu().numpy() for name in SUB_SCORES}
        seconds += time.perf_counter() - begin
        for row, stem in enumerate(stems):
            scores[stem] = {name: values[name][row] for name in SUB_SCORES}
    return scores, golden, seconds


def compare(scores: dict[str, dict[str, np.ndarray]], golden: dict[str, GoldenScene]) -> dict[str, Agreement]:
    """Agreement per sub-score over the files that hold official results."""
    table: dict[str, Agreement] = {}
    for stem, item in golden.items():
        for name in SUB_SCORES:
            official = item.results.get(f"res_{name}")
            if official is None:
                continue
            flags = item.results.get("dbg_fragile", np.zeros((len(official), 5), dtype=bool))
            fragile = np.asarray(flags[:, list(FRAGILE_COLUMNS[name])].any(axis=1))
            table.setdefault(name, Agreement()).add(stem, scores[stem][name], official, fragile)
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="directory of golden .npz files")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    paths = sorted(options.golden.glob("*.npz"))
    if not paths:
        parser.error(f"no .npz files in {options.golden}")
    scores, golden, seconds = score_files(paths, options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        options.out,
        {stem: {name: values.tolist() for name, values in item.items()} for stem, item in scores.items()},
    )
    plans = sum(len(item.proposals) for item in golden.values())
    print(
        f"{len(paths)} scenes, {plans} plans in {seconds:.2f} s on {options.device} "
        f"({plans / seconds:.0f} plans/s with {torch.get_num_threads()} threads) -> {options.out}"
    )
    table = compare(scores, golden)
    if not table:
        print("no official results in these files: nothing to compare")
        return 0
    print(f"{'sub-score':<34}{'cases':>7}{'equal':>7}{'differ':>8}{'largest diff.':>15}{'fragile':>9}{'(differ)':>10}")
    for name, row in table.items():
        firm = row.cases - row.fragile
        print(
            f"{name:<34}{row.cases:>7}{firm - row.mismatches:>7}{row.mismatches:>8}"
            f"{row.largest_difference:>15.2e}{row.fragile:>9}{row.fragile_mismatches:>10}"
        )
    for row in table.values():
        for example in row.examples[:10]:
            print(f"  {example}")
    return 1 if any(row.mismatches for row in table.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
