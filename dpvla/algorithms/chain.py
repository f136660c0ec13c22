"""What algorithms share that learn from the steps of a stochastic sampler: policy gradients with clipped ratios.

A roll-out keeps its chain from noise to plan and the log-probability of every step, in normalized coordinates. An
update asks how probable the same steps are now, and moves what was better than expected up, within a clip.

Unlike denoising losses on own samples, this has no drift: under the policy that rolled out a step's log-probability has
a gradient of mean zero, whether or not the learned field is the denoiser of its own samples.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import ChainConfig
from dpvla.device import to_device
from dpvla.diffusion.samplers.sde import SDESolver
from dpvla.models import DPVLA, SceneContext
from dpvla.models.sampling import Sampling
from dpvla.random_rows import RandomRows, uniform

ADAPTERS = ("policy",)


class ChainAlgorithm(Algorithm):
    """One adapter, whose denoising steps are the actions."""

    adapters = ADAPTERS
    config: ChainConfig

    def sampling(self) -> Sampling:
        """The adapter alone; later by the usual deterministic solver, with the model's steps."""
        return Sampling(ADAPTERS)

    def roll_out(
        self, policy: DPVLA, context: SceneContext, candidates: int, generator: RandomRows
    ) -> dict[str, Tensor]:
        """Plans, their ``chain`` (scene, candidate, step + 1, 8, channel), ``log_probs`` (scene, candidate, step)."""
        plans, chain = policy.sample_chain(context, candidates, self.solver(policy), generator)
        return {"plans": plans, "chain": chain.states, "log_probs": chain.log_probs}

    def solver(self, policy: DPVLA) -> SDESolver:
        """The sampler of the roll-outs."""
        config = self.config
        return SDESolver(
            policy.schedule,
            config.num_steps or policy.config.diffusion.num_steps,
            config.roll_out_sampler,
            config.eta,
            config.min_sampling_std,
            config.min_logprob_std,
            config.noise_clip,
        )

    @abstractmethod
    def clip_widths(self, num_steps: int) -> list[float]:
        """How far from 1 a ratio counts, for every step from the noisiest on."""

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """``-E[min(r A, clip(r, 1 - c, 1 + c) A)]`` over plans and steps, and imitation of the reference.

        ``r`` is the ratio of a step's probability now to that at the roll-out, ``A`` the plan's advantage times
        ``gamma_denoising`` for every step behind. With ``steps_per_update`` the mean is over so many successive steps
        of each plan from a random one on, the first behind the last: every step is drawn equally often.
        """
        solver, chain, config = self.solver(policy), batch.roll_outs["chain"], self.config
        count, device = solver.num_steps, chain.device
        steps = self._steps(chain.shape[:2], count, batch.random, device)
        log_ratios = self.log_probs(policy, batch.context, solver, chain, steps)
        log_ratios = log_ratios - batch.roll_outs["log_probs"].gather(-1, steps)
        ratios = log_ratios.exp()
        discounts = [config.gamma_denoising ** (count - 1 - step) for step in range(count)]
        discount, width = to_device(torch.tensor([discounts, self.clip_widths(count)]), device)[:, steps]
        advantages = batch.targets["advantages"][..., None] * discount
        clipped = torch.minimum(torch.maximum(ratios, 1 - width), 1 + width)
        loss = -torch.minimum(ratios * advantages, clipped * advantages).mean()
        with torch.no_grad():
            info = {
                "rl/loss_policy": loss.detach(),
                "rl/ratio": ratios.mean(),
                "rl/clip_fraction": ((ratios - 1).abs() > width).float().mean(),
                "rl/approx_kl": (ratios - 1 - log_ratios).mean(),
            }
        if config.reference_weight:
            imitation = self._reference_loss(policy, batch, solver)
            loss = loss + config.reference_weight * imitation
            info["rl/loss_reference"] = imitation.detach()
        return loss, info

    def log_probs(
        self, policy: DPVLA, context: SceneContext, solver: SDESolver, chain: Tensor, steps: Tensor
    ) -> Tensor:
        """How probable the ``steps`` (scene, candidate, n) of a chain are to the adapter now; same shape.

        The steps are successive, the first behind the last; the head sees n plans of a candidate, or n + 1 where the
        x0 before the first of them counts.
        """
        seen = steps
        if solver.kind == "sde" and steps.shape[-1] < solver.num_steps:
            seen = torch.cat([(steps[..., :1] - 1) % solver.num_steps, steps], dim=-1)
        x, table = _at(chain, seen), to_device(torch.cat([solver.times[:, None], solver.table], dim=1), chain.device)
        x0 = policy.predict_x0(context, x.flatten(1, 2), table[seen][..., 0].flatten(1, 2), ADAPTERS)[0].view_as(x)
        before = x0.roll(1, dims=2)
        if seen is not steps:
            x, x0, before = x[:, :, 1:], x0[:, :, 1:], before[:, :, 1:]
        return solver.log_probs(x, _at(chain, steps + 1), x0, before, table[steps][..., 1:])

    def _steps(
        self, group: torch.Size, num_steps: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Steps (scene, candidate, n) int64 that are learned from."""
        count = min(self.config.steps_per_update or num_steps, num_steps)
        places = torch.arange(count, device=device).expand(*group, count)
        if count == num_steps:
            return places
        first = (uniform((*group, 1), generator, device) * num_steps).long()
        return (first + places) % num_steps

    def _reference_loss(self, policy: DPVLA, batch: RolloutBatch, solver: SDESolver) -> Tensor:
        """``-E[log-probability]`` of steps that the head without adapters makes, one new chain a scene."""
        _, chain = policy.sample_chain(batch.context, 1, solver, batch.random, Sampling())
        steps = self._steps(chain.log_probs.shape[:2], solver.num_steps, batch.random, chain.states.device)
        return -self.log_probs(policy, batch.context, solver, chain.states, steps).mean()


def _at(chain: Tensor, steps: Tensor) -> Tensor:
    """States (scene, candidate, n, 8, channel) of a chain at ``steps`` (scene, candidate, n)."""
    return chain.take_along_dim(steps[..., None, None], dim=2)
