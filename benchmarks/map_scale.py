"""Load time, query time and memory of a map of real-city size.

    OMP_NUM_THREADS=1 python benchmarks/map_scale.py --tiles 20 --workers 1 2 4 8

The map is made here: `--tiles` x `--tiles` copies of a demo town side by side in one GeoPackage, each with ids of its
own. Then worker processes open it, either each from the GeoPackage or all from the files of `share_maps`, ask for the
drivable area around `--queries` places each, and look at their memory while all hold their map. A worker's own memory
is what it adds to the machine's; pages of mapped files are divided by the workers that use them. Both are less what
Python and the libraries take before the map is opened. Times are CPU seconds. Needs Linux and, for each worker with a
copy of its own, memory about 1.5 times the size of the GeoPackage.
"""

from __future__ import annotations

import multiprocessing
import resource
import sqlite3
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from navsim_bridge.demo_world.config import LOCATIONS
from navsim_bridge.demo_world.files.map_writer import LAYERS, write_map, write_map_index
from navsim_bridge.demo_world.roads.network import build_network
from navsim_bridge.files.maps import map_path, open_map, share_maps, use_shared_maps

TOWN = LOCATIONS[2]
SPACING = 1200.0
"""Meters from one town to the next; they do not touch."""
RADIUS = 100.0


def make_map(root: Path, tiles: int) -> Path:
    """Write ``tiles`` x ``tiles`` towns as the map of one location; returns the GeoPackage."""
    network = build_network(TOWN, seed=0)
    write_map_index(root)
    whole: sqlite3.Connection | None = None
    with tempfile.TemporaryDirectory() as scratch:
        for number in tqdm(range(tiles * tiles), desc="towns", unit="town"):
            column, row = divmod(number, tiles)
            origin = TOWN.origin[0] + SPACING * column, TOWN.origin[1] + SPACING * row
            town = replace(network, location=replace(TOWN, index=number, origin=origin))
            path = write_map(town, root if whole is None else Path(scratch))
            if whole is None:
                whole = sqlite3.connect(path, isolation_level=None)
                whole.execute("PRAGMA synchronous = OFF")
                whole.execute("PRAGMA journal_mode = OFF")
                continue
            whole.execute("ATTACH ? AS town", (str(path),))
            whole.execute("BEGIN")
            for layer in LAYERS:
                whole.execute(f'INSERT INTO main."{layer}" SELECT * FROM town."{layer}"')
            whole.execute("COMMIT")
            whole.execute("DETACH town")
    assert whole is not None
    whole.close()
    return map_path(root, TOWN.name)


def memory() -> tuple[float, float]:
    """MB of this process: memory of its own, and its share of the pages of mapped files."""
    values = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        values[name.rstrip(":")] = int(value) / 1024
    return values["Anonymous"], values["Pss"] - values["Anonymous"]


def places(seed: int, tiles: int, towns: int, count: int) -> NDArray[np.float64]:
    """(count, 2) points around the centers of so many random towns."""
    rng = np.random.default_rng(seed)
    visited = rng.integers(tiles, size=(towns, 2))[rng.integers(towns, size=count)]
    return np.array(TOWN.origin) + SPACING * visited + rng.uniform(-200, 200, (count, 2))


def work(
    seed: int, root: Path, shared: Path | None, options: tuple[int, int, int], together: Barrier, results: Any
) -> None:
    """One worker: open, query, report. ``options``: tiles, towns that the worker visits, queries."""
    tiles, towns, queries = options
    points = places(seed, tiles, towns, queries)
    own, mapped = memory()
    together.wait()
    start = time.process_time()
    if shared is not None:
        use_shared_maps(root, shared)
    vector_map = open_map(root, TOWN.name)
    opened = time.process_time()
    polygons = sum(len(vector_map.drivable(x, y, RADIUS)) for x, y in points)
    first = time.process_time()
    for x, y in points:
        vector_map.drivable(x, y, RADIUS)
    again = time.process_time()
    for x, y in points:
        vector_map.lanes_at(x, y)
    located = time.process_time()
    together.wait()  # all hold their map
    own_after, mapped_after = memory()
    together.wait()
    per_query = 1000 / queries
    results.put(
        {
            "open_s": opened - start,
            "drivable_first_ms": (first - opened) * per_query,
            "drivable_again_ms": (again - first) * per_query,
            "lanes_at_ms": (located - again) * per_query,
            "polygons": polygons / queries,
            "own_mb": own_after - own,
            "mapped_mb": max(0.0, mapped_after - mapped),
        }
    )


def measure(root: Path, shared: Path | None, workers: int, options: tuple[int, int, int]) -> dict[str, Any]:
    """Mean over ``workers`` processes that hold the map at the same time."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(workers, timeout=600), context.Queue()
    processes = [context.Process(target=work, args=(i, root, shared, options, together, results))
                 for i in range(workers)]  # fmt: skip
    for process in processes:
        process.start()
    rows = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    means = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
    return {"maps": "shared files" if shared else "own copy", "workers": workers, **means}


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/map_scale"), help="maps folder; made when absent")
    parser.add_argument("--tiles", type=int, default=20, help="towns along each side of the city")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes to measure")
    parser.add_argument("--queries", type=int, default=500, help="places that each worker asks about")
    parser.add_argument("--towns", type=int, default=20, help="towns among which a worker's places are")
    parser.add_argument("--json", type=Path, help="file for the rows and what made them")
    options = parser.parse_args(argv)
    root = options.root / f"{options.tiles}x{options.tiles}"
    path = root / TOWN.name / TOWN.version / "map.gpkg"
    if not path.is_file():
        path = make_map(root, options.tiles)
    sizes = {layer: pyogrio.read_info(path, layer=layer)["features"] for layer in LAYERS}
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, {sizes['lanes_polygons']} lanes, "
          f"{sizes['lane_connectors']} connectors, {sum(sizes.values())} objects")  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=root) as folder:
        start = time.process_time()
        share_maps(root, [TOWN.name], Path(folder))
        sharing = time.process_time() - start
        shared_mb = sum(file.stat().st_size for file in Path(folder).rglob("*.npy")) / 1e6
        print(f"read and written as {shared_mb:.0f} MB of arrays in {sharing:.1f} CPU s; peak "
              f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB of memory")  # fmt: skip
        print(f"{'maps':<14}{'workers':>8}{'open s':>8}{'drivable ms: first':>20}{'again':>7}{'lanes_at ms':>13}"
              f"{'own MB/worker':>15}{'mapped MB/worker':>18}")  # fmt: skip
        for workers in options.workers:
            for shared in (None, Path(folder)):
                row = measure(root, shared, workers, (options.tiles, options.towns, options.queries))
                rows.append(row)
                print(f"{row['maps']:<14}{workers:>8}{row['open_s']:>8.2f}{row['drivable_first_ms']:>20.2f}"
                      f"{row['drivable_again_ms']:>7.2f}{row['lanes_at_ms']:>13.3f}{row['own_mb']:>15.0f}"
                      f"{row['mapped_mb']:>18.0f}")  # fmt: skip
    if options.json:
        about = {"map_mb": path.stat().st_size / 1e6, "objects": sizes, "arrays_mb": shared_mb, "sharing_s": sharing}
        write_json(options.json, {"rows": rows, "map": about, "made_by": made_by()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
