"""The action head: sizes, block lists, and that sharing a scene's context is exact."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dpvla.layers.block_text import parse_blocks
from dpvla.models import HeadConfig
from dpvla.models.adapters import adapter_parameters, add_adapters
from dpvla.models.head import Condition, DiTHead

CONDITIONING = ("condition.", "context.", "status_embedding")


def _head(**options: Any) -> DiTHead:
    torch.manual_seed(0)
    head = DiTHead(HeadConfig(preset="tiny", width=32, heads=2, **options), channels=4, context_width=16)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head.eval()


def _inputs(
    scenes: int = 3, candidates: int = 5, tokens: int = 7
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Condition]:
    generator = torch.Generator().manual_seed(0)
    condition = Condition(
        torch.arange(scenes) % 4,
        torch.randn(scenes, 4, generator=generator),
        torch.randn(scenes, 3, 3, generator=generator),
    )
    return (
        torch.randn(scenes, candidates, 8, 4, generator=generator),
        torch.rand(scenes, candidates, generator=generator),
        torch.randn(scenes, tokens, 16, generator=generator),
        None,
        condition,
    )


@pytest.mark.parametrize(
    "preset, core_millions, adapter", [("paper", 473.58, 6_684_672), ("cross18", 475.69, 6_782_976)]
)
def test_presets_have_the_published_sizes(preset: str, core_millions: float, adapter: int) -> None:
    with torch.device("meta"):
        head = DiTHead(HeadConfig(preset=preset), channels=4, context_width=1024)
        core = sum(p.numel() for name, p in head.named_parameters() if not name.startswith(CONDITIONING))
        context = sum(p.numel() for name, p in head.named_parameters() if name.startswith("context."))
        add_adapters(head, ("a", "b"), rank=16, alpha=16)
        both = sum(p.numel() for p in adapter_parameters(head))
    assert core / 1e6 == pytest.approx(core_millions, abs=0.005)
    assert context == 1024 * 1024 + 1024
    assert both == 2 * adapter


def test_candidates_do_not_see_each_other() -> None:
    head = _head()
    x_t, t, tokens, mask, condition = _inputs()
    together = head(x_t, t, tokens, mask, condition)
    alone = torch.cat(
        [head(x_t[:, i : i + 1], t[:, i : i + 1], tokens, mask, condition) for i in range(x_t.shape[1])], dim=2
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_scenes_do_not_see_each_other() -> None:
    head = _head()
    x_t, t, tokens, mask, condition = _inputs()
    whole = head(x_t, t, tokens, mask, condition)
    second = slice(1, 2)
    part = Condition(condition.command[second], condition.ego_status[second], condition.history[second])
    alone = head(x_t[second], t[second], tokens[second], mask, part)
    torch.testing.assert_close(whole[:, second], alone, rtol=1e-4, atol=1e-5)


def test_a_shared_time_equals_the_same_time_for_every_candidate() -> None:
    head = _head()
    x_t, t, tokens, mask, condition = _inputs()
    context = head.prepare(tokens, mask, condition)
    shared = head.denoise(x_t, torch.tensor(0.3), context)
    torch.testing.assert_close(shared, head.denoise(x_t, torch.full_like(t, 0.3), context), rtol=1e-4, atol=1e-5)


def test_masked_tokens_have_no_influence() -> None:
    head = _head()
    x_t, t, tokens, _, condition = _inputs()
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    mask[:, -2:] = False
    changed = tokens.clone()
    changed[:, -2:] = 100.0
    first, second = head(x_t, t, tokens, mask, condition), head(x_t, t, changed, mask, condition)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, head(x_t, t, changed, None, condition), atol=1e-3)


@pytest.mark.parametrize("option", ["use_command", "use_ego_status", "use_history"])
def test_each_condition_can_be_switched_off(option: str) -> None:
    x_t, t, tokens, mask, condition = _inputs()
    other = Condition((condition.command + 1) % 4, condition.ego_status, condition.history)
    if option == "use_ego_status":
        other = Condition(condition.command, condition.ego_status + 1, condition.history)
    if option == "use_history":
        other = Condition(condition.command, condition.ego_status, condition.history + 1)
    for value in (True, False):
        head = _head(**{option: value})
        same = torch.allclose(head(x_t, t, tokens, mask, condition), head(x_t, t, tokens, mask, other), atol=1e-6)
        assert same == (not value)


def test_all_conditions_off_leaves_a_working_head() -> None:
    head = _head(use_command=False, use_ego_status=False, use_history=False)
    assert head(*_inputs()).shape == (1, 3, 5, 8, 4)


def test_an_untrained_head_predicts_zero() -> None:
    head = DiTHead(HeadConfig(preset="tiny"), channels=4, context_width=16)
    assert head(*_inputs()).abs().max().item() == 0


@pytest.mark.parametrize("blocks", [("2 modulated self mlp", "1 plain self cross mlp"), ("2 plain fused-cross mlp",)])
def test_other_block_lists_run(blocks: tuple[str, ...]) -> None:
    assert _head(blocks=blocks)(*_inputs()).isfinite().all()


def test_block_lists_are_read() -> None:
    assert parse_blocks("2 modulated self mlp") == [(True, ("self", "mlp"))] * 2
    with pytest.raises(ValueError, match=r"expected e\.g\."):
        parse_blocks("self mlp")
    with pytest.raises(ValueError, match="unknown sublayers"):
        parse_blocks("1 plain selfish")
    with pytest.raises(ValueError, match="cross stands twice"):
        parse_blocks("1 plain cross fused-cross")


def test_bad_head_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="paper, cross18"):
        HeadConfig(preset="papre").resolved()
    with pytest.raises(ValueError, match="not divisible"):
        HeadConfig(preset="tiny", heads=7).resolved()
