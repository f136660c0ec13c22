"""IQL (Kostrikov et al., 2022): expectile V, and a Gaussian policy by advantage-weighted regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpvla.config import NotNegative
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import WITHOUT_LAG, ImplicitQConfig
from dpvla.state_based.agents.policies import FIRST_ACTIONS_NEAR_ZERO, policy_network
from dpvla.state_based.agents.values import ImplicitQ
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws

LARGEST_WEIGHT = 100.0
SMALLEST_LOG_STD, LARGEST_LOG_STD = -5.0, 2.0


@dataclass(frozen=True)
class IQLConfig(ImplicitQConfig):
    """Adds the policy's regression. The defaults are those of the FQL code's agent on OGBench."""

    target_lag: bool = True  # targets follow the weights from before the update, as in the FQL and CFGRL code
    alpha: NotNegative = 10.0  # inverse temperature: weights are min(exp(alpha A), 100)
    learned_std: bool = False  # a standard deviation per action number is learned (ExORL); off: 1 (OGBench)

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """On ExORL, against the IQL in CFGRL's code; on OGBench against the FQL code."""
        found = [] if self.target_lag else [WITHOUT_LAG]
        if benchmark == "OGBench":
            return tuple(found)
        found += ["advantage by the online Q (in CFGRL's code: target)"]
        if self.batch_size != 1024:
            found.append(f"batches of {self.batch_size} (in CFGRL's code: 1024)")
        return tuple(found)


class IQL(Agent):
    """Two Qs, V, one Gaussian policy."""

    Config = IQLConfig
    config: IQLConfig

    def __init__(self, config: IQLConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        generators = self.generators()
        self.values = ImplicitQ(config, observation_dim, action_dim, generators)
        self.policy = policy_network(
            config, generators, observation_dim, action_dim, final_scale=FIRST_ACTIONS_NEAR_ZERO
        )
        log_std = torch.zeros(len(self.seeds), 1, action_dim)
        self.log_std = nn.Parameter(log_std, requires_grad=config.learned_std)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Values, and the log-likelihood of recorded actions weighted by their advantage."""
        value_loss, info, values = self.values.loss(batch)
        policy_loss, policy_info = self.policy_loss(batch, values.advantage("online", self.config.clip_q))
        return value_loss + policy_loss, info | policy_info

    def policy_loss(self, batch: Batch, advantage: Tensor) -> tuple[Tensor, Info]:
        """``-min(exp(alpha A), 100) log pi(a | s)``; advantage (seed, row) by the online Q."""
        weight = (self.config.alpha * advantage).exp().clamp_max(LARGEST_WEIGHT)
        mean, std = self.gaussian(batch.observations)
        error = (batch.actions - mean) / std
        log_likelihood = -(0.5 * error.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        loss = -(weight * log_likelihood).mean(-1)
        info = {
            "actor/loss": loss.detach(),
            "actor/advantage": advantage.mean(-1),
            "actor/weight": weight.mean(-1),
            "actor/log_likelihood": log_likelihood.detach().mean(-1),
        }
        return loss, info

    def gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (seed, row, action) and standard deviation (seed, 1, action)."""
        return self.policy(observations)[:, 0], self.log_std.clamp(SMALLEST_LOG_STD, LARGEST_LOG_STD).exp()

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """A sample of the Gaussian at ``temperature`` times its standard deviation, clipped."""
        mean, std = self.gaussian(observations)
        return (mean + temperature * std * draws.normal(*mean.shape[1:])).clamp(-1, 1)
