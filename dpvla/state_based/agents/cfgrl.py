"""CFGRL (Frans et al., 2025): one flow conditioned on "better than average", sampled with classifier-free guidance.

The released code has two variants, ``flowiql.py`` (OGBench) and ``iql_diffusion.py`` (ExORL). Each recipe follows one
of them; where it does not: ``CFGRLConfig.differences`` and docs/state_based.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla.config import Count, Range, Share, Size, Steps, Whole
from dpvla.diffusion import flow
from dpvla.diffusion.guidance import combine
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import WITHOUT_LAG, ImplicitQConfig
from dpvla.state_based.agents.policies import flow_actions, policy_network
from dpvla.state_based.agents.values import ImplicitQ, WhichQ
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws

NULL, NEGATIVE, POSITIVE = range(3)  # labels


@dataclass(frozen=True)
class CFGRLConfig(ImplicitQConfig):
    """Defaults are the released OGBench variant's (``flowiql.py`` of github.com/kvfrans/cfgrl_submit at 545677e).

    The recipes for ExORL follow the other one, which has scheme = both, the target Q's advantage, and mish with
    normalization before it.
    """

    batch_size: Count = 1024  # rows of an update, per seed
    target_lag: bool = True  # targets follow the weights from before the update
    scheme: Literal["dropout", "both"] = "dropout"  # dropout: each row is labeled positive, negative or (with chance
    # null_share) null; both: each row teaches null with weight null_share and, where A is positive, positive
    null_share: Share = 0.1  # of rows, or weight, for the unconditional velocity
    threshold: float = 0.0  # an advantage of at least this is positive
    advantage_from: WhichQ = "online"  # which Q the A = Q - V comes from
    omega: Annotated[float, Range(least=-1)] = 0.0  # how far beyond the positive policy actions go (the released
    # code's w is 1 + omega: 1 by default, and it tries several)
    label_size: Size = 32  # numbers a label is embedded in
    time_size: Whole = 0  # sinusoidal features of t (16 on ExORL); 0: t itself
    time_grid: bool = False  # t is drawn from {0, 1/T, ..., 1} (ExORL) instead of [0, 1)
    flow_steps: Steps = 16  # T: Euler steps (16 on OGBench, 32 on ExORL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_size % 2:
            raise ValueError(f"time_size must be even (a cosine and a sine each), found {self.time_size}")

    @staticmethod
    def in_full(given: Mapping[str, Any]) -> Mapping[str, Any]:
        """``guidance`` was w, which is 1 + omega."""
        if "omega" in given or not isinstance(given.get("guidance"), (int, float)):
            return given
        return {name: value for name, value in given.items() if name != "guidance"} | {"omega": given["guidance"] - 1}

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """Batch, advantage, omega and targets, where they are not the released code's."""
        tried = "0.5 to 3" if benchmark == "OGBench" else "1 to 100, and reports the best"
        found = [f"acts with one w, {1 + self.omega:g} (the released code evaluates w of {tried})"]
        if not self.target_lag:
            found.append(WITHOUT_LAG)
        if self.batch_size != 1024:
            found.append(f"batches of {self.batch_size} (released code: 1024)")
        theirs = "online" if benchmark == "OGBench" else "target"
        if self.advantage_from != theirs:
            found.append(f"advantage by the {self.advantage_from} Q (released code: {theirs})")
        return tuple(found)


class CFGRL(Agent):
    """Two Qs, V, one labeled flow policy."""

    Config = CFGRLConfig
    config: CFGRLConfig

    def __init__(self, config: CFGRLConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        generators = self.generators()
        self.values = ImplicitQ(config, observation_dim, action_dim, generators)
        inputs = observation_dim + action_dim + config.label_size + (config.time_size or 1)
        self.policy = policy_network(config, generators, inputs, action_dim)
        labels = [torch.randn(3, config.label_size, generator=generator) for generator in generators]
        self.labels = nn.Parameter(torch.stack(labels) / math.sqrt(config.label_size))  # (seed, label, number)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Values, and flow matching under labels that say whether the action is better than V."""
        value_loss, info, values = self.values.loss(batch)
        advantage = values.advantage(self.config.advantage_from, self.config.clip_q)
        policy_loss, policy_info = self.policy_loss(batch, advantage, draws)
        return value_loss + policy_loss, info | policy_info

    def policy_loss(self, batch: Batch, advantage: Tensor, draws: Draws) -> tuple[Tensor, Info]:
        """Flow matching, mean over rows and action numbers: (seed,); advantage (seed, row)."""
        config, rows = self.config, advantage.shape[1]
        positive = advantage >= config.threshold
        noise, t = draws.normal(*batch.actions.shape[1:]), draws.uniform(rows, 1)
        if config.time_grid:
            t = (t * (config.flow_steps + 1)).floor() / config.flow_steps
        x_t, velocity = flow.noised(batch.actions, noise, t), batch.actions - noise

        def error(label: Tensor) -> Tensor:
            return (self.velocity(batch.observations, x_t, t, label) - velocity).square().mean(-1)

        label = torch.zeros_like(advantage, dtype=torch.int64)
        if config.scheme == "dropout":
            dropped = draws.uniform(rows) < config.null_share
            label = torch.where(positive, label + POSITIVE, label + NEGATIVE).masked_fill(dropped, NULL)
            loss = error(label).mean(-1)
        else:
            loss = (positive * error(label + POSITIVE) + config.null_share * error(label + NULL)).mean(-1)
        info = {
            "actor/flow": loss.detach(),
            "actor/advantage": advantage.mean(-1),
            "actor/positive_share": positive.float().mean(-1),
        }
        return loss, info

    def velocity(self, observations: Tensor, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Velocity under ``label`` (seed, row), (seed, row, action)."""
        embedded = F.one_hot(label, 3).to(self.labels.dtype) @ self.labels
        time = sinusoidal(t, self.config.time_size) if self.config.time_size else t
        return self.policy(observations, x_t, time, embedded)[:, 0]

    def guided(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``(1 + omega) v_positive - omega v_null``, both in one pass."""
        label = torch.zeros(observations.shape[:2], dtype=torch.int64, device=observations.device)
        twice = observations.repeat(1, 2, 1), x_t.repeat(1, 2, 1), t.repeat(1, 2, 1)
        both = self.velocity(*twice, torch.cat((label + POSITIVE, label + NULL), 1))
        positive, null = both.chunk(2, 1)
        return combine(positive, null, self.config.omega)

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """One guided sample."""
        noise = draws.normal(observations.shape[1], self.action_dim)
        return flow_actions(self.guided, observations, noise, self.config.flow_steps)


def sinusoidal(t: Tensor, size: int) -> Tensor:
    """Cosine and sine of t at ``size / 2`` frequencies that fall geometrically from 1e4: (…, 1) to (…, size)."""
    exponents = torch.arange(size // 2, device=t.device) / (size // 2)
    angles = t * 10_000 ** (1 - exponents)
    return torch.cat((angles.cos(), angles.sin()), -1)
