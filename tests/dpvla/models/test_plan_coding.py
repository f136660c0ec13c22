"""Plans to normalized numbers and back."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpvla.models import PlanCodingConfig
from dpvla.models.plan_coding import PlanCoding


def _plans(scenes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    status = torch.randn(scenes, 4, generator=generator, dtype=dtype) * 5
    plans = torch.randn(scenes, 8, 3, generator=generator, dtype=dtype).cumsum(1) * torch.tensor([4.0, 1.0, 0.3])
    return plans, status


def _coding(**options: Any) -> PlanCoding:
    coding = PlanCoding(PlanCodingConfig(**options))
    coding.fit(*_plans(200, seed=9))
    return coding


@pytest.mark.parametrize("channels", ["x_y_cos_sin", "x_y_heading"])
@pytest.mark.parametrize("baseline", ["constant_velocity", "none"])
@pytest.mark.parametrize("positions", ["pose", "delta"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), candidates=st.integers(0, 3))
def test_decoding_inverts_encoding(channels: str, baseline: str, positions: str, seed: int, candidates: int) -> None:
    coding = _coding(channels=channels, baseline=baseline, positions=positions)
    plans, status = _plans(5, seed)
    if candidates:
        plans = torch.stack([plans + index for index in range(candidates)], dim=1)
    decoded = coding.decode(coding.encode(plans, status), status)
    torch.testing.assert_close(decoded[..., :2], plans[..., :2], rtol=0, atol=1e-9)
    turn = (decoded[..., 2] - plans[..., 2] + math.pi) % (2 * math.pi) - math.pi
    assert turn.abs().max().item() < 1e-9


def test_the_training_split_is_normalized_per_pose_and_channel() -> None:
    coding = _coding()
    values = coding.encode(*_plans(200, seed=9))
    torch.testing.assert_close(values.mean(0), torch.zeros(8, 4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(8, 4).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(coding.largest.double(), values.abs().amax(0), rtol=1e-5, atol=0)


def test_constant_velocity_has_no_residual() -> None:
    coding = PlanCoding(PlanCodingConfig())
    coding.fitted.fill_(True)
    status = torch.tensor([[3.0, 4.0, 0.0, 0.0]])  # 5 m/s: the speed, not the velocity's x component
    times = torch.arange(1, 9) * 0.5
    plan = torch.stack([5 * times, torch.zeros(8), torch.zeros(8)], dim=-1)[None]
    assert coding.encode(plan, status).abs().max().item() < 1e-6


def test_channels_that_never_vary_are_not_blown_up() -> None:
    coding = PlanCoding(PlanCodingConfig(std_floor=0.01))
    plans, status = torch.zeros(10, 8, 3), torch.zeros(10, 4)
    coding.fit(plans, status)
    assert coding.std.min().item() == pytest.approx(0.01)
    assert coding.encode(plans + 1e-4, status).abs().max().item() < 0.02


def test_statistics_are_required_and_travel_with_the_state() -> None:
    fresh = PlanCoding(PlanCodingConfig())
    plans, status = _plans(3)
    with pytest.raises(RuntimeError, match="plan statistics are missing"):
        fresh.encode(plans, status)
    with pytest.raises(RuntimeError, match=r"call policy\.plan_coding\.fit"):
        fresh.decode(torch.zeros(3, 8, 4), status)
    fitted = _coding()
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.encode(plans, status), fitted.encode(plans, status))


def test_bad_statistics_are_refused() -> None:
    plans, status = _plans(4)
    plans[2, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="1 scenes are not finite, first 2"):
        PlanCoding(PlanCodingConfig()).fit(plans, status)
    with pytest.raises(ValueError, match=r"expected plans \(scene, 8, 3\)"):
        PlanCoding(PlanCodingConfig()).fit(plans[:, :7], status)
    with pytest.raises(ValueError, match="at least 2 scenes"):
        PlanCoding(PlanCodingConfig()).fit(plans[:1], status[:1])
