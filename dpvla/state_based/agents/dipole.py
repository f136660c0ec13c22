"""DIPOLE on states: IQL's values, a positive and a negative flow policy, their greedy combination (Section 4, App. D).

The paper leaves points open; each is a field below. The defaults are those of the agent that its authors released for
OGBench (reading ``release``); the recipes' reading ``paper`` is what the text alone says. docs/state_based.md has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dpvla.config import Count, NotNegative, Size, Steps, Whole
from dpvla.diffusion.guidance import combine, dichotomous_weights
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import ImplicitQConfig
from dpvla.state_based.agents.policies import best_of, flow_actions, noised_actions, policy_network, repeated
from dpvla.state_based.agents.values import ImplicitQ, WhichQ, aggregate
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws


@dataclass(frozen=True)
class DipoleAgentConfig(ImplicitQConfig):
    """Sizes, steps and targets are the paper's Table 5; the recipes have Table 6's values for each task.

    The released agent's ``cfg`` is ``1 + omega``: its ``v- + cfg (v+ - v-)`` is ``(1 + omega) v+ - omega v-``. Its
    ``q_agg`` is ``clip_q`` for V's target alone; what else asks for one of two Qs has an option of its own here.
    """

    FORMERLY: ClassVar[dict[str, Any]] = ImplicitQConfig.FORMERLY | {
        "next_omega": None, "next_choice": "target", "td_targets": "one", "clip_advantage": False, "clip_choice": False,
    }  # fmt: skip

    hidden: tuple[Size, ...] = (512, 512, 512)  # layer sizes of all networks
    beta: NotNegative = 1.0  # temperature of the weights
    shift: float = 0.0  # k: weights are sigmoid(beta A + k) and one minus it
    omega: NotNegative = 0.0  # w when acting: how far beyond the positive policy actions go; in no table of the paper
    next_omega: NotNegative | None = 0.0  # w of a' in TD targets; null: omega
    samples: Count = 2  # N: actions drawn when acting, of which the one with the largest Q is taken; 1: no rejection
    flow_steps: Steps = 10  # T: Euler steps (10 on OGBench, 32 on ExORL)
    q_target: Literal["policy", "value"] = "policy"  # behind the reward: Q'(s', a') (OGBench) or V(s') (ExORL)
    next_action: Literal["sample", "best_of_n", "dataset"] = "sample"  # a' of q_target = policy: one sample of the
    # combined policy, the best of several, or the recorded next action
    next_samples: Whole = 0  # how many a' best_of_n draws; 0: N
    next_choice: WhichQ = "online"  # which Q chooses among them
    td_targets: Literal["both", "one"] = "both"  # each Q learns from both target Qs, and so their mean; one: from the
    # smaller one, or without clip_q from their mean
    advantage_from: WhichQ = "target"  # which Q the A = Q - V of the weights comes from
    clip_advantage: bool = True  # it is the smaller of the two Qs; off: as clip_q has it
    clip_choice: bool = True  # the best action is the one whose smaller Q is largest; off: as clip_q has it

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """Against the authors' released agent, which has the targets of OGBench alone."""
        found = []
        next_omega = self.omega if self.next_omega is None else self.next_omega
        places = {"acting": self.omega, "TD targets": next_omega if self.q_target == "policy" else 0.0}
        for omega in dict.fromkeys(filter(None, places.values())):
            where = " and ".join(place for place, there in places.items() if there == omega)
            found.append(f"omega {omega:g} in {where} (released agent's default: 0; in no table of the paper)")
        if self.activation != "gelu":
            found.append(f"activation {self.activation} (released agent with the public FQL networks: gelu)")
        if self.q_target == "policy":
            if self.next_action != "sample":
                found.append(f"next_action {self.next_action} (released agent's default: one sample)")
            if self.clip_q and self.td_targets == "one":
                found.append("TD targets from the smaller target Q (released agent: from both, which makes their mean)")
        if not self.clip_q:
            parts = {"advantages": self.clip_advantage, "the best of N": self.clip_choice}
            if means := [part for part, clipped in parts.items() if not clipped]:
                found.append(f"{' and '.join(means)} by the mean of the two Qs (released agent: by the smaller one)")
        if self.advantage_from != "target":
            found.append("advantages by the online Q (released agent: target)")
        if self.target_lag:
            found.append("targets follow the weights from before an update (released agent: those after it)")
        return tuple(found)


class Dipole(Agent):
    """Two Qs, V, and the two policies as members 0 (positive) and 1 (negative) of one stack."""

    Config = DipoleAgentConfig
    config: DipoleAgentConfig

    def __init__(self, config: DipoleAgentConfig, observation_dim: int, action_dim: int, seeds: Sequence[int]) -> None:
        super().__init__(config, observation_dim, action_dim, seeds)
        self.uses_next_actions = config.q_target == "policy" and config.next_action == "dataset"
        generators = self.generators()
        self.values = ImplicitQ(config, observation_dim, action_dim, generators)
        self.policies = policy_network(config, generators, observation_dim + action_dim + 1, action_dim, members=2)

    def loss(self, batch: Batch, draws: Draws, phase: int) -> tuple[Tensor, Info]:
        """Values, and the policies' weighted flow matching (Eq. 9)."""
        config = self.config
        value_loss, info, values = self.values.loss(batch, self.next_value(batch, draws))
        advantage = values.advantage(config.advantage_from, config.clip_q or config.clip_advantage)
        policy_loss, policy_info = self.policy_loss(batch, advantage, draws)
        return value_loss + policy_loss, info | policy_info

    def policy_loss(self, batch: Batch, advantage: Tensor, draws: Draws) -> tuple[Tensor, Info]:
        """``sigmoid(beta A + k) |v - v+|² + (1 - sigmoid(beta A + k)) |v - v-|²`` at one noise level per row (Eq. 9).

        Args:
            advantage: (seed, row). No weight is divided by its mean: the expectation is over the data.
        """
        good, bad = dichotomous_weights(advantage, self.config.beta, self.config.shift)
        x_t, t, velocity = noised_actions(batch.actions, draws)
        errors = (self.policies(batch.observations, x_t, t) - velocity.unsqueeze(1)).square().mean(-1)
        losses = (torch.stack((good, bad), 1) * errors).mean(-1)  # (seed, 2)
        info = {
            "actor/loss_positive": losses[:, 0].detach(),
            "actor/loss_negative": losses[:, 1].detach(),
            "actor/advantage": advantage.mean(-1),
            "actor/log_weight_positive": F.logsigmoid(self.config.beta * advantage + self.config.shift).mean(-1),
            "actor/effective_rows_positive": effective_rows(good),
            "actor/effective_rows_negative": effective_rows(bad),
        }
        return losses.sum(-1), info

    @torch.no_grad()
    def next_value(self, batch: Batch, draws: Draws) -> Tensor | None:
        """Q'(s', a') for the TD target: (seed, row), or of both target Qs (seed, 2, row); None stands for V(s')."""
        config, critic = self.config, self.values.critic
        if config.q_target == "value":
            return None
        if config.next_action == "dataset":
            assert batch.next_actions is not None and batch.next_action_known is not None
            q = critic.target_value(batch.next_observations, batch.next_actions)
            # Behind the last row of an episode there is no recorded action: V stands in.
            known, v = batch.next_action_known > 0, self.values.v(batch.next_observations)
            q = torch.where(known.unsqueeze(1), q, v.unsqueeze(1))
        else:
            samples = (config.next_samples or config.samples) if config.next_action == "best_of_n" else 1
            several = repeated(batch.next_observations, samples)
            actions = self.sample(several, draws, config.omega if config.next_omega is None else config.next_omega)
            q = critic.target_value(several, actions)
            if samples > 1:
                judge = q if config.next_choice == "target" else critic(several, actions)
                q = best_of(self._one(judge), q.mT, samples).mT
        return q if config.td_targets == "both" else aggregate(q, config.clip_q)

    def sample(self, observations: Tensor, draws: Draws, omega: float) -> Tensor:
        """One action a row of the combined policy (Eq. 10), (seed, row, action)."""
        noise = draws.normal(observations.shape[1], self.action_dim)
        return flow_actions(partial(self.velocity, omega), observations, noise, self.config.flow_steps)

    def velocity(self, omega: float, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``(1 + w) v+ - w v-``, (seed, row, action)."""
        if omega == 0:  # without the negative policy's half of the work
            return self.policies(observations, x_t, t, member=0)[:, 0]
        positive, negative = self.policies(observations, x_t, t).unbind(1)
        return combine(positive, negative, omega)

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The best of N samples by the online Q (Eq. 16)."""
        samples = self.config.samples
        several = repeated(observations, samples)
        actions = self.sample(several, draws, self.config.omega)
        if samples == 1:
            return actions
        return best_of(self._one(self.values.critic(several, actions)), actions, samples)

    def _one(self, q: Tensor) -> Tensor:
        """The number that chooses among actions, of both their Qs."""
        return aggregate(q, self.config.clip_q or self.config.clip_choice)


def effective_rows(weights: Tensor) -> Tensor:
    """``(sum w)² / sum w²`` over the rows, (seed, row) to (seed,): how many rows really teach a policy."""
    return weights.sum(-1).square() / weights.square().sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
