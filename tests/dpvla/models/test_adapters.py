"""The positive and negative adapters: one pass, gradients for both, PEFT's files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpvla.algorithms.dipole import ADAPTERS
from dpvla.manifest import renew_manifests
from dpvla.models import DPVLA, DPVLAConfig, HeadConfig
from dpvla.models.adapters import adaptable_layers
from dpvla.models.head import DiTHead, Policies
from tests.dpvla.models.tiny_policies import make_batch, make_policy, randomize_adapters


def _errors(policy: DPVLA, adapters: Policies, scenes: int = 3, candidates: int = 2) -> Tensor:
    batch = make_batch(policy.config, scenes)
    context = policy.encode(batch)
    t, noise = policy.draw(scenes, candidates, torch.Generator().manual_seed(5))
    assert batch.plan is not None
    plans = batch.plan[:, None].expand(-1, candidates, -1, -1)
    return policy.denoising_errors(context, plans, t, noise, adapters)


def test_one_backward_reaches_both_adapters(light: DPVLA) -> None:
    light.add_adapters(ADAPTERS)
    light.freeze_encoder()
    randomize_adapters(light)
    positive, negative = _errors(light, ADAPTERS)
    (positive.mean() + 0.3 * negative.mean()).backward()
    for name, layer in adaptable_layers(light.head).items():
        for parameter in (layer.adapter_down, layer.adapter_up):
            assert parameter is not None and parameter.grad is not None
            for policy_index in range(2):
                assert parameter.grad[policy_index].abs().sum() > 0, (name, policy_index)
    assert all(p.grad is None for p in light.parameters() if not p.requires_grad)


def test_each_adapter_gets_its_own_gradient_only(light: DPVLA) -> None:
    light.add_adapters(ADAPTERS)
    light.freeze_encoder()
    randomize_adapters(light)
    _errors(light, ADAPTERS)[0].mean().backward()
    block: Any = light.head.blocks[0]
    layer = block.mlp.up
    assert layer.adapter_up.grad[0].abs().sum() > 0
    assert layer.adapter_up.grad[1].abs().sum() == 0


def test_equal_weights_keep_both_adapters_equal(light: DPVLA) -> None:
    """So beta = 0 means that the guided combination adds nothing of its own."""
    light.add_adapters(ADAPTERS)
    light.freeze_encoder()
    optimizer = torch.optim.AdamW(light.adapter_parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * _errors(light, ADAPTERS)).mean().backward()
        optimizer.step()
    for layer in adaptable_layers(light.head).values():
        assert layer.adapter_down is not None and layer.adapter_up is not None
        assert layer.adapter_up.abs().sum() > 0
        for pair in (layer.adapter_down, layer.adapter_up):
            torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=1e-5)


def test_the_first_step_moves_both_adapters(light: DPVLA) -> None:
    light.add_adapters(ADAPTERS)
    light.freeze_encoder()
    optimizer = torch.optim.AdamW(light.adapter_parameters(), lr=1e-2)
    _errors(light, ADAPTERS).mean().backward()
    optimizer.step()
    block: Any = light.head.blocks[0]
    up = block.attention.qkv.adapter_up
    assert (up[0].abs().sum() > 0) and (up[1].abs().sum() > 0)


def test_new_adapters_equal_the_base_policy(light: DPVLA) -> None:
    base = _errors(light, (None,))
    light.add_adapters(ADAPTERS)
    both = _errors(light, ADAPTERS)
    torch.testing.assert_close(both, base.expand_as(both), rtol=1e-5, atol=1e-6)


def test_the_fused_pass_equals_single_passes(light: DPVLA) -> None:
    light.add_adapters(ADAPTERS)
    randomize_adapters(light)
    fused = _errors(light, ("positive", None, "negative"))
    single = torch.cat([_errors(light, (name,)) for name in ("positive", None, "negative")])
    torch.testing.assert_close(fused, single, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fused[0], fused[2], rtol=1e-2)


def test_adapters_sit_on_attention_and_mlp_only(light: DPVLA) -> None:
    names = set(adaptable_layers(light.head))
    assert {name.split(".", 2)[2] for name in names} == {
        "attention.qkv", "attention.out", "cross.q", "cross.k", "cross.v", "cross.out", "mlp.up", "mlp.down",
    }  # fmt: skip


def test_adapters_survive_the_disk_exactly(light: DPVLA, tmp_path: Path) -> None:
    light.add_adapters(ADAPTERS, rank=4, alpha=8)
    randomize_adapters(light)
    light.save_adapters(tmp_path)
    other = make_policy(DPVLAConfig.tiny())
    other.load_adapters(tmp_path)
    assert torch.equal(_errors(light, ADAPTERS), _errors(other, ADAPTERS))


@pytest.mark.parametrize("preset", ["tiny", "mixed"])
def test_peft_reads_what_we_write_and_gives_the_same_output(preset: str, tmp_path: Path) -> None:
    from peft import PeftModel

    blocks = {"tiny": None, "mixed": ("2 modulated self mlp", "1 plain self fused-cross mlp")}[preset]
    settings = DPVLAConfig.tiny()
    policy = make_policy(
        DPVLAConfig(encoder=settings.encoder, head=HeadConfig(preset="tiny", blocks=blocks), plan=settings.plan)
    )
    policy.add_adapters(ADAPTERS)
    randomize_adapters(policy)
    policy.save_adapters(tmp_path)
    assert isinstance(policy.config.head, HeadConfig)
    bare = DiTHead(policy.config.head, 4, policy.encoder.token_width)
    bare.load_state_dict({k: v for k, v in policy.head.state_dict().items() if "adapter_" not in k})
    batch = make_batch(policy.config, 2)
    context = policy.encode(batch)
    inputs = (torch.randn(2, 3, 8, 4), torch.rand(2, 3), context.tokens, context.mask, context.condition)
    expected = policy.head(*inputs, policies=ADAPTERS)
    wrapped = PeftModel.from_pretrained(bare, tmp_path / "positive", adapter_name="positive").eval()
    wrapped.load_adapter(tmp_path / "negative", adapter_name="negative")
    for index, name in enumerate(ADAPTERS):
        wrapped.set_adapter(name)
        torch.testing.assert_close(wrapped(*inputs)[0], expected[index], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


def test_adapters_written_by_peft_are_read(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    policy = make_policy(DPVLAConfig.tiny())
    names = sorted(adaptable_layers(policy.head))
    assert isinstance(policy.config.head, HeadConfig)
    bare = DiTHead(policy.config.head, 4, policy.encoder.token_width)
    peft = get_peft_model(bare, LoraConfig(r=4, lora_alpha=4, target_modules=names), adapter_name="positive")
    peft.add_adapter("negative", LoraConfig(r=4, lora_alpha=4, target_modules=names))
    for parameter in peft.parameters():
        parameter.data.normal_(std=0.1)
    peft.save_pretrained(str(tmp_path))
    policy.load_adapters(tmp_path)
    name = "blocks.1.cross.k"
    theirs: Any = peft.base_model.model
    ours: Any = policy.head.get_submodule(name)
    assert torch.equal(ours.adapter_down[1], theirs.get_submodule(name).lora_A["negative"].weight)


def test_adapters_of_another_head_are_refused(light: DPVLA, tmp_path: Path) -> None:
    light.add_adapters(ADAPTERS)
    light.save_adapters(tmp_path)
    other = make_policy(DPVLAConfig(encoder=light.config.encoder, head=HeadConfig(preset="tiny", width=64)))
    with pytest.raises(ValueError, match=r"of another shape, first .* \(16, 96\), not \(16, 64\)"):
        other.load_adapters(tmp_path)
    deeper = HeadConfig(preset="tiny", blocks=("4 modulated self cross mlp",))
    with pytest.raises(ValueError, match="missing"):
        make_policy(DPVLAConfig(encoder=light.config.encoder, head=deeper)).load_adapters(tmp_path)


def test_a_missing_adapter_is_named(light: DPVLA, tmp_path: Path) -> None:
    light.add_adapters(ADAPTERS)
    light.save_adapters(tmp_path)
    (tmp_path / "negative" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"negative.adapter_config\.json is missing"):
        light.load_adapters(tmp_path)


def test_adapters_with_unequal_scales_are_refused(light: DPVLA, tmp_path: Path) -> None:
    light.add_adapters(ADAPTERS)
    light.save_adapters(tmp_path)
    path = tmp_path / "negative" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 32}))
    renew_manifests(tmp_path)
    with pytest.raises(ValueError, match="differ in"):
        light.load_adapters(tmp_path)


def test_using_or_saving_adapters_before_adding_them_is_an_error(light: DPVLA, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter 'positive', 'negative': the head has none; None is the base"):
        _errors(light, ADAPTERS)
    with pytest.raises(RuntimeError, match="no adapters"):
        light.save_adapters(tmp_path)
    with pytest.raises(ValueError, match="no adapter 'positiv': the head has none"):
        _errors(light, ("positiv",))


def test_freeze_encoder_keeps_the_encoder_in_eval_mode(light: DPVLA) -> None:
    assert isinstance(light, DPVLA)
    light.add_adapters(ADAPTERS)
    light.freeze_encoder()
    light.train()
    assert not light.encoder.training and light.head.training
    assert {id(p) for p in light.parameters() if p.requires_grad} == {id(p) for p in light.adapter_parameters()}
    assert not light.encode(make_batch(light.config)).tokens.requires_grad
