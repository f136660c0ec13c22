"""A collector that seeks states it has not seen: actor-critic on random network distillation (URLB's RND, on states).

A fixed random network maps states to features; a second one learns to predict them from visited states. Its error is
the reward, so the actor is drawn to what is new.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpvla.tensors import CheckpointError, not_finite, require_same

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

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs."""
        moments = {
            f"adam.{part}.{name}|{key}": tensor
            for part, optimizer in self.optimizers.items()
            for name, parameter in getattr(self, part).named_parameters()
            for key, tensor in optimizer.state.get(parameter, {}).items()
        }
        networks = {f"networks.{name}": tensor for name, tensor in self.state_dict().items()}
        return networks | moments | {"generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor], where: Path) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: it is of another agent or damaged; begins with ``where``.
        """
        require_same(self._expected(state), state, where)
        if bad := not_finite(state):
            raise CheckpointError(f"{where}: {bad[0]} holds NaN or infinity")
        self.load_state_dict(_below("networks.", state))
        for part, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for index, (name, _) in enumerate(getattr(self, part).named_parameters()):
                if own := _below(f"adam.{part}.{name}|", state):
                    moments[index] = own
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        try:
            self.generator.set_state(state["generator"])
        except RuntimeError as error:
            raise CheckpointError(f"{where}: generator is no state of random numbers: {error!s:.100}") from None

    def _expected(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a state holds: Adam's moments of all its parameters, or of none before the first update."""
        expected = {f"networks.{name}": tensor for name, tensor in self.state_dict().items()}
        if any(name.startswith("adam.") for name in state):
            for part in self.optimizers:
                for name, parameter in getattr(self, part).named_parameters():
                    label = f"adam.{part}.{name}"
                    moments = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                    expected |= {f"{label}|{key}": tensor for key, tensor in moments.items()}
        return expected | {"generator": self.generator.get_state()}

    def former_state(self, saved: Any) -> dict[str, Tensor]:
        """A `state` as version 0.1.0 kept it, in nested dicts; whatever error there is where it is none."""
        state = {
            f"networks.{name.replace('normalise.', 'normalize.')}": torch.as_tensor(tensor)
            for name, tensor in saved["networks"].items()
        }
        for part, own in saved["optimizers"].items():
            names = [name for name, _ in getattr(self, part).named_parameters()]
            for index, moments in own["state"].items():
                state |= {f"adam.{part}.{names[index]}|{key}": torch.as_tensor(t) for key, t in moments.items()}
        return state | {"generator": torch.as_tensor(saved["generator"])}

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


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
