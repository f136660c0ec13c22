"""Tokens of a cycle: kept or made anew they are the same, bad ones are told, and updates wait for no device."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator

from dpvla.registry import ContractError
from dpvla.rl.token_cache import TokenCache
from tests.gpu.pretended import PretendedGPU
from tests.gpu.tiny_driving import make_policy, training_on

ORDER = torch.tensor([4, 0, 3, 1, 5])


def test_kept_tokens_are_those_made_anew_for_every_batch() -> None:
    policy, source = make_policy()
    accelerator, batches = Accelerator(cpu=True), [[3, 0], [1], [4, 3]]
    kept, anew = (TokenCache(policy, source, ORDER, accelerator, 2, limit_gb=limit) for limit in (1.0, 0.0))
    assert [*map(len, (part for part, _ in kept.portions()))] == [2, 2, 1]
    for (_, one), (_, two) in zip(kept.portions(), anew.portions(), strict=True):
        assert torch.equal(one.tokens, two.tokens)
    for one, two, rows in zip(kept.batches(batches), anew.batches(batches), batches, strict=True):
        torch.testing.assert_close(one.tokens, two.tokens)
        assert torch.equal(two.ego_status, source.batch(ORDER[rows].tolist()).ego_status)
    assert (kept.encodings, anew.encodings, anew.encodes_batches) == (5, 2 + 5 + 5, True)


@pytest.mark.parametrize("limit_gb", [1.0, 0.0])
def test_tokens_that_are_not_finite_name_encoder_and_scene(limit_gb: float) -> None:
    policy, source = make_policy()
    forward = policy.encoder.forward

    def broken(batch: object) -> object:
        tokens, mask = forward(batch)  # type: ignore[arg-type]
        return tokens.index_fill(0, torch.tensor([1]), torch.nan), mask

    with (
        patch.object(policy.encoder, "forward", broken),
        pytest.raises(ContractError, match=f"timm gives NaN or infinity for 1 scenes, first {source.tokens[0]}"),
    ):
        TokenCache(policy, source, ORDER, Accelerator(cpu=True), 2, limit_gb)


def test_a_batch_encoded_anew_waits_for_nothing() -> None:
    policy, source = make_policy()
    gpu = PretendedGPU()
    with training_on(gpu) as accelerator, torch.no_grad():
        policy.to(gpu.device)
        cache = TokenCache(policy, source, ORDER, accelerator, 2, limit_gb=0.0)
        gpu.forget()
        context = next(cache.batches([[0, 2]]))
        assert context.device == gpu.device and sum(gpu.syncs.values()) == 0, gpu.syncs
