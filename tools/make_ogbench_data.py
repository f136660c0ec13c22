"""Make OGBench data with the package's scripted oracles, for machines that cannot download the official files.

python tools/make_ogbench_data.py --env cube-single-play --out data/ogbench                  # as much as the official
python tools/make_ogbench_data.py --env pointmaze-medium-navigate --episodes 50 --out data/ogbench
"""

from __future__ import annotations

from dpvla.cli import command
from dpvla.state_based.data.ogbench.generation import OGBenchGeneration, generate


@command(OGBenchGeneration, __doc__)
def main(config: OGBenchGeneration) -> None:
    about = generate(config)
    counts = ", ".join(f"{part} {rows}" for part, rows in about["rows"].items())
    print(f"{config.out}/{config.env}-v0.npz: rows {counts}; {about['origin']}")


if __name__ == "__main__":
    main()
