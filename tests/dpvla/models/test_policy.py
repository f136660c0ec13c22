"""The whole policy: saving, loss, sampling."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpvla.algorithms.dipole import ADAPTERS
from dpvla.batch import DrivingBatch
from dpvla.encoders.config import EncoderConfig, TimmConfig
from dpvla.layers.adaptable import AdaptableLinear
from dpvla.manifest import renew_manifests
from dpvla.models import DPVLA, DPVLAConfig, PlanCodingConfig, SceneContext
from dpvla.models.sampling import Sampling
from tests.dpvla.models.tiny_policies import CONFIGS, make_batch, make_policy, randomize_adapters

ENCODER = TimmConfig(network="test_resnet", pretrained=False, image_width=96, image_height=48)


def _plans(policy: DPVLA, batch: DrivingBatch, **options: Any) -> Tensor:
    return policy.sample(policy.encode(batch), 3, generator=torch.Generator().manual_seed(3), **options)


def recorded(batch: DrivingBatch) -> Tensor:
    assert batch.plan is not None
    return batch.plan


def test_a_saved_policy_gives_the_same_plans_bit_for_bit(policy: DPVLA, tmp_path: Path) -> None:
    policy.add_adapters(ADAPTERS)
    randomize_adapters(policy)
    policy.save_pretrained(tmp_path / "model")
    policy.save_adapters(tmp_path / "adapters")
    loaded = DPVLA.from_pretrained(tmp_path / "model")
    batch = make_batch(policy.config)
    with torch.no_grad():
        assert torch.equal(_plans(loaded, batch), _plans(policy, batch, sampling=Sampling()))
        loaded.load_adapters(tmp_path / "adapters")
        assert torch.equal(_plans(loaded, batch), _plans(policy, batch))
    assert loaded.config == policy.config and not loaded.training


def test_saved_weights_that_do_not_fit_are_refused(light: DPVLA, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        DPVLA.from_pretrained(tmp_path)
    light.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["surplus"] = tensors.pop("head.output.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing, first head\.output\.bias; 1 unexpected, first surplus"):
        DPVLA.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"checkpoint_path": "/etc/passwd"}, {"pretrained_cfg": {}}, {"cache_dir": "x"},
                                    {"zz": 1}, {"dims": 3}])  # fmt: skip
def test_a_strangers_config_cannot_open_files_and_ends_in_one_error(
    light: DPVLA, tmp_path: Path, change: dict[str, Any]
) -> None:
    light.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    description["model"]["encoder"]["options"] = change
    path.write_text(json.dumps(description))
    renew_manifests(tmp_path)  # as a stranger would
    with pytest.raises(ValueError, match=r"config\.json: encoder\.options"):
        DPVLA.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("encoder.network", "vit_giant_patch14_dinov2", "takes no images"),
        ("encoder.width", 10**9, r"encoder\.width must be at least 1 and at most"),
        ("encoder.width", 2**14, r"model\.safetensors does not fit this model"),
        ("encoder.mixer_blocks", 10**6, r"encoder\.mixer_blocks must be"),
        ("encoder.cameras", [f"camera_{number}" for number in range(1000)], r"encoder\.cameras must name"),
        ("head.width", 2**14, r"head\.blocks makes a network of 2e\+10 weights"),
        ("head.heads", 7, r"head\.width 96 is not divisible by heads, 7"),
        ("head.blocks", ["1000000 modulated self mlp"], r"head\.blocks: block '1000000"),
        ("head.blocks", ["512 modulated self mlp"] * 1000, r"head\.blocks holds 1000 texts"),
        ("head.blocks", ["512 modulated self mlp"], r"model\.safetensors does not fit this model"),
        ("diffusion.num_steps", 10**9, r"diffusion\.num_steps must be"),
        ("diffusion.beta_min", 30, r"diffusion\.beta_min 30 must be below beta_max"),
    ],
)
def test_a_strangers_config_cannot_ask_for_memory_without_end(
    light: DPVLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, named: str
) -> None:
    light.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    group, name = key.split(".")
    description["model"][group][name] = value
    path.write_text(json.dumps(description))
    renew_manifests(tmp_path)  # as a stranger would
    monkeypatch.setattr("dpvla.models.driving_policy.empty_parameters", None)  # where memory would be taken
    with pytest.raises(ValueError, match=named):
        DPVLA.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change", [{"encoder_architecture": [1]}, {"encoder_architecture": {"florence": 5}}, {"model": 3}]
)
def test_a_config_of_another_shape_is_named(policy: DPVLA, tmp_path: Path, change: dict[str, Any]) -> None:
    policy.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    renew_manifests(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        DPVLA.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"mixer_heads": 5}, {"width": 97}, {"network": "test_convnext", "image_width": 3}])
def test_sizes_that_do_not_fit_each_other_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not divisible|takes no images"):
        DPVLA.from_config(replace(DPVLAConfig.tiny(), encoder=replace(ENCODER, **change)))


def test_a_newer_format_is_refused(light: DPVLA, tmp_path: Path) -> None:
    light.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    renew_manifests(tmp_path)
    with pytest.raises(ValueError, match="format_version 99"):
        DPVLA.from_pretrained(tmp_path)


def test_configs_survive_json_and_refuse_unknown_keys() -> None:
    for config in (DPVLAConfig(), *(make() for make in CONFIGS.values())):
        assert DPVLAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"'head\.presett'; nearest valid name: 'head\.preset'"):
        DPVLAConfig.from_dict({"head": {"presett": "tiny"}})


def test_imitation_learns_a_scene_by_heart() -> None:
    policy = make_policy(DPVLAConfig.tiny(), randomize=False).train()
    batch = make_batch(policy.config)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        loss, info = policy.imitation_loss(batch, draws=16, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert info["imitation/loss"].item() == loss.item()
    miss = (_plans(policy.eval(), batch) - recorded(batch)[:, None])[..., :2].norm(dim=-1).mean().item()
    untrained = make_policy(DPVLAConfig.tiny(), randomize=False)
    before = (_plans(untrained, batch) - recorded(batch)[:, None])[..., :2].norm(dim=-1).mean().item()
    assert miss < 0.6 * before


def test_imitation_reaches_every_trainable_parameter(policy: DPVLA) -> None:
    policy.train()
    policy.imitation_loss(make_batch(policy.config), draws=2)[0].backward()
    without = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_imitation_without_plans_is_an_error(light: DPVLA) -> None:
    with pytest.raises(ValueError, match="needs recorded plans"):
        light.imitation_loss(replace(make_batch(light.config), plan=None))


@pytest.mark.parametrize("output", ["v", "eps", "x0"])
def test_the_loss_is_the_eps_error_whatever_the_network_outputs(output: Literal["v", "eps", "x0"]) -> None:
    base = DPVLAConfig.tiny()
    policy = make_policy(replace(base, diffusion=replace(base.diffusion, output=output, loss_weighting="eps")))
    batch = make_batch(policy.config)
    context = policy.encode(batch)
    t, noise = policy.draw(4, 2, torch.Generator().manual_seed(0))
    t = 0.2 + 0.5 * t
    plans = recorded(batch)[:, None].expand(-1, 2, -1, -1)
    measured = policy.denoising_errors(context, plans, t, noise)[0]
    x_t = policy.schedule.add_noise(policy.plan_coding.encode(plans, batch.ego_status), noise, t)
    raw = policy.head(x_t, t, context.tokens, context.mask, context.condition)[0]
    eps = policy.schedule.convert(raw, x_t, t, output, "eps")
    torch.testing.assert_close(measured, (eps - noise).square().mean((-2, -1)), rtol=1e-3, atol=1e-4)
    policy.config = replace(base, diffusion=replace(policy.config.diffusion, loss_weighting="v", alpha_floor=0.5))
    weighted = policy.denoising_errors(context, plans, t, noise)[0]
    alpha = policy.schedule.alpha(t).clamp_min(0.5)
    torch.testing.assert_close(weighted, measured / alpha**2, rtol=1e-3, atol=1e-4)


def test_guidance_follows_the_formula_of_the_paper(light: DPVLA) -> None:
    light.add_adapters(ADAPTERS)
    randomize_adapters(light)
    context = light.encode(make_batch(light.config))
    noise = torch.randn(4, 2, 8, 4)
    unclipped = make_policy(replace(light.config, diffusion=replace(light.config.diffusion, clip_ratio=None)))
    unclipped.load_state_dict(light.state_dict(), strict=False)
    unclipped.add_adapters(ADAPTERS)
    unclipped.load_state_dict(light.state_dict())

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        prepared = light.head.prepare(context.tokens, context.mask, context.condition, ADAPTERS)
        positive, negative = light.head.denoise(x_t, t, prepared)
        return light.schedule.convert(2.5 * positive - 1.5 * negative, x_t, t, "v", "x0")

    expected = light.plan_coding.decode(light.solver.sample(denoise, noise), context.ego_status)
    torch.testing.assert_close(unclipped.sample(context, 2, omega=1.5, noise=noise), expected, rtol=1e-3, atol=1e-3)


def test_omega_zero_is_the_positive_policy_and_is_never_clipped(light: DPVLA) -> None:
    light.add_adapters(ADAPTERS)
    randomize_adapters(light)
    context = light.encode(make_batch(light.config))
    noise = torch.randn(4, 2, 8, 4)
    plans = light.sample(context, 2, omega=0.0, noise=noise)
    for layer in light.head.modules():
        if isinstance(layer, AdaptableLinear) and layer.adapter_up is not None:
            layer.adapter_up.data[1] = 7.0  # the negative policy must not matter
    assert torch.equal(light.sample(context, 2, omega=0.0, noise=noise), plans)
    guided = light.sample(context, 2, omega=1.0, noise=noise)
    assert not torch.allclose(guided, plans, atol=1e-2)


def test_samples_depend_on_the_noise_alone(light: DPVLA) -> None:
    context = light.encode(make_batch(light.config))
    noise = torch.randn(4, 5, 8, 4)
    plans = light.sample(context, 5, noise=noise)
    assert plans.shape == (4, 5, 8, 3) and plans.dtype == torch.float32 and not plans.requires_grad
    part = light.sample(context.select(torch.tensor([2])), 2, noise=noise[2:3, 1:3])
    torch.testing.assert_close(part, plans[2:3, 1:3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plans[:, 0], plans[:, 1], atol=1e-2)
    with pytest.raises(ValueError, match=r"noise has shape \(4, 5, 8, 4\), expected \(4, 3, 8, 4\)"):
        light.sample(context, 3, noise=noise)


def test_sampling_before_statistics_is_an_error() -> None:
    policy = DPVLA.from_config(DPVLAConfig.tiny())
    with pytest.raises(RuntimeError, match="plan statistics are missing"):
        policy.sample(policy.encode(make_batch(policy.config)), 1)


def test_contexts_are_selected_and_joined(policy: DPVLA) -> None:
    batch = make_batch(policy.config)
    with torch.no_grad():
        context = policy.encode(batch)
    parts = [context.select(torch.tensor([i])) for i in (3, 0)]
    joined = SceneContext.cat(parts)
    assert torch.equal(joined.tokens, context.tokens[[3, 0]]) and torch.equal(joined.command, batch.command[[3, 0]])
    assert (joined.mask is None) == (context.mask is None)
    small = context.to("cpu", torch.bfloat16)
    assert small.tokens.dtype == torch.bfloat16 and small.ego_status.dtype == torch.float32
    plans = policy.sample(context, 1, noise=torch.zeros(4, 1, 8, 4))
    again = policy.sample(small, 1, noise=torch.zeros(4, 1, 8, 4))
    torch.testing.assert_close(plans, again, rtol=0.1, atol=0.5)


def test_training_and_sampling_run_under_bfloat16_autocast(policy: DPVLA) -> None:
    policy.add_adapters(ADAPTERS)
    randomize_adapters(policy)
    batch = make_batch(policy.config)
    with torch.autocast("cpu", torch.bfloat16):
        context = policy.encode(batch)
        t, noise = policy.draw(4, 2)
        errors = policy.denoising_errors(context, recorded(batch)[:, None].expand(-1, 2, -1, -1), t, noise, ADAPTERS)
        plans = policy.sample(context, 2)
    errors.mean().backward()
    assert errors.dtype == plans.dtype == torch.float32
    assert errors.isfinite().all() and plans.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.adapter_parameters())


def test_other_channels_and_absolute_poses_work_too() -> None:
    base = DPVLAConfig.tiny()
    policy = make_policy(replace(base, plan=PlanCodingConfig(channels="x_y_heading", baseline="none")))
    batch = make_batch(policy.config)
    assert policy.imitation_loss(batch)[0].isfinite()
    assert _plans(policy, batch).shape == (4, 3, 8, 3)


def test_unknown_image_networks_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"nearest: .*resnet10t"):
        DPVLA.from_config(replace(DPVLAConfig.tiny(), encoder=replace(ENCODER, network="resnet10")))


@pytest.mark.parametrize("cameras", [("front",), ("rear", "front", "left", "right")])
@pytest.mark.parametrize("encoder", CONFIGS)
def test_a_policy_looks_at_the_cameras_that_it_is_told(encoder: str, cameras: tuple[str, ...], tmp_path: Path) -> None:
    base = CONFIGS[encoder]()
    assert isinstance(base.encoder, EncoderConfig)
    policy = make_policy(replace(base, encoder=replace(base.encoder, cameras=cameras)))
    batch = policy.encoder.fake_batch(2, torch.Generator().manual_seed(0))
    assert batch.images.shape == (2, len(cameras), 3, 48, 96)
    plans = _plans(policy, batch)
    policy.save_pretrained(tmp_path)
    loaded = DPVLA.from_pretrained(tmp_path)
    assert loaded.encoder.sensors.cameras == cameras and torch.equal(_plans(loaded, batch), plans)
    with pytest.raises(ValueError, match=rf"expected \(scene, {len(cameras)}, 3, 48, 96\)"):
        policy.encode(make_batch(base))


def test_with_a_summary_every_token_depends_on_every_camera() -> None:
    base = DPVLAConfig.tiny()
    for summary_width, touched in ((0, 18), (4, 3 * 18)):  # tokens of the changed camera, or of all
        encoder = replace(ENCODER, summary_width=summary_width, mixer_blocks=0)
        policy = make_policy(replace(base, encoder=encoder))
        batch = make_batch(policy.config)
        images = batch.images.clone()
        images[:, 2] = 0
        with torch.no_grad():
            before, after = (policy.encode(replace(batch, images=i)).tokens for i in (batch.images, images))
        changed = (before != after).any(-1)[:, :-1]  # the last token is the command
        assert (changed.sum(-1) == touched).all() and changed[:, 2 * 18 :].all()
