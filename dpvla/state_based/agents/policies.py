"""Policies that agents share: networks over actions, flows that imitate, and the best of several samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dpvla.diffusion import flow
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.data.batch import Batch
from dpvla.state_based.networks.draws import Draws
from dpvla.state_based.networks.stacked import StackedMLP

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(observations, x_t, t) -> velocity``, all (seed, row, ·)."""

FIRST_ACTIONS_NEAR_ZERO = 0.01
"""``final_scale`` of Gaussian and deterministic policies in the FQL code."""


def policy_network(
    config: AgentConfig,
    generators: Sequence[torch.Generator],
    inputs: int,
    outputs: int,
    members: int = 1,
    final_scale: float = 1.0,
) -> StackedMLP:
    """A network with the layers that ``config`` gives policies: (seed, row, inputs) to (seed, member, row, outputs)."""
    return StackedMLP(
        generators, members, inputs, config.hidden, outputs, config.activation, config.policy_norm, final_scale
    )


class FlowPolicy(nn.Module):
    """One flow network per seed that imitates the recorded actions."""

    def __init__(
        self, config: AgentConfig, observation_dim: int, action_dim: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.network = policy_network(config, generators, observation_dim + action_dim + 1, action_dim)

    def forward(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocity, (seed, row, action)."""
        return self.network(observations, x_t, t)[:, 0]

    def loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Flow matching on the recorded actions, mean over rows and action numbers: (seed,)."""
        x_t, t, velocity = noised_actions(batch.actions, draws)
        return (self(batch.observations, x_t, t) - velocity).square().mean((-2, -1))

    def sample(self, observations: Tensor, draws: Draws, steps: int) -> Tensor:
        """One action a row, (seed, row, action)."""
        return flow_actions(self, observations, draws.normal(observations.shape[1], self.action_dim), steps)


def flow_actions(velocity: Velocity, observations: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Actions that the flow carries ``noise`` to, clipped to [-1, 1] at the end only: (seed, row, action)."""
    return flow.solve(lambda x, t: velocity(observations, x, t), noise, steps).clamp(-1, 1)


def noised_actions(actions: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Training input of a flow policy: x_t, t uniform in [0, 1), and the velocity to predict; (seed, row, ·)."""
    noise = draws.normal(*actions.shape[1:])
    t = draws.uniform(actions.shape[1], 1)
    return flow.noised(actions, noise, t), t, actions - noise


def repeated(observations: Tensor, samples: int) -> Tensor:
    """Every row ``samples`` times, next to each other: (seed, row · samples, observation)."""
    return observations.unsqueeze(2).expand(-1, -1, samples, -1).flatten(1, 2)


def best_of(q: Tensor, actions: Tensor, samples: int) -> Tensor:
    """Of ``samples`` actions per row the one with the largest Q (Eq. 16).

    Args:
        q: (seed, row · samples). actions: (seed, row · samples, action), samples of one row next to each other.

    Returns:
        (seed, row, action).
    """
    best = q.unflatten(1, (-1, samples)).argmax(-1)
    choices = actions.unflatten(1, (-1, samples))
    index = best[..., None, None].expand(-1, -1, 1, actions.shape[-1])
    return choices.gather(2, index).squeeze(2)
