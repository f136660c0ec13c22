"""Each row of a batch has random numbers of its own."""

import pytest
import torch

from dpvla.models import DPVLA, DPVLAConfig
from dpvla.random_rows import RandomRows, mix
from tests.scenes_in_memory import ScenesInMemory


def test_a_scene_has_the_same_numbers_in_whatever_batch_it_stands() -> None:
    whole, part = RandomRows.of([4, 7, 2, 9], 1, 5), RandomRows.of([9, 7], 1, 5)
    for _ in range(2):
        assert torch.equal(whole.normal(3, 8)[[3, 1]], part.normal(3, 8))
    assert torch.equal(whole.uniform(2)[[3, 1]], part.uniform(2))
    assert torch.equal(whole.select([0]).normal(3), RandomRows.of([4], 1, 5).normal(3))


def test_scenes_steps_and_calls_have_different_numbers() -> None:
    rows = RandomRows.of(range(2000), 1, 5)
    drawn = torch.stack([rows.normal(8), rows.normal(8), RandomRows.of(range(2000), 1, 6).normal(8)])
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.std()) - 1) < 0.02
    correlations = torch.corrcoef(torch.cat([drawn.flatten(1), drawn.roll(1, 1).flatten(1)])) - torch.eye(6)
    assert correlations.abs().max() < 0.04
    assert len({mix(a, b) for a in range(50) for b in range(50)}) == 2500


def test_plans_and_losses_of_a_scene_do_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    policy = DPVLA.from_config(DPVLAConfig.tiny()).eval()
    source = ScenesInMemory(4, policy.encoder.sensors)
    policy.plan_coding.fit(source.plans(), source.ego_status())
    context = policy.encode(source.batch([0, 1, 2, 3]))
    plans = policy.sample(context, 3, generator=RandomRows.of([0, 1, 2, 3], 8))
    one = policy.sample(context.select(torch.tensor([2])), 3, generator=RandomRows.of([2], 8))
    assert torch.allclose(plans[2:3], one, atol=1e-5)
    t, noise = policy.draw(4, 2, RandomRows.of([0, 1, 2, 3], 8))
    alone = policy.draw(1, 2, RandomRows.of([3], 8))
    assert torch.equal(t[3:], alone[0]) and torch.equal(noise[3:], alone[1])
    with pytest.raises(ValueError, match="2 rows were asked for 3"):
        policy.draw(3, 2, RandomRows([1, 2]))
