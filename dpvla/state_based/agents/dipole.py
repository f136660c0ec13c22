"""DIPOLE on states: IQL's values, a positive and a negative flow policy, their greedy combination (Section 4, App. D).

The paper leaves points open; each is a field below, with the default we read from it. The agent that its authors
released for OGBench settles some of them otherwise: ``DipoleAgentConfig.differences`` and docs/state_based.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dpvla.config import Count, NotNegative, Size, Steps
from dpvla.diffusion.guidance import combine, dichotomous_weights
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import ImplicitQConfig
from dpvla.state_based.agents.policies import best_of, flow_actions, noised_actions, policy_network, repeated
from dpvla.state_based.agents.values import ImplicitQ, aggregate
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.networks.draws import Draws
from dpvla.state_based.networks.options import Activation


@dataclass(frozen=True)
class DipoleAgentConfig(ImplicitQConfig):
    """Sizes, activation, steps and targets are the paper's Table 5; the recipes have Table 6's values for each task."""

    hidden: tuple[Size, ...] = (512, 512, 512)  # layer sizes of all networks
    activation: Activation = "tanh"  # hidden activation, in policies and values ("Activation function: tanh")
    beta: NotNegative = 1.0  # temperature of the weights
    shift: float = 0.0  # k: weights are sigmoid(beta A + k) and one minus it
    omega: NotNegative = 1.0  # w: how far beyond the positive policy actions go; in no table of the paper
    samples: Count = 2  # N: actions drawn when acting, of which the one with the largest Q is taken; 1: no rejection
    flow_steps: Steps = 10  # T: Euler steps (10 on OGBench, 32 on ExORL)
    q_target: Literal["policy", "value"] = "policy"  # behind the reward: Q'(s', a') (OGBench) or V(s') (ExORL)
    next_action: Literal["sample", "best_of_n", "dataset"] = "sample"  # a' of q_target = policy: one guided sample,
    # the best of N of them by the target Q, or the recorded next action
    advantage_from: Literal["target", "online"] = "target"  # which Q the A = Q - V of the weights comes from

    def differences(self, benchmark: str) -> tuple[str, ...]:
        """Against the authors' released agent, which has the targets of OGBench alone."""
        found = []
        if self.omega:
            where = "acting and TD targets" if self.q_target == "policy" else "acting"
            found.append(f"omega {self.omega:g} in {where} (released agent's default: 0; in no table of the paper)")
        if self.q_target == "policy":
            if self.next_action != "sample":
                found.append(f"next_action {self.next_action} (released agent: one sample)")
            if self.clip_q:
                found.append("TD targets from the smaller target Q (released agent: from both, which makes their mean)")
        if not self.clip_q:
            found.append("advantages and the best of N by the mean of the two Qs (released agent: by the smaller one)")
        if self.advantage_from != "target":
            found.append("advantages by the online Q (released agent: target)")
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
        value_loss, info, values = self.values.loss(batch, self.next_value(batch, draws))
        q = values.target_q if self.config.advantage_from == "target" else values.q
        policy_loss, policy_info = self.policy_loss(batch, q - values.v, draws)
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
        """Q'(s', a') for the TD target, (seed, row); None stands for V(s')."""
        config = self.config
        if config.q_target == "value":
            return None
        if config.next_action == "dataset":
            assert batch.next_actions is not None and batch.next_action_known is not None
            q = self._target_q(batch.next_observations, batch.next_actions)
            # Behind the last row of an episode there is no recorded action: V stands in.
            return torch.where(batch.next_action_known > 0, q, self.values.v(batch.next_observations))
        samples = config.samples if config.next_action == "best_of_n" else 1
        observations = repeated(batch.next_observations, samples)
        q = self._target_q(observations, self.sample(observations, draws))
        return q.unflatten(1, (-1, samples)).amax(-1)

    def sample(self, observations: Tensor, draws: Draws) -> Tensor:
        """One action a row of the combined policy (Eq. 10), (seed, row, action)."""
        noise = draws.normal(observations.shape[1], self.action_dim)
        return flow_actions(self.velocity, observations, noise, self.config.flow_steps)

    def velocity(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``(1 + w) v+ - w v-``, (seed, row, action)."""
        positive, negative = self.policies(observations, x_t, t).unbind(1)
        return combine(positive, negative, self.config.omega)

    @torch.no_grad()
    def act(self, observations: Tensor, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The best of N samples by the online Q (Eq. 16)."""
        samples = self.config.samples
        several = repeated(observations, samples)
        actions = self.sample(several, draws)
        if samples == 1:
            return actions
        return best_of(aggregate(self.values.critic(several, actions), self.config.clip_q), actions, samples)

    def _target_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        return aggregate(self.values.critic.target_value(observations, actions), self.config.clip_q)


def effective_rows(weights: Tensor) -> Tensor:
    """``(sum w)² / sum w²`` over the rows, (seed, row) to (seed,): how many rows really teach a policy."""
    return weights.sum(-1).square() / weights.square().sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
