from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from navsim_bridge.files.maps import Lane, Roadblock
from navsim_bridge.pdm_closed.lane_graph import chain_lanes, link_blocks

Links = Collection[tuple[Any, ...]]


def graph(links: Links) -> dict[str, Any]:
    """Blocks from (before, after) pairs; neighbors in the order of the pairs."""
    names = dict.fromkeys(i for pair in links for i in pair)
    return {
        i: Roadblock(i, False, (), tuple(a for a, b in links if b == i), tuple(b for a, b in links if a == i))
        for i in names
    }


def search_with_repetition(
    blocks: dict[Any, Roadblock], start: Any, targets: list[Any], max_blocks: int, forward: bool
) -> tuple[Any, ...] | None:
    """Breadth first without a record of visited blocks: every way to a block is queued, the last one is kept."""
    level, ways = [start], {start: [start]}
    for _ in range(max_blocks):
        for i in level:
            if i in targets:
                return tuple(ways[i] if forward else reversed(ways[i]))
        following = [(i, n) for i in level for n in (blocks[i].outgoing if forward else blocks[i].incoming)]
        ways = {n: [*ways[i], n] for i, n in following}
        level = [n for _, n in following]
    return None


def test_linking_takes_the_same_way_as_a_search_that_queues_every_way() -> None:
    draw = np.random.default_rng(0)
    found = 0
    for _ in range(500):
        names = [f"b{i}" for i in range(draw.integers(3, 9))]
        blocks = graph(dict.fromkeys(tuple(draw.choice(names, 2)) for _ in range(draw.integers(6, 20))))
        start, *targets = draw.choice(list(blocks), 3)
        for forward in (True, False):
            expected = search_with_repetition(blocks, start, targets, 6, forward)
            assert link_blocks(blocks, start, targets, 6, forward) == expected
            found += expected is not None and len(expected) > 2
    assert found > 50


def test_of_two_ways_to_a_block_the_last_one_queued_is_taken() -> None:
    blocks = graph([("a", "left"), ("a", "right"), ("left", "end"), ("right", "end")])
    assert link_blocks(blocks, "a", ["end"], 9) == ("a", "right", "end")


def test_of_two_targets_the_first_one_queued_is_taken() -> None:
    blocks = graph([("a", "left"), ("a", "right")])
    assert link_blocks(blocks, "a", ["right", "left"], 9) == ("a", "left")


def test_linking_counts_both_ends_and_stops_at_dead_ends() -> None:
    blocks = graph([("a", "b"), ("b", "c"), ("c", "nowhere")])
    del blocks["nowhere"]
    assert link_blocks(blocks, "a", ["c"], 3) == ("a", "b", "c")
    assert link_blocks(blocks, "a", ["c"], 2) is None
    assert link_blocks(blocks, "c", ["a"], 3, forward=False) == ("a", "b", "c")
    assert link_blocks(blocks, "a", ["a"], 1) == ("a",)
    assert link_blocks(blocks, "a", ["elsewhere"], 50) is None


def test_linking_stays_small_where_ways_are_countless() -> None:
    width = [f"{level}{side}" for level in range(40) for side in "lr"]
    links = [(a, b) for a in width for b in width if int(b[:-1]) == int(a[:-1]) + 1]
    found = link_blocks(graph(links), "0l", ["39l"], 40)  # 2^39 ways
    assert found is not None
    assert len(found) == 40


def lane_graph(links: Links, block_of: dict[str, str] | None = None) -> dict[str, Any]:
    blocks = graph(links)
    line = np.zeros((2, 3))
    return {
        i: Lane(i, (block_of or {}).get(i, f"block {i}"), False, 10.0, b.incoming, b.outgoing, line)
        for i, b in blocks.items()
    }


def shortest_ways(
    lanes: dict[Any, Lane], start: Any, allowed: set[Any], length: dict[Any, float]
) -> dict[Any, tuple[list[Any], float]]:
    """Lane -> shortest way to it and its length, by following every way without a repeated lane."""
    best: dict[Any, tuple[list[Any], float]] = {}
    todo = [([start], 0.0)]
    while todo:
        way, meters = todo.pop()
        if way[-1] not in best or meters < best[way[-1]][1]:
            best[way[-1]] = (way, meters)
        todo += [([*way, n], meters + length[n]) for n in lanes[way[-1]].outgoing if n in allowed and n not in way]
    return best


def test_the_chain_is_the_shortest_of_all_or_else_the_one_with_most_lanes() -> None:
    draw = np.random.default_rng(1)
    reached = missed = 0
    for _ in range(500):
        names = [f"l{i}" for i in range(draw.integers(3, 8))]
        lanes = lane_graph(dict.fromkeys(tuple(draw.choice(names, 2)) for _ in range(draw.integers(4, 16))))
        length = {i: float(draw.uniform(1, 9)) for i in lanes}
        start, end = draw.choice(list(lanes), 2)
        allowed = {i for i in lanes if draw.random() < 0.8}
        ways = shortest_ways(lanes, start, allowed, length)
        chain, found = chain_lanes(lanes, start, allowed, f"block {end}", length.__getitem__)
        assert found == (end in ways)
        if found:
            assert chain == tuple(ways[end][0])
            reached += len(chain) > 2
        else:
            most = max(len(way) for way, _ in ways.values())
            expected = min((meters, way) for way, meters in ways.values() if len(way) == most)[1]
            assert chain == tuple(expected)
            missed += len(chain) > 2
    assert min(reached, missed) > 20


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")])
def test_of_equally_long_chains_the_lane_met_first_goes_on(order: tuple[str, str]) -> None:
    links = [("a", order[0]), ("a", order[1]), ("left", "end"), ("right", "end")]
    chain, found = chain_lanes(lane_graph(links), "a", {"left", "right", "end"}, "block end", lambda lane: 5.0)
    assert found
    assert chain == ("a", order[0], "end")


def test_the_first_lane_is_the_whole_chain_when_it_lies_in_the_target() -> None:
    lanes = lane_graph([("a", "b"), ("b", "a")], {"a": "goal", "b": "goal"})
    assert chain_lanes(lanes, "a", {"a", "b"}, "goal", lambda lane: 1.0) == (("a",), True)
    assert chain_lanes(lanes, "b", set(), "elsewhere", lambda lane: 1.0) == (("b",), False)
