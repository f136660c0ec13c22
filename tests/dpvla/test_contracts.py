"""What a plug-in gives is looked at where it is used: what is not as its contract says is one line that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.algorithms.config import AlgorithmConfig
from dpvla.algorithms.registry import ALGORITHMS, make_algorithm
from dpvla.batch import DrivingBatch
from dpvla.encoders.config import EncoderConfig
from dpvla.encoders.encoder import Encoder, tokens_of, width_of
from dpvla.models import DPVLA
from dpvla.models.sampling import Sampling
from dpvla.registry import ContractError
from dpvla.rl.checks import check_loss, check_roll_outs, check_targets
from dpvla.training.config import LoopConfig
from dpvla.training.loop import _check_stride, check_logged

NAN = float("nan")


@dataclass(frozen=True)
class MineConfig(AlgorithmConfig):
    """Nothing of its own."""

    name: str = "mine"  # it


class Mine(Algorithm):
    Config = MineConfig
    adapters = ("a", "b")
    policies: tuple[str | None, ...] = ("a", None)

    def sampling(self) -> Sampling:
        return Sampling(self.policies)

    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(()), {}


MINE = Mine(MineConfig())
PLANS = torch.zeros(2, 3, 8, 3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"adapters": "abc"}, "adapters must be a tuple of names that folders can have, found 'abc'"),
        ({"adapters": ["a"]}, "adapters must be a tuple"),
        ({"adapters": ("a/b",)}, "adapters must be a tuple of names that folders can have"),
        ({"adapters": ("",)}, "adapters must be a tuple of names that folders can have"),
        ({"adapters": ("a", "a")}, "adapters need names that differ"),
        ({"policies": ("c",)}, r"sampling names 'c', which is none of its adapters \('a', 'b'\)"),
    ],
)
def test_adapters_and_sampling_that_cannot_be_are_told(
    attributes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS, "mine", type("Other", (Mine,), attributes))
    with pytest.raises(ContractError, match=f"^algorithm mine: {message}"):
        make_algorithm(MineConfig())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (PLANS, "gave torch.float32 .*, not a dict of tensors"),
        ({"plan": PLANS}, "gave no plans: it gave plan"),
        ({"plans": PLANS.flatten(0, 1)}, r"gave 'plans' as torch.float32 \(6, 8, 3\), not .* = \(2, 3\)"),
        ({"plans": PLANS[:, :, :4]}, r"gave plans of torch.float32 \(2, 3, 4, 3\), not .* = \(2, 3, 8, 3\)"),
        ({"plans": PLANS, "noise": PLANS[0]}, "gave 'noise' as "),
        ({"plans": torch.stack([PLANS[0], PLANS[1] * NAN])}, "gave NaN or infinity in 'plans', for 1 scenes, first 1"),
    ],
)
def test_roll_outs_that_cannot_be_used_are_told(given: Any, message: str) -> None:
    check_roll_outs(MINE, {"plans": PLANS, "noise": PLANS[..., 0]}, 2, 3)
    with pytest.raises(ContractError, match=f"^algorithm mine: roll_out {message}"):
        check_roll_outs(MINE, given, 2, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"g": torch.zeros(2)}, r"gave 'g' as torch.float32 \(2,\), not .* = \(2, 3\)"),
        ({"g": [1.0]}, "gave 'g' as a list"),
        ({"g": torch.full((2, 3), NAN)}, "gave NaN or infinity in 'g', for 2 scenes, first 0"),
    ],
)
def test_targets_that_cannot_be_used_are_told(given: Any, message: str) -> None:
    check_targets(MINE, {"g": torch.zeros(2, 3), "chain": torch.zeros(2, 3, 5)}, 2, 3)
    with pytest.raises(ContractError, match=f"^algorithm mine: targets {message}"):
        check_targets(MINE, given, 2, 3)


LOSS = torch.zeros((), requires_grad=True) * 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LOSS, "gave torch.float32 .*, not the loss and a dict"),
        ((LOSS.expand(3), {}), "gave torch.float32 .* as the loss, not a tensor of one number: take a mean"),
        ((LOSS.detach(), {}), "depends on nothing that is trained"),
        ((LOSS, {"rl/x": 3.0}), "logs 'rl/x' as a float, not a tensor of one number"),
        ((LOSS, {"rl/x": PLANS}), "logs 'rl/x' as torch.float32"),
    ],
)
def test_a_loss_that_cannot_be_used_is_told(given: Any, message: str) -> None:
    check_loss(MINE, (LOSS, {"rl/x": LOSS.detach()}))
    with pytest.raises(ContractError, match=f"^algorithm mine: loss {message}"):
        check_loss(MINE, given)


class Gives(Encoder[EncoderConfig]):
    token_width = 4
    given: Any

    def forward(self, batch: DrivingBatch) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 5, 4), "gives a Tensor, not tokens .* and a mask or None"),
        ((torch.zeros(2, 5, 3), None), r"gives tokens \(2, 5, 3\), not \(scene, token, width\) = \(2, token, 4\)"),
        ((torch.zeros(1, 5, 4), None), r"gives tokens \(1, 5, 4\)"),
        ((torch.zeros(2, 5, 4), torch.ones(2, 4).bool()), r"gives a mask \(2, 4\) of torch.bool, not .* = \(2, 5\)"),
        ((torch.zeros(2, 5, 4), torch.ones(2, 5)), r"gives a mask \(2, 5\) of torch.float32"),
    ],
)
def test_tokens_that_cannot_be_used_are_told(given: Any, message: str) -> None:
    encoder = Gives(EncoderConfig("gives", ("front",), 32, 16))
    batch = encoder.fake_batch(2)
    encoder.given = torch.zeros(2, 5, 4), torch.ones(2, 5).bool()
    assert tokens_of(encoder, batch) is not None
    encoder.given = given
    with pytest.raises(ContractError, match=f"^the encoder gives {message}"):
        tokens_of(encoder, batch)


def test_an_encoder_sets_the_width_of_its_tokens() -> None:
    encoder = Gives(EncoderConfig("gives", ("front",), 32, 16))
    assert width_of(encoder) == 4
    for width in (None, 0, 2.5):
        encoder.token_width = width  # type: ignore[assignment]
        with pytest.raises(ContractError, match=f"the encoder gives must set token_width, .* found {width}"):
            width_of(encoder)


def test_a_strategy_logs_its_loss_and_says_its_stride() -> None:
    assert check_logged({"train/loss": LOSS})
    for given, message in (
        ({}, "step gave no train/loss"),
        (None, "step gave no train/loss"),
        ({"train/loss": 3.0}, "step logs 'train/loss' as something else than a tensor of one number"),
        ({"train/loss": LOSS, "x": PLANS}, "step logs 'x' as"),
    ):
        with pytest.raises(ContractError, match=f"^loop.strategy: {message}"):
            check_logged(given)
    for stride in (0, None, 1.5):
        with pytest.raises(ContractError, match=f"stride must be how many updates a step makes, found {stride}"):
            _check_stride(dataclasses.replace(LoopConfig(), steps=4), stride)
