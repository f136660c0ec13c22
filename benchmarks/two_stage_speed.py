"""How fast tokens of the second stage are scored in traffic that reacts: all of it but planning.

    python tools/cache_metrics.py --metric epdms --split SPLIT --out CACHE
    python benchmarks/two_stage_speed.py --cache CACHE --json speed.json

Synthetic scenes of the cache are repeated to --tokens tokens. In each the ego drives on at its speed. A pass reads the
scenes from the cache, packs them, simulates plans and traffic, scores, and says what cost points, as the evaluation
does, 256 scenes at a time in one thread. Times are CPU seconds of this process, the fastest of --passes passes; wall
times are given beside them. The official script takes 2.2 s a token (measured by others on the real data).
"""

from __future__ import annotations

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.cli import reporting_errors
from dpvla.files import check_file, write_json
from dpvla.plan import NUM_POSES, POSE_INTERVAL
from dpvla.provenance import made_by
from navsim_bridge.agents.crew import SCENES_AT_ONCE
from navsim_bridge.metric_cache import MetricCache
from navsim_bridge.metrics.config import EPDMSConfig
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.pdm.compiled.choice import on_cpu
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.two_stage import SYNTHETIC_TOKEN

OFFICIAL_SECONDS = 2.2
"""[s] A token of the official two-stage script."""


def straight_on(scenes: Sequence[MetricScene]) -> NDArray[np.float64]:
    """(scene, 1, 8, 3) plans at the present speed."""
    speed = np.hypot(*np.stack([scene.ego_state[3:5] for scene in scenes]).T)
    plans = np.zeros((len(scenes), 1, NUM_POSES, 3))
    plans[..., 0] = speed[:, None, None] * np.arange(1, NUM_POSES + 1) * POSE_INTERVAL
    return plans


def one_pass(metric: EPDMS, cache: MetricCache, tokens: Sequence[str]) -> None:
    """Score all tokens."""
    for first in range(0, len(tokens), SCENES_AT_ONCE):
        scenes = cache.load(tokens[first : first + SCENES_AT_ONCE])
        packed, plans = metric.pack(scenes), torch.from_numpy(straight_on(scenes))
        terms = metric.judge(packed, plans)
        metric.values(terms)
        metric.explain(packed, plans, terms)


@reporting_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the rates and write the file; returns the exit status."""
    assert __doc__ is not None
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="metric cache of epdms of a split of two stages")
    parser.add_argument("--tokens", type=int, default=1000, help="synthetic tokens of a pass")
    parser.add_argument("--passes", type=int, default=3, help="the fastest counts")
    parser.add_argument("--json", type=Path, required=True, help="JSON file to write: the rates")
    options = parser.parse_args(argv)
    if min(options.tokens, options.passes) < 1:
        parser.error("--tokens and --passes must be at least 1")
    try:
        check_file(options.json)
    except (OSError, ValueError) as error:
        parser.error(f"--json: {error}")
    torch.set_num_threads(1)
    cache = MetricCache(options.cache)
    there = [token for token in cache.tokens if len(token) == SYNTHETIC_TOKEN]
    if not there:
        parser.error(f"{options.cache} holds no synthetic scenes: make it of a split of two stages")
    tokens = [there[i % len(there)] for i in range(options.tokens)]
    rows = {}
    for traffic in ("idm", "log_replay"):
        metric = EPDMS(EPDMSConfig(traffic=traffic))
        cache.require_metric(metric)
        one_pass(metric, cache, tokens[:SCENES_AT_ONCE])  # compiles and loads what there is
        times = []
        for _ in range(options.passes):
            cpu, wall = time.process_time(), time.perf_counter()
            one_pass(metric, cache, tokens)
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = np.min(times, axis=0).tolist()
        rows[traffic] = {
            "tokens_per_cpu_s": len(tokens) / cpu,
            "tokens_per_s": len(tokens) / wall,
            "times_the_official_speed": OFFICIAL_SECONDS * len(tokens) / cpu,
        }
        print(
            f"traffic {traffic}: {len(tokens):,} tokens ({len(there)} scenes) in {cpu:.2f} CPU s ({wall:.2f} s): "
            f"{len(tokens) / cpu:.1f} a CPU second, {OFFICIAL_SECONDS * len(tokens) / cpu:.0f} times the official speed"
        )
    print(f"scored by {on_cpu()}")
    about = {"tokens": len(tokens), "scenes": len(there), "scored_by": on_cpu()}
    write_json(options.json, {**about, "rows": rows, "provenance": made_by(device="cpu")})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
