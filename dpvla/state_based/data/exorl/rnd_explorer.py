"""A collector that seeks states it has not seen: actor-critic on random network distillation (URLB's RND, on states).

A fixed random network maps states to features; a second one learns to predict them from visited states. Its error is
the reward, so the actor is drawn to what is new.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

LEARNING_RATE = 1e-4
DISCOUNT = 0.99
TARGET_RATE = 0.01
NOISE, NOISE_LIMIT = 0.2, 0.3
"""Standard deviation of the actor's noise, and its bound inside updates."""
OBSERVATION_LIMIT = 5.0
"""Bound of normalized observations that the distillation networks see."""


class RNDExplorer(nn.Module):
    """Actor, two critics with slow copies, predictor and random target, each with its Adam state.

    Its random numbers come from ``generator`` alone, so a saved and restored agent goes on as if nothing happened.
    """

    def __init__(self, observation_size: int, action_size: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.action_size = action_size
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = _trunk_and_head(observation_size, action_size, hidden)
            self.critics = nn.ModuleList(_trunk_and_head(observation_size + action_size, 1, hidden) for _ in range(2))
            self.normalize = nn.BatchNorm1d(observation_size, affine=False)
            self.predictor = _features(observation_size, hidden)
            self.random_features = _features(observation_size, hidden).requires_grad_(False)
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.error_moments: Tensor
        self.register_buffer("error_moments", torch.zeros(3, dtype=torch.float64))  # count, sum, sum of squares
        self.optimizers = {
            name: torch.optim.Adam(getattr(self, name).parameters(), lr=LEARNING_RATE, fused=True)
            for name in ("actor", "critics", "predictor")
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """An exploring action (action,) in [-1, 1] for one observation."""
        return (torch.tanh(self.actor(observation)) + NOISE * self._normal(self.action_size)).clamp(-1, 1)

    @torch.no_grad()
    def random_action(self) -> Tensor:
        """An action drawn evenly from [-1, 1], for the first steps."""
        return torch.rand(self.action_size, generator=self.generator) * 2 - 1

    def update(self, observations: Tensor, actions: Tensor, next_observations: Tensor) -> float:
        """One step of every network on a batch; returns the mean intrinsic reward."""
        error = self._novelty(next_observations)
        self._descend("predictor", error.mean())
        with torch.no_grad():
            reward = error.detach() / self._error_scale(error.detach())
            future = _minimum(self.slow_critics, next_observations, self._noisy_action(next_observations))
            target = reward + DISCOUNT * future
        values = [critic(torch.cat([observations, actions], -1)).squeeze(-1) for critic in self.critics]
        self._descend("critics", sum(((value - target) ** 2).mean() for value in values))
        self._descend("actor", -_minimum(self.critics, observations, self._noisy_action(observations)).mean())
        with torch.no_grad():
            for slow, fast in zip(self.slow_critics.parameters(), self.critics.parameters()):
                slow.lerp_(fast, TARGET_RATE)
        return float(reward.mean())

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "networks": self.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        names = {name: name.replace("normalise.", "normalize.") for name in state["networks"]}  # as it was spelled once
        self.load_state_dict({names[name]: value for name, value in state["networks"].items()})
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.generator.set_state(state["generator"])

    def _novelty(self, observations: Tensor) -> Tensor:
        """Prediction error (row,)."""
        seen = self.normalize(observations).clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        return ((self.predictor(seen) - self.random_features(seen)) ** 2).mean(-1)

    def _error_scale(self, error: Tensor) -> Tensor:
        """Standard deviation of all errors so far, which keeps the reward's size while the predictor learns."""
        error = error.double()
        self.error_moments += torch.stack([error.new_tensor(float(len(error))), error.sum(), (error**2).sum()])
        count, total, squares = self.error_moments
        return ((squares / count - (total / count) ** 2).clamp_min(0).sqrt() + 1e-8).float()

    def _noisy_action(self, observations: Tensor) -> Tensor:
        mean = torch.tanh(self.actor(observations))
        noise = (NOISE * self._normal(*mean.shape)).clamp(-NOISE_LIMIT, NOISE_LIMIT)
        noisy = mean + noise
        return noisy + (noisy.clamp(-1, 1) - noisy).detach()  # bounded, with the gradient of the unbounded action

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _descend(self, name: str, loss: Tensor | int) -> None:
        assert isinstance(loss, Tensor)
        optimizer = self.optimizers[name]
        # Only this part's gradients: the actor's loss flows through the critics without moving them.
        parameters = list(getattr(self, name).parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        optimizer.step()


def _trunk_and_head(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    trunk = (nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.Tanh())
    layers = nn.Sequential(*trunk, nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return _orthogonal(layers)


def _features(inputs: int, hidden: int) -> nn.Sequential:
    layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
    return _orthogonal(nn.Sequential(*layers))


def _orthogonal(layers: nn.Sequential) -> nn.Sequential:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers


def _minimum(critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
    pairs = torch.cat([observations, actions], -1)
    return torch.stack([critic(pairs) for critic in critics]).amin(0).squeeze(-1)
