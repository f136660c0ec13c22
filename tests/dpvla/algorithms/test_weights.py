"""Weights of the algorithms that weight plans, by hand; and of their loss."""

from __future__ import annotations

from math import exp, sqrt

import pytest
import torch
from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.algorithms.best_of_group import BestOfGroup
from dpvla.algorithms.cfgrl import CFGRL
from dpvla.algorithms.config import BestOfGroupConfig, CFGRLConfig, DipoleConfig, WeightedRegressionConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.algorithms.weighted import weighted_errors
from dpvla.algorithms.weighted_regression import WeightedRegression
from dpvla.config import ConfigError
from dpvla.models.sampling import Sampling

REWARDS = torch.tensor([[0.2, 0.6, 0.6, 0.2], [0.9, 0.9, 0.9, 0.906], [0.0, 0.0, 0.0, 0.4]], dtype=torch.float64)
"""Advantages are -1, 1, 1, -1; too small a spread (0.0026); and -1/sqrt(3) three times, then sqrt(3)."""


def targets(algorithm: WeightedRegression | CFGRL | BestOfGroup | Dipole) -> dict[str, Tensor]:
    return algorithm.targets({"score": REWARDS}, {})


def test_a_group_below_the_floor_prefers_nothing_and_one_at_it_does() -> None:
    advantages, flat = group_advantages(REWARDS, 0.01)
    assert flat.tolist() == [False, True, False] and advantages[1].tolist() == [0] * 4
    torch.testing.assert_close(advantages[0], torch.tensor([-1.0, 1, 1, -1]).double())
    assert not group_advantages(REWARDS, 0.0025)[1].any()
    assert group_advantages(REWARDS, 0.0025)[0][1, 3] == pytest.approx(sqrt(3))
    assert group_advantages(REWARDS, 0.3)[1].all()


def test_the_control_alone_learns_from_any_reward() -> None:
    assert Dipole(DipoleConfig()).learns_from_rewards and not Dipole(DipoleConfig(beta=0)).learns_from_rewards


def test_regression_weights_are_exponential_clipped_and_normalized_as_asked() -> None:
    plain = WeightedRegression(WeightedRegressionConfig(beta=2.0, clip=None))
    high, low = exp(2), exp(-2)
    expected = torch.tensor([[low, high, high, low], [1.0] * 4, [exp(-2 / sqrt(3))] * 3 + [exp(2 * sqrt(3))]])
    torch.testing.assert_close(targets(plain)["weights"], expected)
    clipped = WeightedRegression(WeightedRegressionConfig(beta=2.0, clip=5.0))
    torch.testing.assert_close(targets(clipped)["weights"], expected.clamp_max(5))
    normal = WeightedRegression(WeightedRegressionConfig(beta=2.0, clip=5.0, normalize=True))
    torch.testing.assert_close(targets(normal)["weights"], expected.clamp_max(5) / expected.clamp_max(5).mean())
    assert plain.sampling() == Sampling(("policy",))
    with pytest.raises(
        ConfigError, match=r"algorithm\.beta 90 makes weights of up to .*e\+67, .*--algorithm\.clip 100"
    ):
        targets(WeightedRegression(WeightedRegressionConfig(beta=90.0, clip=None)))
    assert targets(WeightedRegression(WeightedRegressionConfig(beta=90.0)))["weights"].amax() == 100


def test_cfgrl_learns_the_positive_plans_and_all() -> None:
    algorithm = CFGRL(CFGRLConfig(omega=0.5))
    weights = algorithm.weights(targets(algorithm))
    assert weights["positive"].tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert weights["null"].tolist() == [[1.0] * 4] * 3
    strict = CFGRL(CFGRLConfig(threshold=1.5))
    assert strict.weights(targets(strict))["positive"].tolist() == [[0] * 4, [0] * 4, [0, 0, 0, 1]]
    assert algorithm.sampling().shares() == {"positive": 1.5, "null": -0.5}


def test_the_best_of_a_group_share_its_weight() -> None:
    algorithm = BestOfGroup(BestOfGroupConfig())
    assert targets(algorithm)["weights"].tolist() == [[0, 2, 2, 0], [0] * 4, [0, 0, 0, 4]]
    assert float(REWARDS.mean()) == pytest.approx(0.467167, abs=1e-6)
    only = BestOfGroup(BestOfGroupConfig(only_when="beats_mean"))  # 0.4 is below the mean of the cycle
    assert targets(only)["weights"].tolist() == [[0, 2, 2, 0], [0] * 4, [0] * 4]


def test_the_loss_is_the_weighted_mean_of_each_adapters_errors() -> None:
    errors = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    weights = {"a": torch.tensor([[1.0, 0.0], [0.5, 0.0]]), "b": torch.tensor([[0.0, 0.0], [0.0, 2.0]])}
    loss, info = weighted_errors(weights, errors)
    assert float(loss) == (1 + 1.5) / 4 + 16 / 4
    assert {name: float(value) for name, value in info.items()} == {
        "rl/loss_a": 0.625, "rl/loss_b": 4.0, "rl/weight_a": 0.375, "rl/weight_b": 0.5,
    }  # fmt: skip
