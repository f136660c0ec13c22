"""What holds for every algorithm of the registry: a new one needs a line in ``WITHOUT_PREFERENCES``."""

from __future__ import annotations

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvla.algorithms.registry import ALGORITHMS
from dpvla.models.config import LoRAConfig
from tests.dpvla.algorithms.bandit import OPTIMUM, SCENES, Player, reward
from tests.paths import ROOT

WITHOUT_PREFERENCES = {
    "dipole": "imitation",
    "weighted_regression": "imitation",
    "cfgrl": "imitation",
    "best_of_group": "nothing",
    "grpo": "nothing",
    "dppo": "nothing",
}
"""What a scene teaches whose plans all have the same reward: to imitate the policy's own plans, or nothing."""
REGULARIZERS = {"grpo": {"reference_weight": 0.0}}
"""Options that leave out of a loss what has nothing to do with rewards."""
CLIMBS = {"grpo": (16, 5, 1e-2), "dppo": (16, 5, 1e-2)}
"""Cycles, updates of each and rate: clipped ratios go slowly, and their log-probabilities are means over numbers."""
OWN = [name for name in ALGORITHMS if str(ALGORITHMS[name]).startswith("dpvla.")]


def test_every_algorithm_says_what_it_does_without_preferences() -> None:
    assert not set(OWN) - set(WITHOUT_PREFERENCES)


@pytest.mark.parametrize("name", OWN)
def test_a_bandit_with_a_known_optimum_is_climbed(name: str) -> None:
    player = Player.of(name, **REGULARIZERS.get(name, {}))
    before = player.roll_out(9)["plans"][:, :, -1, 1].mean()
    cycles, updates, lr = CLIMBS.get(name, (4, 10, 1e-3))
    rewards = player.climb(cycles, updates, lr)
    after = player.roll_out(9)["plans"][:, :, -1, 1].mean()
    assert rewards[-1] > rewards[0] + 0.1, rewards
    assert abs(float(after) - OPTIMUM) < 0.75 * abs(float(before) - OPTIMUM)


@pytest.mark.parametrize("name", OWN)
def test_where_all_rewards_are_equal_there_is_at_most_imitation(name: str) -> None:
    player = Player.of(name, **REGULARIZERS.get(name, {}))
    player.move_adapters()
    roll_outs = player.roll_out()
    rewards = reward(roll_outs["plans"])
    rewards[0] = 0.7
    batch = player.batch(roll_outs, rewards).select(torch.tensor([0]))
    found = player.gradient(batch)
    if WITHOUT_PREFERENCES[name] == "nothing":
        assert float(found.abs().max()) == 0
        return
    player.policy.zero_grad()
    assert batch.random is not None
    t, noise = player.policy.draw(1, player.candidates, batch.random.select([0]))
    names = player.algorithm.adapters
    player.policy.denoising_errors(batch.context, batch.plans, t, noise, names).mean((1, 2)).sum().backward()
    imitation = torch.cat([p.grad.flatten() for p in player.policy.adapter_parameters() if p.grad is not None])
    assert float(torch.cosine_similarity(found, imitation, dim=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_a_cycle_without_any_preference_has_targets_that_are_finite(name: str) -> None:
    player = Player.of(name)
    roll_outs = player.roll_out()
    rewards = torch.full((SCENES, player.candidates), 0.3, dtype=torch.float64)
    rewards[1] += 1e-5 * torch.rand(player.candidates, dtype=torch.float64)
    assert all(bool(value.isfinite().all()) for value in player.batch(roll_outs, rewards).targets.values())


@pytest.mark.parametrize("name", OWN)
def test_the_loss_is_a_mean_over_scenes_that_do_not_see_each_other(name: str) -> None:
    player = Player.of(name)
    player.move_adapters()
    roll_outs = player.roll_out()
    batch = player.batch(roll_outs, reward(roll_outs["plans"]))
    alone = [player.gradient(batch.select(torch.tensor([scene]))) for scene in range(SCENES)]
    torch.testing.assert_close(player.gradient(batch), torch.stack(alone).mean(0), rtol=1e-3, atol=1e-6)


PLAYERS: dict[str, tuple[Player, dict[str, torch.Tensor]]] = {}


@pytest.mark.parametrize("name", OWN)
@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.lists(st.sampled_from([0, 1e-6, 0.2, 0.2001, 0.9, 1]), min_size=4, max_size=4), min_size=4, max_size=4)
)
def test_any_rewards_give_a_finite_loss_and_gradient(name: str, rewards: list[list[float]]) -> None:
    if name not in PLAYERS:
        player = Player.of(name)
        player.candidates = 4
        player.move_adapters()
        PLAYERS[name] = player, player.roll_out()
    player, roll_outs = PLAYERS[name]
    values = torch.tensor(rewards, dtype=torch.float64)
    if (values.std(-1, unbiased=False) < 0.01).all():
        values[0, 0] += 0.5
    assert player.gradient(player.batch(roll_outs, values)).isfinite().all()


def test_every_algorithm_trains_equally_many_numbers() -> None:
    sizes = {name: sum(p.numel() for p in Player.of(name).policy.adapter_parameters()) for name in OWN}
    assert len(set(sizes.values())) == 1, sizes
    assert LoRAConfig(3, 5).of(("a", "b")) == (3, 5) and LoRAConfig(3, 5).of(("a",)) == (6, 10)


@pytest.mark.parametrize("name", ["weighted_regression", "cfgrl", "best_of_group"])
def test_the_recipes_differ_in_the_algorithm_alone(name: str) -> None:
    ours, dipole = (yaml.safe_load((ROOT / f"configs/{one}_demo.yaml").read_text()) for one in (name, "dipole"))
    assert ours.pop("algorithm")["name"] == name
    dipole.pop("algorithm")
    assert ours == dipole
