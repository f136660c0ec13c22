"""Collect a small ExORL-like data set with an RND agent, for machines that do not have the official files.

python tools/collect_exorl.py --domain walker --episodes 300 --out data/exorl
"""

from __future__ import annotations

from collections.abc import Sequence

from dpvla.cli import parse, reporting_errors
from dpvla.state_based.data.exorl_collection import ExORLCollection, collect


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(ExORLCollection, argv, description=__doc__)
    buffer = collect(config)
    print(f"{buffer}: {len(list(buffer.glob('*.npz')))} episodes; locally generated")


if __name__ == "__main__":
    main()
