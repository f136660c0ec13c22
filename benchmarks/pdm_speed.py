"""How fast the PDM score is: plans per second, memory and where the time goes.

    python benchmarks/pdm_speed.py --golden tests/fixtures/golden_v1 --json pdm_speed.json
    python benchmarks/pdm_speed.py --compare --json compiled.json     # numba's kernels against the tensor code

Scenes and plans come from golden files, repeated as often as a row needs. The reference plan of every scene
is simulated and scored as well but not counted. Packing scenes into tensors is timed separately, because
a training run does it once.

With --compare both score the same plans in turn, PDM of --golden and EPDMS of --golden-epdms, in this process's CPU
time, which other work on the machine leaves alone; what is a flag, a level or a step has to be the same. FILE then
holds plans_per_cpu_s, ratio, flags_different and largest_difference, and the same for EPDMS under `epdms`.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from dpvla.cli import reporting_errors
from dpvla.files import check_file, write_json
from dpvla.provenance import made_by
from navsim_bridge.golden.v1 import GoldenScene, read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metrics.reward import packed_bytes
from navsim_bridge.pdm import EPDMSBatch, SceneBatch, epdms_terms, score, score_plans
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.epdms import TERMS

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
ROWS = ("1x24", "1000x1", "192x12", "120x24", "1024x24", "4096x24")
"""Scenes x candidates; the small ones first, since freed memory may stay with the process."""
STAGES = {
    "simulate": "simulate_plans",
    "areas": "ego_areas",
    "collision": "no_at_fault_collisions",
    "ttc": "time_to_collision",
    "comfort": "comfort_flags",
}
"""Stages of the score and the functions of ``navsim_bridge.pdm.score`` that do them."""
_STAGE_SCENES = 256
"""The shares are measured on at most so many scenes."""
_MEASURED = ("ego_progress", "score", "progress_raw", "progress_scale", "reference_progress_raw", "motion")
"""Results that may differ by rounding; all others are flags, levels and steps."""


def measure(
    golden: Sequence[GoldenScene], scenes: int, candidates: int, device: str, seconds: float, in_flight: int | None
) -> dict[str, Any]:
    """One row: ``scenes`` x ``candidates`` plans scored in one call, the fastest of the passes within ``seconds``.

    ``in_flight`` is the ``max_plans_in_flight`` of ``score_plans``.
    """
    gc.collect()
    _reset_peak(device)
    chosen = [golden[i % len(golden)] for i in range(scenes)]
    begin = time.perf_counter()
    batch = SceneBatch.from_scenes([item.scene for item in chosen])
    pack_s = time.perf_counter() - begin
    batch = batch.to(device)
    plans = _plans(chosen, candidates, len(golden)).to(device)
    score_plans(batch.select(range(min(scenes, 8))), plans[:8])  # warm up

    best_s, best_cpu_s, spent = np.inf, np.inf, 0.0
    while spent < seconds:
        wall, cpu = _timed(lambda: score_plans(batch, plans, max_plans_in_flight=in_flight), device)
        best_s, best_cpu_s, spent = min(best_s, wall), min(best_cpu_s, cpu), spent + wall
    peak = _peak_mb(device)
    few = min(scenes, _STAGE_SCENES)
    return {
        "device": device,
        "scorer": choice.on_cpu() if device == "cpu" else "CUDA",
        "scenes": scenes,
        "candidates": candidates,
        "plans_per_s": scenes * candidates / best_s,
        "cpu_s": best_cpu_s,  # CPU time of the process; near the wall time when nothing else runs
        "peak_memory_mb": peak,  # of the process on the CPU, of the allocator on CUDA
        "packed_scenes_mb": packed_bytes(batch) / 2**20,
        "pack_scenes_per_s": scenes / pack_s,
        "share": stage_shares(batch.select(range(few)), plans[:few], device),
    }


def stage_shares(batch: SceneBatch, plans: Tensor, device: str) -> dict[str, float]:
    """Part of the time spent in each stage, and in the rest."""
    spent = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            results: list[Any] = []
            spent[stage] += _timed(lambda: results.append(function(*arguments)), device)[0]
            return results[0]

        return call

    with ExitStack() as stack:
        for stage, name in STAGES.items():
            stack.enter_context(patch.object(score, name, timed(stage, getattr(score, name))))
        total = _timed(lambda: score_plans(batch, plans), device)[0]
    shares = {stage: value / total for stage, value in spent.items()}
    return shares | {"other": 1.0 - sum(shares.values())}


def compare(scorer: Callable[[Any, Tensor], Any], batch: Any, plans: Tensor, seconds: float) -> dict[str, Any]:
    """Tensor code and compiled kernels in turn on the same plans; the CPU seconds are those of the fastest passes."""
    scorers: tuple[choice.Scorer, ...] = ("torch", "compiled")
    best, spent = dict.fromkeys(scorers, np.inf), 0.0
    results: dict[str, Any] = {}
    while spent < seconds or not results:
        for name in scorers:
            with choice.using(name):
                if name not in results:  # compile, load, fill caches
                    scorer(batch.select([0]), plans[:1])
                begin = time.process_time()
                results[name] = scorer(batch, plans)
                used = time.process_time() - begin
            best[name], spent = min(best[name], used), spent + used
    count = plans.shape[0] * plans.shape[1]
    return {
        "scenes": plans.shape[0],
        "candidates": plans.shape[1],
        "plans_per_cpu_s": count / best["compiled"],
        "plans_per_cpu_s_of_tensor_code": count / best["torch"],
        "ratio": best["torch"] / best["compiled"],
    } | differences(results["torch"], results["compiled"])


def differences(expected: Any, found: Any) -> dict[str, float | int]:
    """How many flags, levels and steps of two results differ, of how many, and by how much what is measured does."""
    flags = different = 0
    largest = 0.0
    for name, one, two in _columns(expected, found):
        if name in _MEASURED:
            largest = max(largest, float((one - two).abs().nan_to_num().max()))
        flags += one.numel() * (name not in _MEASURED)
        same = (one == two) | ((one != one) & (two != two))
        different += int((~same).sum()) * (name not in _MEASURED)
    return {"flags": flags, "flags_different": different, "largest_difference": largest}


def _columns(*results: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    for field in dataclasses.fields(results[0]):
        one, two = (getattr(result, field.name) for result in results)
        if field.name in ("values", "human"):  # a column for each sub-score of EPDMS
            yield from zip(TERMS, one.unbind(-1), two.unbind(-1))
        else:
            yield field.name, one, two


def _compare(options: Namespace, golden: Sequence[GoldenScene]) -> dict[str, Any]:
    """What ``--compare`` writes."""
    packed = SceneBatch.from_scenes([item.scene for item in golden])
    report = compare(score_plans, packed, _plans(golden, _fewest(golden), len(golden)), options.seconds)
    second = [read_golden_epdms(path) for path in sorted(options.golden_epdms.glob("*.npz"))]
    plans = torch.from_numpy(np.stack([item.proposals[: _fewest(second)] for item in second]))
    report["epdms"] = compare(
        epdms_terms, EPDMSBatch.from_scenes([item.scene for item in second]), plans, options.seconds
    )
    for name, row in {"PDM": report, "EPDMS": report["epdms"]}.items():
        rates = [f"{row[rate]:,.0f}" for rate in ("plans_per_cpu_s", "plans_per_cpu_s_of_tensor_code")]
        print(
            f"{name}: {row['scenes']} scenes x {row['candidates']} plans, {rates[0]} plans/CPU s compiled, {rates[1]} "
            f"by tensor code: {row['ratio']:.2f} times; {row['flags_different']} of {row['flags']:,} flags differ, "
            f"measured values by at most {row['largest_difference']:.1e}"
        )
    return report | {"scorer": choice.on_cpu(), "provenance": made_by(device="cpu")}


def _fewest(golden: Sequence[Any]) -> int:
    return min(len(item.proposals) for item in golden)


def _plans(chosen: Sequence[GoldenScene], candidates: int, files: int) -> Tensor:
    """Plans (scene, candidate, 8, 3); a repeated scene goes on where its last appearance stopped."""
    rows = []
    for i, item in enumerate(chosen):
        first = i // files * candidates
        rows.append(item.proposals[np.arange(first, first + candidates) % len(item.proposals)])
    return torch.from_numpy(np.stack(rows))


def _timed(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall and CPU seconds of ``work``, waiting for the device."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux: forget the high-water mark of the process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):  # since the process began; bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Measure all rows, print the table and write the file; returns the exit status."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--golden", type=Path, nargs="+", default=[FIXTURES / "golden_v1"], help="directories of golden .npz files"
    )
    parser.add_argument("--compare", action="store_true", help="numba's kernels against the tensor code, on the CPU")
    parser.add_argument(
        "--golden-epdms",
        type=Path,
        default=FIXTURES / "golden_v2",
        help="directory of golden EPDMS files to compare on",
    )
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="SxC", help="scenes x candidates of each row")
    parser.add_argument("--seconds", type=float, default=2.0, help="measure each row at least so long")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="where to score: cpu, cuda, cuda:1, ...")
    parser.add_argument("--json", type=Path, required=True, help="JSON file to write: a list of rows")
    parser.add_argument(
        "--max-plans-in-flight", type=int, help="bound on plans computed at once; by default the score's own"
    )
    options = parser.parse_args(argv)
    for folder in [*options.golden, *[options.golden_epdms] * options.compare]:
        if not any(folder.glob("*.npz")):
            parser.error(f"no .npz files in {folder}")
    if options.compare and (problem := choice.without_numba()):
        parser.error(f"--compare: {problem}")
    try:
        sizes = [tuple(map(int, row.split("x"))) for row in options.rows]
    except ValueError:
        sizes = []
    if not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes):
        parser.error(f"--rows takes sizes such as 120x24, found {' '.join(options.rows)}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no CUDA device")
    try:
        check_file(options.json)
    except OSError as error:
        parser.error(f"--json: {error}")
    torch.set_num_threads(options.threads)
    golden = [read_golden(path) for folder in options.golden for path in sorted(folder.glob("*.npz"))]
    print(
        f"{len(golden)} scenes of {', '.join(map(str, options.golden))}, {options.threads} thread(s), "
        f"torch {torch.__version__}, on the CPU {choice.on_cpu()}"
    )
    if options.compare:
        write_json(options.json, _compare(options, golden))
        return 0
    print(
        f"{'device':<7}{'scenes':>7} x {'candidates':<11}{'plans/s':>9}{'CPU s':>8}{'peak MB':>9}{'packed MB':>11}"
        f"{'packing/s':>11}  time share of " + " / ".join(STAGES)
    )
    rows = []
    made = made_by(device=options.device)
    for scenes, candidates in sizes:
        row = measure(golden, scenes, candidates, options.device, options.seconds, options.max_plans_in_flight)
        rows.append(row | {"threads": options.threads, "provenance": made})
        print(
            f"{row['device']:<7}{scenes:>7} x {candidates:<11}{row['plans_per_s']:>9.0f}{row['cpu_s']:>8.2f}"
            f"{row['peak_memory_mb']:>9.0f}{row['packed_scenes_mb']:>11.1f}{row['pack_scenes_per_s']:>11.0f}  "
            + " / ".join(f"{row['share'][stage]:.0%}" for stage in STAGES),
            flush=True,
        )
    write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
