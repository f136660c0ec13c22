"""Build the metric cache of a split from logs and maps, or convert an official metric cache to the packed form.

On several machines: `--executor ray` on a Ray cluster; or `--shard K/N` on each (or `accelerate launch` / `torchrun`),
then `--merge OUT --out OUT`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.config import Workers
from dpvla.files import check_folder
from dpvla.parallel import AnyExecutor, ProcessesConfig, make_executor
from navsim_bridge.files import roots
from navsim_bridge.files.roots import DataAndMapOptions
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.shard import Shard


@dataclass(frozen=True, kw_only=True)
class CacheMetrics(DataAndMapOptions):
    """Build the metric cache of a split from logs and maps, or from the devkit's own metric cache (v1.1 or v2).

    A split of two stages, such as navhard_two_stage, is cached with its synthetic scenes (--metric epdms).

    An interrupted run goes on where it stopped. --executor ray uses all machines of a Ray cluster that share folders.
    Or, on several machines with a shared folder (or folders copied together afterwards), give each its --shard K/N,
    then join the parts with --merge DIR [DIR ...] --out DIR; the processes of `accelerate launch` and torchrun take
    their shards from RANK and WORLD_SIZE.
    """

    out: str  # folder of the cache; shards go into shard-K-of-N below it
    metric: str = "pdms"  # whose scenes: pdms (NAVSIM v1), epdms (v2), or a metric of a plug-in
    plugin: tuple[str, ...] = ()  # modules of yours with further metrics
    split: str | None = None  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    official_cache: str | None = None  # instead of a split: folder that the devkit's metric caching wrote
    merge: tuple[str, ...] = ()  # instead of a split: shards, or folders that hold them
    shard: str | None = None  # K/N, such as 3/16: only this part of the split's logs
    workers: Workers = 0  # processes (0: one per core, divided among the processes that a launcher starts here)
    executor: AnyExecutor = field(default_factory=ProcessesConfig)  # who runs the workers
    allow_missing: bool = False  # cache (or merge) what there is if logs, scenes or shards are missing; loses no scene


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(CacheMetrics, argv)
    from navsim_bridge.metric_cache import build_metric_cache, convert_official_cache, merge_caches

    if sum(map(bool, (options.split, options.official_cache, options.merge))) != 1:
        raise ValueError("give one of --split, --official-cache and --merge")
    if not options.split:
        refuse_given(options, ["shard", "data_split", "synthetic_root", "metric"], "--split")
    if options.merge:
        refuse_given(options, ["workers", "executor"], "--split and --official-cache")
    if options.official_cache:
        refuse_given(options, ["allow_missing"], "--split and --merge")
    rules = make_metric(options.metric).scene_rules
    if rules is None:
        raise ValueError(f"--metric {options.metric} needs no metric scenes: there is nothing to cache")
    check_folder(options.out)
    workers = make_executor(options.executor, options.workers)
    shard = Shard.parse(options.shard) if options.shard else Shard.from_environment()
    if shard is not None and not options.split:
        raise ValueError("only --split can be worked on by several launched processes; run this one without launcher")
    start = time.perf_counter()
    if options.merge:
        cache = merge_caches(options.merge, options.out, options.allow_missing)
    elif options.official_cache:
        cache = convert_official_cache(
            options.official_cache, options.out, workers=workers, maps_root=options.maps_root
        )
    else:
        assert options.split is not None
        data_root = roots.data_root(options.data_root)
        cache = build_metric_cache(
            data_root,
            roots.maps_root(options.maps_root),
            load_split(options.split, data_root, options.data_split, options.synthetic_root),
            options.out,
            workers=workers,
            allow_missing=options.allow_missing,
            rules=rules,
            shard=shard,
        )
    seconds = time.perf_counter() - start
    part = cache.coverage
    print(f"{part} of {cache.index['split']} in {cache.path} after {seconds:.1f} s")
    if not part.is_whole:
        print(f"NOT the whole split: {part.why}. Evaluations over it need --allow-missing, too.")
    if shard is not None:
        print(f"shard {shard}; when all are there: tools/cache_metrics.py --merge {options.out} --out {options.out}")


if __name__ == "__main__":
    main()
