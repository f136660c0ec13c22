"""A bandit that every algorithm has to climb: plans of a tiny policy, rewarded for where they end.

The policy is a DP-VLA whose head is a single block, pretrained on plans that end at all lateral positions around 0; the
reward is highest at ``OPTIMUM``. Scenes are tokens drawn at random: nothing is encoded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.registry import ALGORITHMS, make_algorithm
from dpvla.models import DPVLA, DPVLAConfig, SceneContext
from dpvla.models.config import DiffusionConfig, HeadConfig, LoRAConfig, PlanCodingConfig
from dpvla.random_rows import RandomRows
from dpvla.registry import look_up_config

OPTIMUM = 1.5
"""[m], lateral; plans are pretrained to end with a standard deviation of 1 around 0."""
SCENES = 4


@cache
def pretrained() -> DPVLA:
    """The policy before RL: do not change it."""
    torch.manual_seed(0)
    head = HeadConfig(width=32, heads=2, blocks=("1 modulated self mlp",), preset="tiny", use_history=False)
    plan = PlanCodingConfig(channels="x_y_heading", baseline="none")
    diffusion = DiffusionConfig(loss_weighting="v", num_steps=5, omega=0.0)
    policy = DPVLA.from_config(replace(DPVLAConfig.tiny(), head=head, plan=plan, diffusion=diffusion))
    policy.plan_coding.fit(recorded(4096), torch.zeros(4096, 4))
    policy.freeze_encoder()
    context = scenes(policy)
    optimizer = torch.optim.Adam(policy.head.parameters(), lr=3e-3)
    for _ in range(150):
        t, noise = policy.draw(SCENES, 32)
        plans = recorded(SCENES * 32).view(SCENES, 32, 8, 3)
        optimizer.zero_grad()
        policy.denoising_errors(context, plans, t, noise).mean().backward()
        optimizer.step()
    return policy.eval()


def recorded(count: int) -> Tensor:
    """Plans (count, 8, 3) at about 5 m/s that end at a lateral position with mean 0 and standard deviation 1."""
    time = torch.linspace(0.5, 4.0, 8)
    lateral = torch.randn(count, 1) * time / 4
    plans = torch.stack([5 * time.expand(count, -1), lateral, torch.zeros_like(lateral)], dim=-1)
    return plans + 0.05 * torch.randn_like(plans)


def scenes(policy: DPVLA) -> SceneContext:
    """``SCENES`` scenes that tell nothing of where to end."""
    tokens = torch.randn(SCENES, 3, policy.encoder.token_width, generator=torch.Generator().manual_seed(1))
    none = torch.zeros(SCENES, 4)
    return SceneContext(tokens, None, torch.zeros(SCENES, dtype=torch.long), none, torch.zeros(SCENES, 3, 3))


def reward(plans: Tensor) -> Tensor:
    """(scene, candidate), float64: 1 at the optimum."""
    return (-(plans[:, :, -1, 1].double() - OPTIMUM).square() / 2).exp()


@dataclass
class Player:
    """An algorithm with a policy of its own."""

    algorithm: Algorithm
    policy: DPVLA
    context: SceneContext
    candidates: int = 16

    @classmethod
    def of(cls, name: str, **options: Any) -> Player:
        """The algorithm of this name with its default options but for those given."""
        algorithm = make_algorithm(look_up_config(ALGORITHMS, name, "algorithm")(**options))
        torch.manual_seed(2)
        policy = copy.deepcopy(pretrained())
        policy.add_adapters(algorithm.adapters, *LoRAConfig(4, 4).of(algorithm.adapters))
        policy.freeze_encoder()
        policy.sampling = algorithm.sampling()
        return cls(algorithm, policy, scenes(policy))

    @torch.no_grad()
    def roll_out(self, seed: int = 0) -> dict[str, Tensor]:
        """The roll-outs of all scenes."""
        numbers = RandomRows.of(range(SCENES), seed)
        return self.algorithm.roll_out(self.policy.eval(), self.context, self.candidates, numbers)

    def batch(self, roll_outs: Mapping[str, Tensor], rewards: Tensor, seed: int = 0) -> RolloutBatch:
        """All scenes, with the head as it is as the one that rolled out."""
        targets = self.algorithm.targets({"score": rewards}, roll_outs)
        behavior = self.policy.snapshot_head() if self.algorithm.needs_behavior else None
        return RolloutBatch(self.context, roll_outs, targets, behavior, RandomRows.of(range(SCENES), seed, 1))

    def gradient(self, batch: RolloutBatch) -> Tensor:
        """Of the loss, by all adapters' weights."""
        self.policy.zero_grad()
        self.algorithm.loss(self.policy.train(), batch)[0].backward()
        return torch.cat([_flat(p.grad, p) for p in self.policy.adapter_parameters()])

    def climb(self, cycles: int, updates: int, lr: float = 3e-3) -> list[float]:
        """Train; the mean reward of each cycle's roll-outs, and of some more in the end."""
        optimizer = torch.optim.AdamW(self.policy.adapter_parameters(), lr=lr, weight_decay=0)
        means = []
        for cycle in range(cycles):
            roll_outs = self.roll_out(cycle)
            rewards = reward(roll_outs["plans"])
            means.append(float(rewards.mean()))
            batch = self.batch(roll_outs, rewards)
            for update in range(updates):
                numbers = RandomRows.of(range(SCENES), cycle, update)
                optimizer.zero_grad()
                self.algorithm.loss(self.policy.train(), replace(batch, random=numbers))[0].backward()
                torch.nn.utils.clip_grad_norm_(self.policy.adapter_parameters(), 1.0)
                optimizer.step()
        return [*means, float(reward(self.roll_out(cycles)["plans"]).mean())]

    def move_adapters(self) -> None:
        """Away from zero, where the gradient of half of their weights is hidden."""
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.policy.adapter_parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _flat(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return (torch.zeros_like(parameter) if gradient is None else gradient).flatten().clone()
