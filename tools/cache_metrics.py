"""Build the metric cache of a split from logs and maps, or convert an official metric cache to the packed form."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dpvla import config
from dpvla.config import reporting_errors
from navsim_bridge import roots
from navsim_bridge.metric_cache import MetricName, build_metric_cache, convert_official_cache


@dataclass(frozen=True)
class CacheMetrics:
    """Build the metric cache of a split from logs and maps, or from the devkit's own metric cache (v1.1).

    An interrupted run goes on where it stopped.
    """

    out: str  # folder of the cache
    metric: MetricName = "pdms"  # NAVSIM v1, or v2
    split: str = ""  # name of a split, or a YAML file in the devkit's scene-filter schema
    official_cache: str = ""  # instead of a split: folder that the devkit's metric caching wrote
    data_root: str = ""  # folder with navsim_logs/; default: OPENSCENE_DATA_ROOT, then the demo world
    maps_root: str = ""  # folder with nuplan-maps-v1.0.json; default: NUPLAN_MAPS_ROOT, then the demo world
    workers: int = os.cpu_count() or 1  # processes
    allow_missing: bool = False  # cache what there is when logs or scenes of the split are missing


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = config.parse(CacheMetrics, argv)
    if bool(options.split) == bool(options.official_cache):
        raise ValueError("give either --split or --official-cache")
    if options.official_cache and options.metric != "pdms":
        raise ValueError("--official-cache reads the devkit's caches of v1.1, which are for --metric pdms")
    start = time.perf_counter()
    if options.official_cache:
        cache = convert_official_cache(options.official_cache, options.out, workers=options.workers)
    else:
        cache = build_metric_cache(
            roots.data_root(options.data_root),
            roots.maps_root(options.maps_root),
            options.split,
            options.out,
            workers=options.workers,
            allow_missing=options.allow_missing,
            metric=options.metric,
        )
    seconds = time.perf_counter() - start
    print(f"{len(cache)} scenes of {cache.index['split']} in {cache.path} after {seconds:.1f} s")


if __name__ == "__main__":
    main()
