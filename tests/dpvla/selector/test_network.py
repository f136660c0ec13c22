"""What the network sees of plans, by hand and by property."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpvla.models import SceneContext
from dpvla.plan import NUM_POSES, POSE_INTERVAL
from dpvla.selector.config import SelectorConfig
from dpvla.selector.network import FEATURES, SelectorNetwork, among, motion

TIMES = POSE_INTERVAL * torch.arange(1, NUM_POSES + 1)
CONFIG = SelectorConfig(width=16, heads=2, layers=2)


def context(scenes: int, masked: bool = False) -> SceneContext:
    generator = torch.Generator().manual_seed(scenes)
    return SceneContext(
        torch.randn(scenes, 5, 12, generator=generator),
        torch.arange(5).expand(scenes, 5) < 3 if masked else None,
        torch.randint(0, 4, (scenes,), generator=generator),
        torch.randn(scenes, 4, generator=generator),
        torch.randn(scenes, 3, 3, generator=generator),
    )


def some_plans(scenes: int, candidates: int, seed: int = 0) -> Tensor:
    return torch.randn(scenes, candidates, NUM_POSES, 3, generator=torch.Generator().manual_seed(seed)).cumsum(-2)


def network(seed: int = 0) -> SelectorNetwork:
    """With outputs that depend on all of it."""
    torch.manual_seed(seed)
    made = SelectorNetwork(CONFIG, 12, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@settings(deadline=None)
@given(speed=st.floats(0, 20), turn=st.floats(-0.3, 0.3))
def test_constant_speed_on_a_circle_has_no_acceleration_along_it(speed: float, turn: float) -> None:
    """By hand: a step of a circle is a chord, which is taken in the direction of the middle of its headings."""
    heading = turn * TIMES
    half = turn * POSE_INTERVAL / 2
    chord = speed * POSE_INTERVAL * (math.sin(half) / half if abs(half) > 1e-6 else 1.0)
    middle = heading - turn * POSE_INTERVAL / 2
    plan = torch.stack([(chord * middle.cos()).cumsum(0), (chord * middle.sin()).cumsum(0), heading], dim=-1)
    found = motion(plan[None, None], torch.tensor([[speed, 0.0, 0.0, 0.0]]))[0, 0]
    along, across, acceleration, yaw_rate, yaw_acceleration = found[:, [6, 7, 8, 10, 11]].unbind(-1)
    torch.testing.assert_close(along, torch.full((NUM_POSES,), chord / POSE_INTERVAL / 10), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(yaw_rate, torch.full((NUM_POSES,), turn / 0.5), atol=1e-4, rtol=1e-4)
    for zero in (across, acceleration[1:], yaw_acceleration):
        assert zero.abs().max() < 1e-3


def test_where_a_plan_lies_among_two_is_as_by_hand() -> None:
    """Two plans straight ahead, one a meter before the other and two meters beside it."""
    straight = torch.stack([10 * TIMES, 0 * TIMES, 0 * TIMES], dim=-1)
    plans = torch.stack([straight, straight + torch.tensor([1.0, 2.0, 0.0])])[None]
    found = among(plans)[0]
    expected = [-0.25, -1.0, 0.0, -0.5 / 0.7, -1.0 / 1.1, math.hypot(0.5, 1.0) / 2, 0.25, 1.0]
    torch.testing.assert_close(found[0], torch.tensor(expected).expand(NUM_POSES, 8))
    torch.testing.assert_close(found[1, :, :5], -found[0, :, :5])


def test_equal_plans_lie_in_the_middle() -> None:
    found = among(some_plans(2, 1).expand(2, 4, NUM_POSES, 3))
    assert torch.isfinite(found).all() and found.abs().max() < 1e-4


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.booleans())
def test_the_order_of_plans_and_scenes_does_not_matter(order: list[int], masked: bool) -> None:
    made, scenes, plans = network(), context(3, masked), some_plans(3, 4)
    with torch.no_grad():
        found = made(scenes, plans)
        shuffled = made(scenes, plans[:, order])
        reversed_scenes = made(scenes.select(torch.tensor([2, 1, 0])), plans.flip(0))
    assert found.shape == (3, 4, 3)
    torch.testing.assert_close(shuffled, found[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reversed_scenes, found.flip(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["tokens", "command", "ego_status", "history", "plans"])
def test_all_that_is_known_of_scene_and_plan_counts(part: str) -> None:
    made, scenes, plans = network(), context(2), some_plans(2, 3)
    with torch.no_grad():
        before = made(scenes, plans)
        if part == "plans":
            plans = plans + 0.5 * torch.randn_like(plans)
        else:
            values = getattr(scenes, part)
            other = (values + 1) % 4 if part == "command" else values + torch.randn_like(values)
            scenes = replace(scenes, **{part: other})
        after = made(scenes, plans)
    assert (before - after).abs().amax() > 1e-4


def test_tokens_behind_the_mask_do_not_count() -> None:
    made, scenes, plans = network(), context(2, masked=True), some_plans(2, 3)
    with torch.no_grad():
        before = made(scenes, plans)
        scenes.tokens[:, 3:] = 7.0
        torch.testing.assert_close(made(scenes, plans), before)


def test_the_features_are_as_many_as_the_network_takes() -> None:
    plans = some_plans(1, 2)
    assert motion(plans, torch.zeros(1, 4)).shape[-1] + among(plans).shape[-1] == FEATURES
