"""Collect a small ExORL-like data set with RND exploration, for machines that do not have the official files.

python tools/collect_exorl.py --domain walker --episodes 300 --out data/exorl
"""

from __future__ import annotations

from dpvla.cli import command
from dpvla.state_based.data.exorl.collection_config import ExORLCollection


@command(ExORLCollection, __doc__)
def main(config: ExORLCollection) -> None:
    from dpvla.state_based.data.exorl.collection import collect_episodes

    buffer = collect_episodes(config)
    print(f"{buffer}: {len(list(buffer.glob('*.npz')))} episodes; locally generated")


if __name__ == "__main__":
    main()
