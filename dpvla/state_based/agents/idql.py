"""IDQL (Hansen-Estruch et al., 2023): IQL's values, a diffusion policy that imitates, and the best of N samples.

The policy is after IDQL's code: a residual network with layer normalization and dropout that predicts the noise at one
of T diffusion steps, sampled by DDPM with an average of its weights. The values are those of our IFQL. The FQL paper's
authors ran the tables' IDQL again, with code that is not in their repository: what it had beyond N is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.config import BelowOne, Count, Layers, Range, Share, Size, Steps
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import ImplicitQConfig
from dpvla.state_based.agents.policies import best_of, repeated
from dpvla.state_based.agents.values import ImplicitQ, aggregate
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws
from dpvla.state_based.networks.stacked import StackedLayerNorm, StackedLinear, StackedMLP, follow, target_of

BETA_MIN, BETA_MAX = 0.1, 10.0


@dataclass(frozen=True)
class IDQLConfig(ImplicitQConfig):
    """Adds the diffusion policy."""

    samples: Count = 32  # N: actions drawn when acting, of which the one with the largest target Q is taken
    diffusion_steps: Steps = 5  # T
    policy_size: Size = 256  # width of the policy's residual blocks
    policy_blocks: Annotated[Layers, Range(least=1)] = 3  # how many
    dropout: BelowOne = 0.1  # in the policy's blocks
    policy_rate: Share = 0.001  # share of the policy that the sampled average takes over after each update

    def with_width(self, width: int) -> IDQLConfig:
        """The policy's blocks keep their proportion to the other layers."""
        policy_size = max(1, self.policy_size * width // max(self.hidden))
        return replace(self, hidden=(width,) * len(self.hidden), policy_size=policy_size)


class IDQL(Agent):
    """Two Qs, V, one diffusion policy and its average."""

    Config = IDQLConfig
    config: IDQLConfig
    beta: Tensor  # (step,)
    alpha_product: Tensor  # (step,)

    def __init__(self, config: IDQLConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        generators = self.generators()
        self.values = ImplicitQ(config, observation_dim, action_dim, generators)
        self.policy = NoisePredictor(config, observation_dim, action_dim, generators)
        self.average = target_of(self.policy)
        beta = vp_betas(config.diffusion_steps)
        self.register_buffer("beta", beta, persistent=False)
        self.register_buffer("alpha_product", (1 - beta).cumprod(0), persistent=False)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Values, and denoising of all recorded actions alike."""
        value_loss, info, _ = self.values.loss(batch)
        policy_loss = self.policy_loss(batch, draws)
        return value_loss + policy_loss, info | {"actor/noise": policy_loss.detach()}

    def policy_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Squared error of the predicted noise at a random step, mean over rows and action numbers: (seed,)."""
        rows = batch.actions.shape[1]
        step = (draws.uniform(rows, 1) * self.config.diffusion_steps).long()
        noise = draws.normal(*batch.actions.shape[1:])
        kept = self.alpha_product[step]
        x = kept.sqrt() * batch.actions + (1 - kept).sqrt() * noise
        return (self.policy(batch.observations, x, step.float(), draws) - noise).square().mean((-2, -1))

    def sample(self, observations: Tensor, draws: Draws) -> Tensor:
        """One action a row by DDPM, clipped to [-1, 1] at every step."""
        shape = observations.shape[1], self.action_dim
        x = draws.normal(*shape)
        for step in reversed(range(self.config.diffusion_steps)):
            beta, kept = self.beta[step], self.alpha_product[step]
            at = torch.full_like(x[..., :1], step)
            noise = self.average(observations, x, at)
            x = (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()
            if step:
                x = x + beta.sqrt() * draws.normal(*shape)
            x = x.clamp(-1, 1)
        return x

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The best of N samples by the target Q."""
        several = repeated(observations, self.config.samples)
        actions = self.sample(several, draws)
        q = aggregate(self.values.critic.target_value(several, actions), self.config.clip_q)
        return best_of(q, actions, self.config.samples)

    def update_targets(self, phase: int) -> None:
        """The target Q and the policy's average follow."""
        super().update_targets(phase)
        follow(self.average, self.policy, self.config.policy_rate)


class NoisePredictor(nn.Module):
    """Residual network on (x, s, features of the step): per block, dropout, normalization, 4 x wider layer, back."""

    def __init__(
        self, config: IDQLConfig, observation_dim: int, action_dim: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.dropout = config.dropout
        size, features = config.policy_size, 64
        frequencies = [torch.randn(1, features // 2, generator=generator) for generator in generators]
        self.frequencies = nn.Parameter(0.2 * torch.stack(frequencies))  # (seed, 1, number), learned
        self.time = StackedMLP(generators, 1, features, (128,), 128, "mish")
        self.first = StackedLinear(generators, 1, action_dim + observation_dim + 128, size)
        blocks = range(config.policy_blocks)
        self.norms = nn.ModuleList(StackedLayerNorm(len(generators), 1, size) for _ in blocks)
        self.widen = nn.ModuleList(StackedLinear(generators, 1, size, 4 * size) for _ in blocks)
        self.narrow = nn.ModuleList(StackedLinear(generators, 1, 4 * size, size) for _ in blocks)
        self.final = StackedLinear(generators, 1, size, action_dim)

    def forward(self, observations: Tensor, x: Tensor, step: Tensor, draws: Draws | None = None) -> Tensor:
        """Predicted noise, (seed, row, action); ``step`` (seed, row, 1); ``draws`` turns dropout on."""
        angles = 2 * math.pi * step * self.frequencies
        time = self.time(torch.cat((angles.cos(), angles.sin()), -1))[:, 0]
        h = self.first(torch.cat((x, observations, time), -1))
        for norm, widen, narrow in zip(self.norms, self.widen, self.narrow):
            inner = h
            if draws is not None and self.dropout:
                inner = h * (draws.uniform(*h.shape[1:]) >= self.dropout) / (1 - self.dropout)
            h = h + narrow(F.mish(widen(norm(inner))))
        return self.final(F.mish(h))


def vp_betas(steps: int) -> Tensor:
    """Noise of each of ``steps`` DDPM steps that cut a VP process with linear beta(t) from 0.1 to 10: (step,)."""
    t = torch.arange(1, steps + 1)
    return 1 - torch.exp(-BETA_MIN / steps - 0.5 * (BETA_MAX - BETA_MIN) * (2 * t - 1) / steps**2)
