"""How fast traffic that reacts is: IDM alone, without the ego's simulation and the score.

    python benchmarks/traffic_speed.py --json traffic.json                      # scenes of the test fixtures
    python benchmarks/traffic_speed.py --cache CACHE --json traffic.json        # scenes of a metric cache of epdms

A simulation is the traffic of one plan in one scene, from 0.1 s to 4 s. Scenes are repeated as often as a row needs.
In scenes of a cache the ego drives the recorded plan, and stands where there is none. Times are CPU seconds of this
process, the fastest of the passes within --seconds; wall times are given beside them.
"""

from __future__ import annotations

import dataclasses
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.cli import reporting_errors
from dpvla.files import check_file, write_json
from dpvla.provenance import made_by
from navsim_bridge.metric_cache import MetricCache
from navsim_bridge.pdm import EPDMSBatch
from navsim_bridge.pdm.metric_scene import TrafficInputs
from navsim_bridge.pdm.score import simulate_plans
from navsim_bridge.pdm.traffic_scene import SceneTraffic, without_inputs
from navsim_bridge.traffic.idm import IDM
from navsim_bridge.traffic.policy import STATE

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "idm_v2.npz"
Scenes = tuple[list[SceneTraffic], NDArray[np.float64]]
"""Scenes, and the ego's states (scene, 41, STATE) in each."""


def of_fixture(path: Path) -> Scenes:
    """The scenes and plans of the fixture that the tests compare with the devkit."""
    scenes, egos = [], []
    with np.load(path) as stored:
        for name in (name for name in stored.files if name.endswith("/ego")):
            token = name.split("/")[0]
            fields = {field.name: stored[f"{token}/{field.name}"] for field in dataclasses.fields(TrafficInputs)}
            vehicles = tuple(stored[f"{token}/tokens"].tolist())
            scenes.append(
                SceneTraffic(TrafficInputs(**fields), vehicles, stored[f"{token}/now"], stored[f"{token}/origin"])
            )
            egos.append(stored[name])
    return scenes, np.stack(egos)


def of_cache(folder: Path, most: int) -> Scenes:
    """Up to ``most`` scenes of a metric cache."""
    cache = MetricCache(folder)
    batch = EPDMSBatch.from_scenes(cache.load(cache.tokens[:most]))
    lacking = without_inputs(batch.traffic, batch.tokens)
    if lacking:
        raise ValueError(f"{folder}: scene {lacking[0]} holds nothing of what vehicles need to move; make it again")
    states = simulate_plans(batch.scenes, batch.human_plans[:, None])[:, 1, :, :STATE].numpy().copy()
    scenes = [one for one in batch.traffic.vehicles if one is not None]
    states[..., :2] += np.stack([one.origin for one in scenes])[:, None]
    return scenes, states


def measure(scenes: Sequence[SceneTraffic], egos: NDArray[np.float64], rows: int, seconds: float) -> dict[str, Any]:
    """The traffic of ``rows`` plans simulated at once."""
    row = np.arange(rows) % len(scenes)
    policy, best, wall, spent = IDM(), np.inf, np.inf, 0.0
    while spent < seconds or best == np.inf:
        began, cpu = time.perf_counter(), time.process_time()
        frames = policy.move(scenes, row, egos[row])
        cpu, took = time.process_time() - cpu, time.perf_counter() - began
        best, wall, spent = min(best, cpu), min(wall, took), spent + took
    return {
        "simulations": rows,
        "vehicles": float(np.mean([len(scenes[i].tokens) for i in row.tolist()])),
        "followers": float(np.mean([len(scenes[i].inputs.follower) for i in row.tolist()])),
        "simulations_per_cpu_s": rows / best,
        "simulations_per_s": rows / wall,
        "dead_ends": int((frames.dead_ends > 0).sum()),
    }


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Measure all rows, print the table and write the file; returns the exit status."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cache", type=Path, help="metric cache of epdms; by default scenes of the tests' fixtures")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256], help="simulations at once of each row")
    parser.add_argument("--seconds", type=float, default=2.0, help="measure each row at least so long")
    parser.add_argument("--json", type=Path, required=True, help="JSON file to write: the rows")
    options = parser.parse_args(argv)
    if min(options.rows) < 1:
        parser.error(f"--rows must be at least 1, found {min(options.rows)}")
    try:
        check_file(options.json)
    except (OSError, ValueError) as error:
        parser.error(f"--json: {error}")
    torch.set_num_threads(1)
    scenes, egos = of_cache(options.cache, max(options.rows)) if options.cache else of_fixture(FIXTURE)
    rows = [measure(scenes, egos, count, options.seconds) for count in options.rows]
    print("simulations at once | vehicles | followers | simulations/CPU s | simulations/s | with a dead end")
    for r in rows:
        print(
            f"{r['simulations']:>19,} | {r['vehicles']:>8.1f} | {r['followers']:>9.1f} | "
            f"{r['simulations_per_cpu_s']:>17,.1f} | {r['simulations_per_s']:>13,.1f} | {r['dead_ends']:>15,}"
        )
    write_json(options.json, {"rows": rows, "provenance": made_by(device="cpu")})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
