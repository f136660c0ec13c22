"""What an agent is: networks with a loss, and actions. This page is the guide for who adds one.

An agent is a learner of the state-based track. It takes

1. a file with the agent and a frozen dataclass of its hyperparameters: ``agents/flow_bc.py`` is a short one,
   ``examples/state_based_agent.py`` one to copy;
2. a line in ``agents/registry.py``; in a module of your own instead ``AGENTS["mine"] = Mine``, and ``--plugin
   my_module`` on tools/train_state_based.py and tools/reproduce.py;
3. its values for each task in ``configs/state_based/NAME.yaml``; where there is no such file the defaults of its
   ``Config`` hold. ``--options`` change either.

Everything else asks what stands on this page: the loop, several seeds at once, CUDA graphs, checkpoints and resume,
evaluation, the online phase, and what a result says about the run.

Three rules make that work:

- **Seeds come first in every tensor**, of parameters as well (``networks.stacked`` has layers of that kind), and share
  nothing: the loss of one does not depend on the parameters, rows or noise of another.
- **All randomness comes from ``draws``**, and every update of the same phase asks for equally many numbers in the same
  order, whatever the batch holds. Initial weights come from ``generators``.
- **No step to the CPU in** ``loss`` **and** ``update_targets``: no ``.item()`` and no branch on a tensor's values.

The names of an agent's modules and parameters are those of its checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.values import Critic
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws
from dpvla.training.order import step_seed


class Agent(nn.Module, ABC):
    """Networks of one method for several seeds at once.

    For each update ``running.update.StackedUpdate`` calls ``loss``, steps the optimizer on the loss summed over seeds,
    and calls ``update_targets``: after the step, or with the config's ``target_lag`` before it.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    """Its hyperparameters: a frozen dataclass that adds to ``AgentConfig`` (or to ``ImplicitQConfig``, with IQL's)."""

    period: int = 1
    """The loss of update n (from 0) may depend on n modulo this (ReBRAC: its actor learns every second time)."""

    coasts: bool = False
    """Whether the optimizer steps also what a loss does not reach, with zero gradients: its momentum goes on."""

    uses_next_actions: bool = False
    """Whether batches carry the recorded next actions."""

    def __init__(self, config: Any, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__()
        self.config, self.observation_dim, self.action_dim = config, observation_dim, action_dim
        self.seeds = tuple(seeds)

    def generators(self) -> list[torch.Generator]:
        """For the initial weights: one per seed, so that a seed starts the same whoever trains beside it."""
        return [torch.Generator().manual_seed(step_seed(seed, 0)) for seed in self.seeds]

    @abstractmethod
    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Sum of all networks' losses, (seed,), and numbers to log, without gradients.

        Args:
            phase: number of the update modulo ``period``.
        """

    @abstractmethod
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Actions in [-1, 1], (seed, row, action), for observations (seed, row, observation); without gradients.

        Args:
            temperature: scale of the noise of Gaussian and deterministic policies (0: their mean, as in evaluation;
                1: as when collecting data). Flow and diffusion policies draw the same way at any temperature.
        """

    def update_targets(self, phase: int) -> None:
        """Let targets follow what learns: those of every ``Critic``, if no more."""
        for module in self.modules():
            if isinstance(module, Critic):
                module.follow()

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device
