"""The noise schedule and the conversions between parametrizations."""

import math

import pytest
import torch

from dpvla.diffusion import PARAMETRIZATIONS, Parametrization, VPLinearSchedule, combine

SCHEDULE = VPLinearSchedule()


def test_alpha_and_sigma_have_the_published_end_points() -> None:
    t = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    assert alpha[1].item() == pytest.approx(math.exp(-0.25 * 19.9 - 0.05), rel=1e-12)  # 0.0066
    assert sigma[0].item() == pytest.approx(math.sqrt(1 - math.exp(-2 * (0.25 * 19.9e-6 + 0.05e-3))), rel=1e-9)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, dtype=torch.float64))


def test_time_of_log_snr_inverts_log_snr() -> None:
    t = torch.linspace(1e-3, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(SCHEDULE.time_of_log_snr(SCHEDULE.log_snr(t)), t, rtol=1e-10, atol=1e-12)


def test_low_precision_times_are_computed_in_float32() -> None:
    assert SCHEDULE.sigma(torch.tensor([0.001], dtype=torch.bfloat16)).dtype == torch.float32


def _noised() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 3, 8, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 3, 8, 4, generator=generator, dtype=torch.float64)
    t = SCHEDULE.draw_times((5, 3), generator).double()
    return x0, noise, t, SCHEDULE.add_noise(x0, noise, t)


@pytest.mark.parametrize("source", PARAMETRIZATIONS)
@pytest.mark.parametrize("to", PARAMETRIZATIONS)
def test_every_parametrization_converts_to_every_other(source: Parametrization, to: Parametrization) -> None:
    x0, noise, t, x_t = _noised()
    converted = SCHEDULE.convert(SCHEDULE.target(source, x0, noise, t), x_t, t, source, to)
    torch.testing.assert_close(converted, SCHEDULE.target(to, x0, noise, t), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("source", PARAMETRIZATIONS)
@pytest.mark.parametrize("to", PARAMETRIZATIONS)
def test_guidance_commutes_with_conversions(source: Parametrization, to: Parametrization) -> None:
    _, noise, t, x_t = _noised()
    positive, negative = torch.randn_like(noise), torch.randn_like(noise)
    combined_first = SCHEDULE.convert(combine(positive, negative, 1.5), x_t, t, source, to)
    converted_first = combine(
        SCHEDULE.convert(positive, x_t, t, source, to), SCHEDULE.convert(negative, x_t, t, source, to), 1.5
    )
    torch.testing.assert_close(combined_first, converted_first, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("output", PARAMETRIZATIONS)
@pytest.mark.parametrize("weighting", PARAMETRIZATIONS)
def test_error_factors_equal_the_error_of_the_converted_prediction(
    output: Parametrization, weighting: Parametrization
) -> None:
    x0, noise, t, x_t = _noised()
    prediction = torch.randn_like(noise)
    own = (prediction - SCHEDULE.target(output, x0, noise, t)).square()
    factor = SCHEDULE.squared_eps_factor(output, t) * SCHEDULE.squared_output_factor(weighting, t)
    converted = SCHEDULE.convert(prediction, x_t, t, output, weighting)
    direct = (converted - SCHEDULE.target(weighting, x0, noise, t)).square()
    torch.testing.assert_close(own * factor[..., None, None], direct, rtol=1e-6, atol=1e-9)


def test_alpha_floor_bounds_the_weight_of_pure_noise() -> None:
    one = torch.ones(1)
    assert SCHEDULE.squared_output_factor("v", one).item() > 20_000
    assert SCHEDULE.squared_output_factor("v", one, alpha_floor=0.1).item() == pytest.approx(100, rel=1e-5)


def test_unknown_parametrization_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of eps, x0, v"):
        SCHEDULE.target("score", torch.zeros(1), torch.zeros(1), torch.ones(1))
