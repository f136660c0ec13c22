"""The options of tools that let an agent drive, and the agent that they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpvla.cli import refuse_given
from dpvla.config import Count, NotNegative
from navsim_bridge.agents.agent import Agent
from navsim_bridge.agents.registry import find_agent


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """Who drives."""

    agent: str  # dpvla, constant_velocity, stand_still, human, or one of yours
    plugin: tuple[str, ...] = ()  # your modules (or .py files) that add agents, metrics, encoders, ...
    checkpoint: str | None = None  # dpvla: checkpoint or model directory
    omega: NotNegative | None = None  # dpvla: greediness of the guided combination; default: what it was trained with
    batch_size: Count = 64  # dpvla: scenes planned together
    device: str = "auto"  # cpu, cuda, cuda:1, ...

    def check_agent(self, *further: str) -> None:
        """Raise ValueError when agent and options do not fit; ``further``: a tool's own options of the policy."""
        from navsim_bridge.agents.policy_agent import PolicyAgent  # with torch, which options do not need

        if find_agent(self.agent) is not PolicyAgent:
            refuse_given(self, ["checkpoint", *further, "omega", "batch_size"], "--agent dpvla")
        elif not self.checkpoint:
            raise ValueError("--agent dpvla needs --checkpoint")

    def open_agent(self, data_root: Path | str, seed: int = 0) -> Agent:
        """The agent; a policy's weights are read, its plans vary with ``seed``.

        Raises FileNotFoundError or ValueError when there is no such checkpoint, or its policy has no use for omega.
        """
        from dpvla.device import usable_device
        from navsim_bridge.agents.policy_agent import PolicyAgent

        agent: Agent = find_agent(self.agent)
        if agent is not PolicyAgent:
            return agent
        assert self.checkpoint is not None
        policy = PolicyAgent.from_checkpoint(
            self.checkpoint,
            data_root,
            usable_device(self.device),
            omega=self.omega,
            seed=seed,
            batch_size=self.batch_size,
        )
        policy.refuse_idle_omega()
        return policy
