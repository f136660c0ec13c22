"""Size and speed of the packed metric cache.

    python benchmarks/cache_speed.py --json cache_speed.json

Scenes come from golden files (default: those of the test suite), from official caches (--official-cache) or from a
finished cache (--cache). Golden scenes share no map and are packed `--scenes-per-log` to a file; scenes of a real log
share most of theirs. Times are CPU seconds of one process; the best of `--repeats`. Reading starts with the index and
checks every byte of every file (files are in the page cache), and ends with a `SceneBatch`.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.metric_cache import MetricCache, build_metric_cache, convert_official_cache
from navsim_bridge.metric_cache.cache import finish
from navsim_bridge.metric_cache.jobs import log_entry
from navsim_bridge.metric_cache.store import SUFFIX
from navsim_bridge.metrics.scene_rules import NAVSIM_V1
from navsim_bridge.pdm.scene import SceneBatch

GOLDEN = Path(__file__).resolve().parent.parent / "tests/fixtures/golden_v1"


def pack_golden(paths: list[Path], per_log: int, out: Path) -> MetricCache:
    """A cache of golden scenes, ``per_log`` to a file."""
    scenes = [read_golden(path).scene for path in paths]
    logs: dict[str, dict[str, Any]] = {}
    for first in range(0, len(scenes), per_log):
        part = scenes[first : first + per_log]
        name = f"golden_{first:05d}"
        logs[name] = log_entry(out / f"{name}{SUFFIX}", name, len(part), lambda part=part: part)  # type: ignore[misc]
    finish(out, logs, {"metric": NAVSIM_V1.name, "split": "golden", "data_split": ""}, maps={})
    return MetricCache(out)


def best(repeats: int, run: Callable[[], object]) -> float:
    """Least CPU seconds of ``run``."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def measure(name: str, cache: MetricCache, batch_size: int, repeats: int, made_in: float | None) -> dict[str, Any]:
    """One row of the table. ``made_in``: CPU seconds that writing the cache took."""
    tokens = cache.tokens

    def read_all() -> None:
        fresh = MetricCache(cache.path)
        for first in range(0, len(tokens), batch_size):
            SceneBatch.from_scenes(fresh.load(tokens[first : first + batch_size]))

    size = sum(path.stat().st_size for path in cache.path.iterdir())
    seconds = best(repeats, read_all)
    return {
        "scenes_from": name,
        "scenes": len(tokens),
        "files": len(cache.index["logs"]),
        "bytes_per_scene": round(size / len(tokens)),
        "scenes_per_s_per_core": round(len(tokens) / seconds),
        "written_scenes_per_s": round(len(tokens) / made_in) if made_in else None,
        "device": "cpu",
    }


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="directory of golden .npz files")
    parser.add_argument("--scenes-per-log", type=int, default=30, help="golden scenes to a file")
    parser.add_argument("--official-cache", type=Path, help="also convert and measure this official metric cache")
    parser.add_argument("--data-root", type=Path, help="also build and measure the cache of a split of this data")
    parser.add_argument("--maps-root", type=Path, help="its maps (default: maps/ below the data root)")
    parser.add_argument("--split", help="its split: a name or YAML file")
    parser.add_argument("--cache", type=Path, action="append", default=[], help="also measure this finished cache")
    parser.add_argument("--batch-size", type=int, default=128, help="scenes per SceneBatch")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the best counts")
    parser.add_argument("--json", type=Path, help="file for the rows and what made them")
    options = parser.parse_args(argv)
    if (options.data_root is None) != (options.split is None):
        parser.error("--data-root and --split go together")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:

        def made(name: str, make: Callable[[Path], MetricCache]) -> None:
            begin = time.process_time()
            cache = make(Path(folder) / f"{len(rows)}")
            seconds = time.process_time() - begin
            rows.append(measure(name, cache, options.batch_size, options.repeats, seconds))

        paths = sorted(options.golden.glob("*.npz"))
        if not paths:
            parser.error(f"no .npz files in {options.golden}")
        made("golden files", lambda out: pack_golden(paths, options.scenes_per_log, out))
        if options.official_cache:
            made("official cache", lambda out: convert_official_cache(options.official_cache, out, progress=False))
        if options.data_root:
            maps = options.maps_root or options.data_root / "maps"
            made(
                "logs + maps",
                lambda out: build_metric_cache(options.data_root, maps, options.split, out, 1, False, False),
            )
        for path in options.cache:
            rows.append(measure(str(path), MetricCache(path), options.batch_size, options.repeats, None))
    print(f"{'scenes from':<24}{'scenes':>8}{'files':>7}{'bytes/scene':>13}{'read/s/core':>13}{'written/s':>11}")
    for row in rows:
        print(
            f"{row['scenes_from'][-24:]:<24}{row['scenes']:>8}{row['files']:>7}{row['bytes_per_scene']:>13}"
            f"{row['scenes_per_s_per_core']:>13}{row['written_scenes_per_s'] or '-':>11}"
        )
    if options.json:
        write_json(options.json, {"rows": rows, "made_by": made_by()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
