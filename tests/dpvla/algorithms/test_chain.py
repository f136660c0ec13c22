"""GRPO and DPPO: their losses against hand-made cases, and what they do to a policy whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.chain import ADAPTERS, ChainAlgorithm
from dpvla.algorithms.config import ChainConfig, DipoleConfig, DPPOConfig, GRPOConfig
from dpvla.algorithms.critic import Critic
from dpvla.algorithms.dipole import Dipole
from dpvla.algorithms.dppo import DPPO
from dpvla.algorithms.grpo import GRPO
from dpvla.diffusion import VPLinearSchedule
from dpvla.diffusion.samplers.sde import Chain, SDESolver
from dpvla.models import DPVLA, SceneContext
from dpvla.models.sampling import Sampling
from dpvla.random_rows import RandomRows, normal
from tests.gpu.tiny_driving import make_policy

SCHEDULE = VPLinearSchedule()
NO_CONTEXT = cast(SceneContext, None)


class OneMean:
    """Stands in for a policy: the exact denoiser of plans that are normal about one learned number."""

    def __init__(self, mean: float = 0.0, std: float = 0.3) -> None:
        self.mean, self.std = torch.tensor(mean, requires_grad=True), std
        self.schedule, self.beside = SCHEDULE, None
        self.config = SimpleNamespace(diffusion=SimpleNamespace(num_steps=5))

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t).reshape(t.shape + (1,) * (x.ndim - t.ndim)) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def predict_x0(self, context: SceneContext, x: Tensor, t: Tensor, policies: Any) -> Tensor:
        assert policies == ADAPTERS
        return self.x0(x, t)[None]

    def sample_chain(
        self, context: Any, count: int, solver: SDESolver, generator: Any, sampling: Sampling | None = None
    ) -> tuple[Tensor, Chain]:
        scenes = len(generator)
        noise = normal((scenes, count, solver.num_steps + 1, 8, 3), generator, "cpu")
        chain = solver.sample(self.x0, noise)
        return chain.states[:, :, -1], chain


def rolled(
    algorithm: ChainAlgorithm, policy: OneMean, candidates: int, reward: Callable[[Tensor], Tensor], seed: int = 0
) -> RolloutBatch:
    """Roll-outs of three scenes with their targets; ``reward`` takes plans (scene, candidate, 8, 3)."""
    with torch.no_grad():
        roll_outs = algorithm.roll_out(cast(DPVLA, policy), NO_CONTEXT, candidates, RandomRows([seed, seed + 1, 9]))
    targets = algorithm.targets({"score": reward(roll_outs["plans"]).double()}, roll_outs)
    return RolloutBatch(NO_CONTEXT, roll_outs, targets, random=RandomRows([seed, seed + 1, 9]))


def loss_of(algorithm: ChainAlgorithm, policy: OneMean, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
    return algorithm.loss(cast(DPVLA, policy), batch)


def near(target: float) -> Callable[[Tensor], Tensor]:
    """A reward that is best where a plan's mean is ``target``."""
    return lambda plans: torch.exp(-20 * (plans.mean((-2, -1)) - target).square())


GENTLE = {"min_sampling_std": 0.0, "min_logprob_std": 0.05}
MAKE: dict[str, Callable[..., ChainAlgorithm]] = {
    "grpo": lambda **more: GRPO(GRPOConfig(**({"reference_weight": 0.0} | more))),
    "dppo": lambda **more: DPPO(DPPOConfig(**more)),
}


def by_hand(config: ChainConfig, widths: list[float], policy: OneMean, batch: RolloutBatch, old: Tensor) -> Tensor:
    """The loss in loops, from ``torch.distributions``."""
    solver = SDESolver(SCHEDULE, 5, config.roll_out_sampler)
    chain, total = batch.roll_outs["chain"], []
    for scene in range(chain.shape[0]):
        for plan in range(chain.shape[1]):
            before = None
            for i, step in enumerate(solver.steps):
                x, after = chain[scene, plan, i], chain[scene, plan, i + 1]
                x0 = policy.x0(x, solver.times[i])
                mean = step.of_x * x + step.of_x0 * x0
                if before is not None:
                    mean = mean + step.of_slope * (x0 - before)
                before = x0
                log_prob = Normal(mean, max(step.std, config.min_logprob_std)).log_prob(after).clamp(-5, 2).mean()
                ratio = (log_prob - old[scene, plan, i]).exp()
                advantage = batch.targets["advantages"][scene, plan] * config.gamma_denoising ** (4 - i)
                clipped = ratio.clamp(1 - widths[i], 1 + widths[i])
                total.append(-torch.minimum(ratio * advantage, clipped * advantage))
    return torch.stack(total).mean()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("sampler", ["sde", "ddim"])
def test_the_loss_and_its_gradient_are_those_of_loops_over_steps(name: str, sampler: str) -> None:
    algorithm, policy = MAKE[name](roll_out_sampler=sampler, num_steps=5, clip=0.02), OneMean()
    batch = rolled(algorithm, policy, 4, near(0.2))
    policy.mean = torch.tensor(0.02, requires_grad=True)  # it has moved: some ratios are clipped
    loss, info = loss_of(algorithm, policy, batch)
    expected = by_hand(algorithm.config, algorithm.clip_widths(5), policy, batch, batch.roll_outs["log_probs"])
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value, policy.mean)[0] for value in (loss, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert 0 < float(info["rl/clip_fraction"]) < 1 and float(info["rl/approx_kl"]) > 0


def test_advantages_are_of_the_group_in_grpo_and_of_the_cycle_in_dppo() -> None:
    rewards = torch.tensor([[0.0, 1.0], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    scores = {"score": rewards}
    torch.testing.assert_close(
        MAKE["grpo"]().targets(scores, {})["advantages"], torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
    )
    centered = torch.tensor([[-0.5, 0.5], [-0.1, 0.1], [0.0, 0.0]])
    spread = centered.square().mean().sqrt()
    torch.testing.assert_close(MAKE["dppo"]().targets(scores, {})["advantages"], centered / spread)
    values = torch.tensor([[0.3, 0.3], [0.1, 0.1], [0.2, 0.2]])
    against = rewards.float() - values
    targets = MAKE["dppo"]().targets(scores, {"values": values})
    torch.testing.assert_close(targets["advantages"], (against - against.mean()) / against.std(unbiased=False))
    torch.testing.assert_close(targets["returns"], rewards.float())


def test_the_clip_of_dppo_grows_from_its_base_to_its_width() -> None:
    widths = DPPO(DPPOConfig()).clip_widths(10)
    expected = [0.001 + 0.009 * (math.exp(3 * i / 9) - 1) / (math.exp(3) - 1) for i in range(10)]
    assert widths == pytest.approx(expected)
    assert widths[0] == 0.001 and widths[-1] == pytest.approx(0.01)
    assert GRPO(GRPOConfig()).clip_widths(3) == [0.2] * 3


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("sampler", ["sde", "ddim"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_some_of_the_steps_have_the_loss_of_all_on_average(name: str, sampler: str, count: int) -> None:
    algorithm, policy = MAKE[name](roll_out_sampler=sampler, num_steps=5, steps_per_update=count), OneMean()
    batch = rolled(algorithm, policy, 4, near(0.2))
    policy.mean = torch.tensor(0.02, requires_grad=True)
    losses = []
    for first in range(5):
        steps = ((first + torch.arange(count)) % 5).expand(3, 4, count)
        algorithm._steps = lambda *_, steps=steps: steps  # type: ignore[method-assign]
        losses.append(loss_of(algorithm, policy, batch)[0])
    whole = loss_of(MAKE[name](roll_out_sampler=sampler, num_steps=5), policy, batch)[0]
    torch.testing.assert_close(torch.stack(losses).mean(), whole)


def test_drawn_steps_are_successive_and_every_step_is_drawn_equally_often() -> None:
    algorithm = MAKE["grpo"](steps_per_update=3)
    steps = algorithm._steps(torch.Size((50, 40)), 10, RandomRows(range(50)), torch.device("cpu"))
    assert steps.shape == (50, 40, 3)
    assert ((steps.diff(dim=-1) % 10) == 1).all()
    counts = steps.flatten().bincount(minlength=10)
    assert len(counts) == 10 and (counts - 600).abs().max() < 5 * (600 * 0.9) ** 0.5
    everything = MAKE["grpo"]()._steps(torch.Size((2, 3)), 4, None, torch.device("cpu"))
    assert everything.tolist() == [[[0, 1, 2, 3]] * 3] * 2


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([*MAKE]), st.sampled_from([0, 2]), st.floats(0, 1), st.integers(0, 99), st.booleans())
def test_scenes_whose_plans_have_equal_rewards_move_nothing(
    name: str, some: int, reward: float, seed: int, moved: bool
) -> None:
    algorithm, policy = MAKE[name](steps_per_update=some), OneMean(0.1)

    def one_of_three(plans: Tensor) -> Tensor:
        rewards = torch.full(plans.shape[:2], reward)
        rewards[2, 0] = 1 - reward / 2 if reward < 0.6 else 0.0
        return rewards

    batch = rolled(algorithm, policy, 3, one_of_three, seed)
    equal = replace(batch, roll_outs=rows(batch.roll_outs), targets=rows(batch.targets), random=RandomRows([1, 2]))
    if moved:
        policy.mean = torch.tensor(0.3, requires_grad=True)
    loss_of(algorithm, policy, equal)[0].backward()
    assert policy.mean.grad is not None and float(policy.mean.grad) == 0


def rows(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:2] for name, value in values.items()}


def test_imitating_own_chains_moves_nothing_on_average() -> None:
    """Why these losses do not drift on own samples; and where the policy has moved, it is pulled back."""
    algorithm, slopes = MAKE["grpo"](reference_weight=1.0, min_sampling_std=0.1), []
    for mean in (0.0, 0.1):
        policy, found = OneMean(mean), []
        for seed in range(100):
            reference = OneMean()
            policy.sample_chain = reference.sample_chain  # type: ignore[method-assign]
            batch = RolloutBatch(NO_CONTEXT, {}, {}, random=RandomRows(range(100 * seed, 100 * seed + 20)))
            solver = algorithm.solver(cast(DPVLA, policy))
            loss = algorithm._reference_loss(cast(DPVLA, policy), batch, solver)
            found.append(torch.autograd.grad(loss, policy.mean)[0])
        values = torch.stack(found)
        slopes.append(float(values.mean() / values.std() * len(values) ** 0.5))
    assert abs(slopes[0]) < 4 < slopes[1] - 10


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("some", [0, 2])
def test_the_best_number_is_found(name: str, some: int) -> None:
    """A bandit: plans about one number, of which 0.4 is the best."""
    settings = {"clip": 0.2, "clip_base": 0.2} if name == "dppo" else {}
    algorithm, policy = MAKE[name](steps_per_update=some, **GENTLE, **settings), OneMean(0.0)
    optimizer = torch.optim.Adam([policy.mean], lr=0.02)
    for cycle in range(30):
        batch = rolled(algorithm, policy, 16, near(0.4), 10 * cycle + 20)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(algorithm, policy, replace(batch, random=RandomRows([cycle, 1, 2])))[0].backward()
            optimizer.step()
    assert float(policy.mean.detach()) == pytest.approx(0.4, abs=0.08)


# ---------------------------------------------------------------- with the real policy


def real(precision: str = "no", adapters: tuple[str, ...] = ADAPTERS) -> tuple[DPVLA, SceneContext]:
    policy, source = make_policy(clip_ratio=1.5)
    policy.merge_adapters()
    policy.add_adapters(adapters, 4)
    for parameter in policy.adapter_parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    policy.config = replace(policy.config, diffusion=replace(policy.config.diffusion, num_steps=5))
    policy.precision = precision  # type: ignore[assignment]
    policy.freeze_encoder()
    return policy.eval(), policy.encode(source.batch(range(4)))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("some", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_the_ratio_is_one_until_the_policy_moves(name: str, precision: str, some: int, train: bool) -> None:
    """In float32 up to rounding; under autocast batches of other shapes may round x0 to other bf16 neighbors."""
    algorithm, (policy, context) = MAKE[name](steps_per_update=some), real(precision)
    with torch.no_grad(), policy.autocast():
        roll_outs = algorithm.roll_out(policy, context, 3, RandomRows(range(4)))
    targets = algorithm.targets({"score": torch.rand(4, 3, dtype=torch.float64)}, roll_outs)
    batch = RolloutBatch(context, roll_outs, targets, random=RandomRows(range(4)))
    with policy.train(train).autocast():
        loss, info = algorithm.loss(policy, batch)
    tolerance = 2e-6 if precision == "no" else 2e-3
    assert float(info["rl/ratio"]) == pytest.approx(1, abs=tolerance)
    assert float(info["rl/approx_kl"]) == pytest.approx(0, abs=tolerance)
    assert float(info["rl/clip_fraction"]) == 0 or precision == "bf16"
    loss.backward()
    norms = [float(p.grad.norm()) for p in policy.adapter_parameters() if p.grad is not None]
    assert len(norms) == len(policy.adapter_parameters()) and min(norms) > 0
    assert all(p.grad is None for p in policy.encoder.parameters())


def test_the_reference_is_the_head_without_adapters() -> None:
    algorithm, (policy, context) = MAKE["grpo"](reference_weight=0.5), real()
    solver, seen = algorithm.solver(policy), []

    def log_probs(*given: Any) -> Tensor:
        seen.append(given[3])
        return torch.zeros(4, 1, 5)

    algorithm.log_probs = log_probs  # type: ignore[assignment]
    algorithm._reference_loss(policy, RolloutBatch(context, {}, {}, random=RandomRows(range(4))), solver)
    expected = policy.sample_chain(context, 1, solver, RandomRows(range(4)), Sampling())[1].states
    moved = policy.sample_chain(context, 1, solver, RandomRows(range(4)))[1].states
    assert torch.equal(seen[0], expected) and not torch.allclose(expected, moved, atol=1e-2)


def test_a_scene_is_rolled_out_the_same_in_any_batch() -> None:
    algorithm, (policy, context) = MAKE["dppo"](), real()
    whole = algorithm.roll_out(policy, context, 3, RandomRows([5, 6, 7, 8]))
    part = algorithm.roll_out(policy, context.select(torch.tensor([2])), 3, RandomRows([7]))
    assert torch.equal(whole["chain"][2:3, :, 0], part["chain"][:, :, 0])
    for name, value in part.items():
        torch.testing.assert_close(whole[name][2:3], value, rtol=1e-4, atol=1e-4)
    decoded = policy.plan_coding.decode(whole["chain"][:, :, -1], context.ego_status)
    assert torch.equal(whole["plans"], decoded)


@pytest.mark.parametrize("sampler", ["sde", "ddim"])
def test_roll_outs_of_any_algorithm_may_be_stochastic(sampler: str) -> None:
    names = ("positive", "negative")
    policy, context = real(adapters=names)
    policy.sampling = Sampling(names, 1.0)
    config = DipoleConfig(roll_out_sampler=sampler)  # type: ignore[arg-type]
    plans = Dipole(config).roll_out(policy, context, 3, RandomRows(range(4)))
    solver = SDESolver(policy.schedule, 5, config.roll_out_sampler)  # type: ignore[arg-type]
    assert plans.keys() == {"plans"}
    assert torch.equal(plans["plans"], policy.sample_chain(context, 3, solver, RandomRows(range(4)))[0])
    unguided = policy.sample_chain(context, 3, solver, RandomRows(range(4)), Sampling(names, 0.0))[0]
    assert not torch.allclose(plans["plans"], unguided, atol=1e-3)  # the roll-out is guided
    as_later = Dipole(DipoleConfig()).roll_out(policy, context, 3, RandomRows(range(4)))["plans"]
    assert torch.equal(as_later, policy.sample(context, 3, generator=RandomRows(range(4))))


def test_a_critic_learns_what_scenes_are_worth_and_is_no_part_of_the_policy() -> None:
    algorithm, (policy, context) = DPPO(DPPOConfig(baseline="critic", value_weight=0.7)), real()
    torch.manual_seed(0)
    context = replace(context, tokens=torch.randn_like(context.tokens))
    policy.beside = algorithm.networks(policy)
    policy.freeze_encoder()
    critic, worth = policy.beside, torch.tensor([0.1, 0.9, 0.5, 0.3])
    assert isinstance(critic, Critic)
    assert not any(key.startswith("beside") for key in policy._base_state())
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        (critic(context) - worth).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(critic(context), worth, atol=0.02, rtol=0)
    rewards = torch.rand(4, 3, dtype=torch.float64)
    with torch.no_grad():
        roll_outs = algorithm.roll_out(policy, context, 3, RandomRows(range(4)))
        torch.testing.assert_close(roll_outs["values"], critic(context)[:, None].expand(-1, 3))
    batch = RolloutBatch(context, roll_outs, algorithm.targets({"score": rewards}, roll_outs))
    loss, info = algorithm.loss(policy, batch)
    policy.beside = None
    plain, error = algorithm.loss(policy, batch)[0], 0.5 * (roll_outs["values"] - rewards).square().mean()
    torch.testing.assert_close(info["rl/loss_value"].double(), error)
    torch.testing.assert_close(loss.double(), plain + 0.7 * error)


def test_masked_tokens_do_not_count_for_a_critic() -> None:
    _, context = real()
    critic, mask = Critic(context.tokens.shape[-1]), torch.ones(context.tokens.shape[:2], dtype=torch.bool)
    torch.nn.init.normal_(critic.layers[-1].weight)  # type: ignore[arg-type]
    expected = critic(replace(context, tokens=context.tokens[:, :-2]))
    mask[:, -2:] = False
    torch.testing.assert_close(critic(replace(context, mask=mask)), expected)
