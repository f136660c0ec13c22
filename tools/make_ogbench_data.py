"""Make OGBench data with the package's scripted oracles, for machines that cannot download the official files.

python tools/make_ogbench_data.py --env cube-single-play --out data/ogbench                  # as much as the official
python tools/make_ogbench_data.py --env pointmaze-medium-navigate --episodes 50 --out data/ogbench
"""

from __future__ import annotations

from collections.abc import Sequence

from dpvla.cli import parse, reporting_errors
from dpvla.state_based.data.ogbench_generation import OGBenchGeneration, generate


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(OGBenchGeneration, argv, description=__doc__)
    about = generate(config)
    counts = ", ".join(f"{part} {rows}" for part, rows in about["rows"].items())
    print(f"{config.out}/{config.env}-v0.npz: rows {counts}; {about['origin']}")


if __name__ == "__main__":
    main()
