"""Policies by regression: NAVSIM's ego-status MLP and Latent TransFuser."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpvla.batch import DrivingBatch
from dpvla.config import ConfigError, from_dict
from dpvla.encoders.config import LatentTransfuserConfig
from dpvla.encoders.ego_status import status_of
from dpvla.encoders.latent_transfuser import Fusion, LatentTransfuserEncoder, side_by_side
from dpvla.models import DPVLA, DPVLAConfig, DrivingPolicy, RegressionConfig
from dpvla.models.policies import new_policy, open_policy
from dpvla.models.regression import RegressionPolicy
from dpvla.models.regression_head import RegressionHead
from dpvla.training.strategies.layer_options import apply_layer_options
from tests.dpvla.models.tiny_policies import CONFIGS, REGRESSION, ego_status_mlp, latent_transfuser, tiny_florence


def made(config: DPVLAConfig, seed: int = 0) -> tuple[DrivingPolicy, DrivingBatch]:
    torch.manual_seed(seed)
    policy = new_policy(config).eval()
    return policy, policy.encoder.fake_batch(3, torch.Generator().manual_seed(1))


def plans_of(policy: DrivingPolicy, batch: DrivingBatch) -> Tensor:
    with torch.no_grad():
        return policy.sample(policy.encode(batch), 1)[:, 0]


def test_the_loss_is_the_mean_absolute_error_in_meters_and_radians() -> None:
    policy, batch = made(ego_status_mlp())
    plan = plans_of(policy, batch)
    off = torch.zeros_like(plan)
    off[0, 0] = torch.tensor([2.4, -1.2, 3.6])  # 7.2 of 3 * 8 * 3 numbers
    loss, noted = policy.imitation_loss(replace(batch, plan=plan + off))
    assert loss.item() == pytest.approx(0.1, rel=1e-4) and noted["imitation/loss"].item() == loss.item()
    assert policy.imitation_loss(replace(batch, plan=plan))[0].item() == pytest.approx(0, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-50, 50, width=32), min_size=24, max_size=24), st.floats(0.0625, 16, width=32))
def test_the_loss_grows_as_the_error_does_and_knows_no_sign(numbers: list[float], times: float) -> None:
    policy, batch = made(ego_status_mlp())
    plan, off = plans_of(policy, batch), torch.tensor(numbers).view(8, 3)
    one, more, other = (
        policy.imitation_loss(replace(batch, plan=plan + error))[0].item() for error in (off, times * off, -off)
    )
    assert more == pytest.approx(times * one, rel=1e-3, abs=1e-4)
    assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


def test_the_ego_status_mlp_is_the_devkits_network() -> None:
    recipe = DPVLAConfig.from_dict(
        {"encoder": "ego_status", "head": {"name": "regression", "layers": 0, "hidden": 0, "bounded_heading": False}}
    )
    policy, batch = made(recipe)
    devkits = nn.Sequential(
        nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 24),
    )  # fmt: skip
    for own, theirs in zip(policy.parameters(), devkits.parameters(), strict=True):
        theirs.data = own.detach().clone()
    status = torch.cat([batch.ego_status, torch.eye(4)[batch.command]], dim=-1)
    assert torch.equal(status_of(batch), status)
    torch.testing.assert_close(plans_of(policy, batch), devkits(status).detach().view(-1, 8, 3))


def test_latent_transfuser_has_the_size_of_the_devkits() -> None:
    with torch.device("meta"):
        encoder = LatentTransfuserEncoder(LatentTransfuserConfig())
    assert encoder.latent.shape == (1, 1, 256, 256)
    fusions = [fusion for fusion in encoder.fusions if isinstance(fusion, Fusion)]
    assert [(fusion.image_cells, fusion.bev_cells) for fusion in fusions] == [((8, 32), (8, 8))] * 4
    assert [fusion.place.shape[-1] for fusion in fusions] == [64, 128, 256, 512]
    assert encoder.place.shape == (65, 256)
    backbones = 2 * 21_284_672 - 2 * 64 * 49  # resnet34 without its last layer; one of them sees one channel
    assert sum(p.numel() for p in (*encoder.images.parameters(), *encoder.bev.parameters())) == backbones


def test_three_images_make_the_picture_that_the_devkit_cuts_out_of_full_size_ones() -> None:
    full = torch.rand(1, 3, 3, 1080, 1920)
    left, front, right = full[0].unbind(0)
    stitched = torch.cat([left[:, 28:-28, 416:-416], front[:, 28:-28], right[:, 28:-28, 416:-416]], dim=-1)
    expected = nn.functional.avg_pool2d(stitched, 4)
    each = nn.functional.avg_pool2d(full[0, :, :, 28:-28], 4)[None]  # what the data are cut and reduced to
    assert each.shape[-2:] == (256, 480)
    torch.testing.assert_close(side_by_side(each, 104), expected[None])
    assert torch.equal(side_by_side(each[:, :1], 104), each[:, 0])


def test_what_latent_transfuser_plans_hangs_on_every_camera_the_latent_view_and_the_ego_status() -> None:
    policy, batch = made(latent_transfuser())
    assert isinstance(policy.encoder, LatentTransfuserEncoder)
    before = plans_of(policy, batch)
    for camera in range(3):
        images = batch.images.clone()
        images[:, camera] = 0
        assert not torch.equal(plans_of(policy, replace(batch, images=images)), before)
    assert not torch.equal(plans_of(policy, replace(batch, ego_status=batch.ego_status + 1)), before)
    assert not torch.equal(plans_of(policy, replace(batch, command=(batch.command + 1) % 4)), before)
    assert torch.equal(plans_of(policy, replace(batch, history=batch.history + 1)), before)  # as the devkit's agent
    policy.encoder.latent.data.zero_()
    assert not torch.equal(plans_of(policy, batch), before)


@pytest.mark.parametrize("name", REGRESSION)
def test_a_baseline_is_saved_and_opened_bit_for_bit_and_every_weight_learns(name: str, tmp_path: Path) -> None:
    policy, batch = made(REGRESSION[name]())
    policy.imitation_loss(batch)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())
    policy.save_pretrained(tmp_path)
    again = open_policy(tmp_path)
    assert isinstance(again, RegressionPolicy) and again.config == policy.config
    assert torch.equal(plans_of(again, batch), plans_of(policy, batch))
    with pytest.raises(ConfigError, match="its head is regression, and another is needed here: RL, selectors"):
        DPVLA.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", REGRESSION)
def test_all_candidates_are_the_one_plan(name: str) -> None:
    policy, batch = made(REGRESSION[name]())
    plans = policy.sample(policy.encode(batch), 3, generator=torch.Generator().manual_seed(5))
    assert plans.shape == (3, 3, 8, 3) and policy.noise_channels == 0
    assert torch.equal(plans, plans_of(policy, batch)[:, None].expand_as(plans))


def test_what_sees_nothing_gets_no_pixels_and_batches_of_it_go_everywhere() -> None:
    policy, batch = made(ego_status_mlp())
    assert policy.encoder.sensors.cameras == () and batch.images.shape[:2] == (3, 0)
    assert batch.select(torch.tensor([2, 0])).images.shape[:2] == (2, 0)
    assert torch.equal(plans_of(policy, batch.to("cpu")), plans_of(policy, batch))


@pytest.mark.parametrize("name", REGRESSION)
def test_a_diffusion_head_learns_on_their_encoders_as_well(name: str) -> None:
    config = replace(DPVLAConfig.tiny(), encoder=REGRESSION[name]().encoder)
    policy, batch = made(config)
    assert isinstance(policy, DPVLA) and batch.plan is not None
    policy.fit(batch.plan, batch.ego_status)
    policy.imitation_loss(batch)[0].backward()
    assert policy.sample(policy.encode(batch), 2).shape == (3, 2, 8, 3)


def test_a_regression_head_learns_on_any_encoder() -> None:
    policy, batch = made(DPVLAConfig(encoder=tiny_florence().encoder, head=RegressionConfig(heads=4)))
    policy.imitation_loss(batch)[0].backward()
    assert plans_of(policy, batch).shape == (3, 8, 3)


@pytest.mark.parametrize("layers", [0, 2])
def test_tokens_that_are_padding_do_not_count(layers: int) -> None:
    torch.manual_seed(0)
    head = RegressionHead(RegressionConfig(layers=layers, heads=2, feed_forward=16, hidden=16), 8)
    tokens, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, False, False, False]])
    with torch.no_grad():
        plans = head(tokens, mask)
        other = tokens.masked_fill(~mask[..., None], 7.0)
        torch.testing.assert_close(head(other, mask), plans)
        torch.testing.assert_close(head(tokens[1:, :2], None), plans[1:])


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1e6, width=32), st.integers(0, 9))
def test_bounded_headings_stay_within_a_turn(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    head = RegressionHead(RegressionConfig(layers=0, hidden=16), 8)
    plans = head(scale * torch.randn(4, 2, 8), None)
    assert plans[..., 2].abs().max() <= math.pi + 1e-6


def test_recomputed_layers_give_the_same_gradients() -> None:
    config = latent_transfuser()
    config = replace(config, encoder=replace(config.encoder, dropout=0.0))  # type: ignore[call-arg]
    found = []
    for recompute in ("none", "both"):
        policy, batch = made(config)
        apply_layer_options(policy, recompute, False)
        policy.imitation_loss(batch)[0].backward()
        found.append([p.grad for p in policy.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"head": "regresion"}, "unknown head 'regresion'; nearest valid name: 'regression'"),
        ({"head": {"name": "regression", "preset": "tiny"}}, "'head.preset' of head regression: it belongs to"),
        ({"head": "regression", "plan": {"positions": "delta"}}, "plan is not read by the head regression: leave"),
        ({"head": "regression", "diffusion": {"num_steps": 5}}, "diffusion is not read by the head regression"),
        ({"encoder": {"name": "ego_status", "cameras": ["front"]}}, "'encoder.cameras' of encoder ego_status"),
        ({"encoder": {"name": "ego_status", "layers": 0}}, "encoder.layers must be at least 1"),
        ({"encoder": {"name": "latent_transfuser", "cameras": []}}, "cameras must name at least one"),
        ({"encoder": {"name": "latent_transfuser", "crop": 240}}, "crop 240 leaves nothing of images 480 pixels wide"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(DPVLAConfig, data, "x")


@pytest.mark.parametrize(
    ("encoder", "head", "message"),
    [
        ({"network": "resnet35"}, {}, "network: timm knows no model 'resnet35'"),
        ({"bev_network": "test_vit"}, {}, "bev_network: timm's test_vit is not in 4 stages, as resnet34 is"),
        ({"fusion_heads": 5}, {}, "fusion_heads 5 does not divide 32 channels of test_resnet"),
        ({"width": 36}, {"heads": 8}, "head.heads 8 does not divide the encoder's tokens, which are 36 wide"),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    encoder: dict[str, object], head: dict[str, object], message: str
) -> None:
    config = latent_transfuser()
    with pytest.raises(ValueError, match=message):
        new_policy(replace(config, encoder=replace(config.encoder, **encoder), head=replace(config.head, **head)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusion_policies_are_opened_as_what_they_are(name: str, tmp_path: Path) -> None:
    policy, _ = made(CONFIGS[name]())
    policy.save_pretrained(tmp_path)
    assert isinstance(open_policy(tmp_path), DPVLA)
    with pytest.raises(ConfigError, match="its head is diffusion, and another is needed"):
        RegressionPolicy.from_pretrained(tmp_path)
