"""The state-based track as a ``Stage`` of the one loop, and what it leaves on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import nn

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.agent_files import save_agent
from dpvla.state_based.data.replay import Replay
from dpvla.training.stage import Track, WholeWeights

Evaluate = Callable[[int], Mapping[str, float]]
"""``step -> named numbers``, with the agent as it is."""

Collect = Callable[[int], Mapping[str, float]]
"""Called before update ``step`` (from 1): takes environment steps, adds them to the replay, returns what to log."""


class AgentStage:
    """A ``Stage`` of ``training.loop``: an agent learns from a replay that may grow while it does.

    ``train(AgentStage(...), loop, out, accelerator, make_update(launch))``. Offline first and online afterwards is two
    calls in the same directory: the second, with ``collect`` and more steps, goes on from the first one's last
    checkpoint.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        describe: Callable[[Path], None],
        evaluate: Evaluate | None = None,
        collect: Collect | None = None,
        stride: int = 1,
    ) -> None:
        """``describe`` writes ``run.yaml``; ``stride`` is the launch's ``per_step``."""
        self.agent, self.replay = agent, replay
        self.module: nn.Module = agent
        self._describe, self._evaluate, self._collect, self._stride = describe, evaluate, collect, stride

    def batches(self, first_step: int, track: Track, whole_weights: WholeWeights) -> Iterator[Replay]:
        """The replay, once per step of the loop; the update draws its rows from it."""
        step = first_step
        while True:
            if self._collect is not None and (values := self._collect(step + 1)):
                track(step, values)
            yield self.replay
            step += self._stride

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Whatever the caller measures."""
        return {} if self._evaluate is None else self._evaluate(step)

    def save(self, directory: Path) -> None:
        """``model/``, ``run.yaml``, and the collected rows if there may be any."""
        save_agent(self.agent, CheckpointLayout(directory).model)
        self._describe(directory)
        if self.replay.capacity:
            self.replay.save(CheckpointLayout(directory).replay)

    def restore(self, directory: Path) -> None:
        """Take up the collected rows; what ``collect`` holds itself is the caller's (``online.OnlineStage``)."""
        path = CheckpointLayout(directory).replay
        if self.replay.capacity and path.exists():
            self.replay.load(path)
