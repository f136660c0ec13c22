"""What sampling knows of adapters: which policies, how greedy, in how many steps; and that files keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpvla.config import ConfigError
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.sampling import FORMER_ADAPTERS, Sampling, read_sampling
from dpvla.plan import NUM_POSES
from tests.dpvla.models.tiny_policies import make_batch, make_policy, randomize_adapters


def plans(policy: DPVLA, sampling: Sampling | None = None, omega: float | None = None) -> torch.Tensor:
    context = policy.encode(make_batch(policy.config))
    return policy.sample(context, 2, omega, torch.Generator().manual_seed(0), sampling=sampling)


@pytest.fixture
def policy() -> DPVLA:
    made = make_policy(DPVLAConfig.tiny())
    made.add_adapters(("a", "b", "c"), 4, 4)
    randomize_adapters(made)
    return made


@pytest.mark.parametrize(
    "sampling", [Sampling(("b",)), Sampling(("c", "a"), 0.5), Sampling(("a", None), 2.0, num_steps=4), Sampling()]
)
def test_any_policy_or_pair_of_policies_is_sampled_kept_and_read_back(
    policy: DPVLA, sampling: Sampling, tmp_path: Path
) -> None:
    policy.sampling = sampling
    expected = plans(policy)
    assert torch.equal(plans(policy, sampling), expected)
    policy.save_pretrained(tmp_path / "model")
    policy.save_adapters(tmp_path / "adapters")
    loaded = DPVLA.from_pretrained(tmp_path / "model")
    assert loaded.load_adapters(tmp_path / "adapters")
    assert loaded.sampling == sampling and loaded.head.adapters == ("a", "b", "c")
    assert torch.equal(plans(loaded), expected)
    others = [Sampling(("a",)), Sampling(("b", "c"), 1.0)]
    assert not any(torch.equal(plans(policy, other), expected) for other in others)


def test_many_samplings_of_one_context_are_those_of_each_alone_to_the_bit(
    policy: DPVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = policy.encode(make_batch(policy.config))
    shape = (len(context), 1, NUM_POSES, policy.plan_coding.num_channels)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    pair = [Sampling(("a", "b"), omega) for omega in (0.0, 0.5, 4.0)]
    samplings = [*pair, Sampling(("c",)), Sampling(("b", "a"), 1.0, num_steps=4), Sampling()]
    draws = [(sampling, one) for sampling in samplings for one in noise]
    alone = [policy.sample(context, 1, noise=one, sampling=sampling) for sampling, one in draws]
    prepared = []
    prepare = policy.head.prepare

    def counted(*given: Any) -> Any:
        prepared.append(given[3])
        return prepare(*given)

    monkeypatch.setattr(policy.head, "prepare", counted)
    for found, expected in zip(policy.sample_each(context, draws), alone, strict=True):
        assert torch.equal(found, expected) and not found.requires_grad
    assert prepared == [("a",), ("a", "b"), ("c",), ("b", "a"), (None,)]  # once for those that follow each other


def test_steps_are_those_of_the_sampling_and_else_of_the_model(policy: DPVLA) -> None:
    ten, four = plans(policy, Sampling(("a",))), plans(policy, Sampling(("a",), num_steps=4))
    assert not torch.allclose(ten, four, atol=1e-3)
    assert torch.equal(plans(policy, Sampling(("a",), num_steps=10)), ten)
    assert torch.equal(plans(policy, Sampling(("a",))), ten)


def test_merging_takes_what_is_sampled_and_leaves_the_rest_out(policy: DPVLA) -> None:
    """With one policy exactly: a merged adapter is a linear layer's own weight."""
    policy.sampling = Sampling(("b",))
    expected = plans(policy)
    policy.merge_adapters()
    assert not policy.has_adapters and policy.sampling == Sampling()
    torch.testing.assert_close(plans(policy), expected, rtol=1e-3, atol=1e-3)


def test_new_adapters_are_sampled_in_the_order_of_their_names() -> None:
    for names, wanted in ((("x",), Sampling(("x",))), (("x", "y"), Sampling(("x", "y"), 1.0))):
        policy = make_policy(DPVLAConfig.tiny())
        policy.add_adapters(names, 4, 4)
        assert policy.sampling == wanted
    with pytest.raises(RuntimeError, match="already has adapters: x, y"):
        policy.add_adapters(("z",))
    for wrong in ((), ("x", "x"), ("",)):
        with pytest.raises(ValueError, match="names that differ"):
            make_policy(DPVLAConfig.tiny()).add_adapters(wrong)


def test_files_without_names_are_of_the_pair(tmp_path: Path) -> None:
    (tmp_path / "sampling.json").write_text('{"omega": 2.5, "precision": "no"}')
    found = read_sampling(tmp_path)
    assert found is not None and found.adapters == FORMER_ADAPTERS and found.sampling == Sampling(FORMER_ADAPTERS, 2.5)
    assert read_sampling(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": []}, "one policy or two"),
        ({"policies": ["a", "b", "c"]}, "one policy or two"),
        ({"policies": ["a", "a"]}, "must differ"),
        ({"policies": ["d"]}, "'d', which is none of its adapters"),
        ({"policies": [3]}, "policies must be"),
        ({"num_steps": 1}, "num_steps must be"),
        ({"adapters": ["../x", "b", "c"]}, "no folder beside it"),
        ({"adapters": ["..", "b", "c"]}, "no folder beside it"),
        ({"adapters": ["a", "b", "c", "a"]}, "names that differ"),
        ({"adapters": []}, "none of its adapters"),
    ],
)
def test_a_description_that_means_nothing_is_named(
    policy: DPVLA, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    policy.save_adapters(tmp_path)
    path = tmp_path / "sampling.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message) as error:
        policy.load_adapters(tmp_path)
    assert str(path) in str(error.value)
