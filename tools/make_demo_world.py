"""Make the demo world: a small synthetic driving world in NAVSIM's own file formats.

python tools/make_demo_world.py                                  # the default world, data/demo_world
python tools/make_demo_world.py --root data/big --num-train-logs 60 --image-width 1920 --image-height 1080
"""

from __future__ import annotations

from collections.abc import Sequence

from dpvla.cli import parse, reporting_errors
from navsim_bridge.demo_world import DemoWorldConfig, make_demo_world


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(DemoWorldConfig, argv, description=__doc__)
    summary = make_demo_world(config)
    splits = ", ".join(f"{name} {count}" for name, count in summary["splits"].items())
    print(f"{config.root}: {summary['logs']} logs, {summary['images']} images; {splits}")


if __name__ == "__main__":
    main()
