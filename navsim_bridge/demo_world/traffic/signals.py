"""Traffic lights with fixed cycles: two phases per crossroads, each green, yellow, then red for everybody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from navsim_bridge.demo_world.roads.network import RoadNetwork

GREEN, YELLOW, RED = 0, 1, 2
GREEN_SECONDS, YELLOW_SECONDS, CLEARANCE_SECONDS = 9.5, 2.0, 1.5
HALF_CYCLE = GREEN_SECONDS + YELLOW_SECONDS + CLEARANCE_SECONDS


@dataclass(frozen=True)
class Signals:
    """Light of every carriageway that ends at a crossroads, as a function of time."""

    network: RoadNetwork
    offsets: tuple[float, ...]  # per node [s]

    def state(self, carriageway: int, time: float) -> int:
        """GREEN, YELLOW or RED for traffic that leaves the carriageway; GREEN where there is no light."""
        node = self.network.nodes[self.network.carriageways[carriageway].to_node]
        if not node.signalled:
            return GREEN
        phase = (time + self.offsets[node.index] - node.phase_of_source[carriageway] * HALF_CYCLE) % (2 * HALF_CYCLE)
        return GREEN if phase < GREEN_SECONDS else YELLOW if phase < GREEN_SECONDS + YELLOW_SECONDS else RED

    def seconds_of_red_left(self, carriageway: int, time: float) -> float:
        """How long the carriageway's light stays red (0 if it is not)."""
        if self.state(carriageway, time) != RED:
            return 0.0
        node = self.network.nodes[self.network.carriageways[carriageway].to_node]
        phase = (time + self.offsets[node.index] - node.phase_of_source[carriageway] * HALF_CYCLE) % (2 * HALF_CYCLE)
        return 2 * HALF_CYCLE - phase


def draw_signals(network: RoadNetwork, rng: np.random.Generator) -> Signals:
    """Random offsets between the crossroads."""
    return Signals(network, tuple(float(o) for o in rng.uniform(0, 2 * HALF_CYCLE, len(network.nodes))))
