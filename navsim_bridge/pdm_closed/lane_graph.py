"""Searches on the road graph, with the devkit's order among equals.

Roadblocks are searched breadth first by number of blocks, lanes by length (Dijkstra). Where several answers are
equally short, the one that the devkit's queues bring up is taken, because the centerline depends on it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping

from navsim_bridge.files.maps import Lane, Roadblock


def link_blocks(
    blocks: Mapping[str, Roadblock], start: str, targets: Collection[str], max_blocks: int, forward: bool = True
) -> tuple[str, ...] | None:
    """The shortest chain of roadblocks between ``start`` and a target, both included, in driving order.

    The devkit's breadth-first search keeps no record of visited blocks, so a block is met as often as there are
    ways to it: the first meeting decides which of several targets is found, the last one what lies before a block.
    Both are kept here per level without the repetition, which takes the same decisions and stays small.

    Args:
        blocks: of the map. A block that is only named as a neighbor is a dead end.
        start: where the search begins; it is itself the answer when it is a target.
        targets: ids, any of which ends the search.
        max_blocks: longest chain that is looked at.
        forward: in driving direction; else from ``start`` back to a target that leads to it.

    Returns:
        The chain, or None when no target is near enough.
    """
    by_first, by_last = [start], [start]
    before: list[dict[str, str]] = []  # per level: block -> block of the level before
    for _ in range(max_blocks):
        hit = next((i for i in by_first if i in targets), None)
        if hit is not None:
            chain = [hit]
            for parents in reversed(before):
                chain.append(parents[chain[-1]])
            return tuple(reversed(chain) if forward else chain)
        by_first = list(dict.fromkeys(n for i in by_first for n in _neighbors(blocks, i, forward)))
        parents = {}
        for i in by_last:
            for neighbor in _neighbors(blocks, i, forward):
                parents.pop(neighbor, None)  # to the end of the dict
                parents[neighbor] = i
        by_last = list(parents)
        before.append(parents)
    return None


def _neighbors(blocks: Mapping[str, Roadblock], block: str, forward: bool) -> tuple[str, ...]:
    if block not in blocks:
        return ()
    return blocks[block].outgoing if forward else blocks[block].incoming


def chain_lanes(
    lanes: Mapping[str, Lane],
    start: str,
    allowed: Collection[str],
    target_block: str,
    length: Callable[[str], float],
) -> tuple[tuple[str, ...], bool]:
    """The shortest chain of lanes from ``start`` to any lane of a roadblock.

    The first lane counts as one meter, whatever its length. Of equally long ways, the one whose lane was met first
    goes on.

    Args:
        lanes: of the map.
        start: first lane of the chain.
        allowed: lanes that may follow.
        target_block: roadblock to reach.
        length: base-line length [m] of a lane.

    Returns:
        The chain, and whether it reaches the target. Where none does, the chain with the most lanes, of these the
        shortest.
    """
    before: dict[str, str | None] = {start: None}
    distance, depth, met = {start: 1.0}, {start: 1}, {start: 0}
    open_lanes = [(distance[start], met[start], start)]
    done: dict[str, None] = {}  # in the order in which lanes were settled
    while open_lanes:
        so_far, _, lane = heapq.heappop(open_lanes)
        if lane in done:
            continue  # an entry from before a shorter way was found
        if lanes[lane].block == target_block:
            return _back_to_start(before, lane), True
        done[lane] = None
        for following in lanes[lane].outgoing:
            if following not in allowed or following in done:
                continue
            total = so_far + length(following)
            if following not in met or total < distance[following]:
                before[following], distance[following], depth[following] = lane, total, depth[lane] + 1
                heapq.heappush(open_lanes, (total, met.setdefault(following, len(met)), following))
    deepest = max(depth.values())
    # Of equals, min() keeps the one that was settled first.
    return _back_to_start(before, min((i for i in done if depth[i] == deepest), key=distance.__getitem__)), False


def _back_to_start(before: Mapping[str, str | None], lane: str) -> tuple[str, ...]:
    chain = []
    current: str | None = lane
    while current is not None:
        chain.append(current)
        current = before[current]
    return tuple(reversed(chain))
