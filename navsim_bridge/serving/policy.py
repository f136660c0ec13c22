"""A policy as it is served: what it is called, and how it names its scenes' noise."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

import dpvla
from dpvla.training.start import open_start
from navsim_bridge.agents.policy_agent import PolicyAgent
from navsim_bridge.serving.batches import Plans
from navsim_bridge.serving.requests import AskedScene, SceneNames, batch_of
from navsim_bridge.serving.server import PolicyServer


class NamedPlans:
    """Plans of scenes, whose noise is that of `tools/evaluate.py` where their tokens are known."""

    def __init__(self, agent: PolicyAgent, names: SceneNames) -> None:
        self._agent, self._names = agent, names
        self.unknown = 0
        """Scenes so far whose token was not known."""

    def __call__(self, scenes: Sequence[AskedScene]) -> Plans:
        """(scene, 8, 3) their plans. Raises ValueError for one that is not finite."""
        named = [self._names.name(scene) for scene in scenes]
        plans = self._agent.plan(batch_of(scenes, [name for name, _ in named]))
        self.unknown += sum(not is_token for _, is_token in named)
        return plans


def policy_server(
    agent: PolicyAgent, plans: NamedPlans, checkpoint: str, listener: socket.socket, batch_size: int
) -> PolicyServer:
    """What serves it; ``checkpoint``: where its weights are from."""
    return PolicyServer(
        plans,
        agent.policy.encoder.sensors,
        listener,
        policy=describe(agent, checkpoint),
        version=dpvla.__version__,
        batch_size=batch_size,
    )


def describe(agent: PolicyAgent, checkpoint: str) -> str:
    """What distinguishes its plans from those of others: two with the same words plan the same."""
    start = open_start(checkpoint)
    omega = "" if agent.guidance is None else f", omega {agent.guidance:g}"
    chosen = "" if agent.about_selection is None else f", selected {json.dumps(agent.about_selection, sort_keys=True)}"
    return f"{start.path} (weights {start.weights_hash()[:12]}{omega}, seed {agent.seed}{chosen})"
