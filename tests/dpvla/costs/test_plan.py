"""Plans say what runs take: memory as it is held, operations as they are counted, and refuse what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.config import ConfigError
from dpvla.costs.memory import LiveBytes, without_numbers
from dpvla.costs.options import PlanOptions
from dpvla.costs.plan import Plan, outlined, plan_fine_tuning, plan_pretraining, require_room, scene_count
from dpvla.encoders.config import FlorenceConfig
from dpvla.models import DPVLA
from dpvla.models.config import LoRAConfig
from dpvla.models.flops import count_flops, on_meta
from dpvla.rl.config import RolloutConfig, TokensConfig
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.strategies.config import FSDP2Config
from tests.dpvla.models.tiny_policies import CONFIGS
from tools import pretrain, rl_finetune

TINY = CONFIGS["tiny_florence"]()


LOOP = LoopConfig(precision="bf16")


@cache
def pretraining(batch_size: int = 8, gpus: int = 1, loop: LoopConfig = LOOP) -> Plan:
    return plan_pretraining(outlined(TINY), ImitationConfig(batch_size=batch_size), loop, PlanOptions(gpus=gpus), 1000)


def test_live_bytes_rise_and_fall_with_tensors() -> None:
    with without_numbers(), LiveBytes() as live:
        first = torch.ones(1000)
        view = first[:10]
        assert live.now == 4000
        second = first + 1
        assert live.now == live.peak == 8000
        del first, second
        assert live.now == 4000 and live.peak == 8000
        del view
        assert live.now == 0


def test_a_linear_layers_update_takes_what_arithmetic_says() -> None:
    with without_numbers(), LiveBytes() as live:
        layer, rows = nn.Linear(100, 50, bias=False), torch.ones(20, 100)
        before = live.now
        layer(rows).sum().backward()
        assert before == 4 * (100 * 50 + 20 * 100)
        assert live.now == before + 4 * 100 * 50


def test_a_pretraining_plan_counts_weights_moments_activations_and_operations() -> None:
    policy = DPVLA.from_config(TINY)
    trained = sum(p.nbytes for p in policy.parameters() if p.requires_grad)
    one, eight = pretraining(1), pretraining(8)
    assert eight.parameters == {
        "encoder": sum(p.numel() for p in policy.encoder.parameters()),
        "head": sum(p.numel() for p in policy.head.parameters()),
        "adapter": 0,
        "total": sum(p.numel() for p in policy.parameters()),
    }
    assert eight.memory_parts_gb["gradients"] == pytest.approx(trained / 1e9)
    assert eight.memory_parts_gb["optimizer"] == pytest.approx(2 * trained / 1e9)
    assert eight.memory_gb_per_gpu == pytest.approx(sum(eight.memory_parts_gb.values()))
    assert eight.memory_parts_gb["activations"] > 1.5 * one.memory_parts_gb["activations"]
    shapes = on_meta(policy)
    batch = shapes.encoder.fake_batch(1).to("meta")
    counted = count_flops(lambda: shapes.imitation_loss(batch)[0].backward())
    assert eight.flops_per_update == 8 * counted == 8 * one.flops_per_update
    assert eight.updates == 100 * 125


def test_recomputed_activations_are_not_kept() -> None:
    spared = pretraining(8, loop=replace(LOOP, recompute="both"))
    assert spared.memory_parts_gb["activations"] < pretraining(8).memory_parts_gb["activations"]


def test_more_gpus_share_scenes_and_a_strategy_what_it_divides() -> None:
    alone, whole = pretraining(8), pretraining(8, gpus=4)
    divided = pretraining(8, gpus=4, loop=LoopConfig(precision="bf16", strategy=FSDP2Config()))
    assert whole.memory_parts_gb["weights"] == alone.memory_parts_gb["weights"]
    assert whole.memory_parts_gb["activations"] < alone.memory_parts_gb["activations"]
    assert whole.memory_parts_gb["buckets"] == whole.memory_parts_gb["gradients"]
    for part in ("weights", "gradients", "optimizer"):
        assert divided.memory_parts_gb[part] == pytest.approx(alone.memory_parts_gb[part] / 4)
    assert whole.hours == pytest.approx(alone.hours / 4)


@cache
def fine_tuning(tokens: TokensConfig, precision: str = "bf16", cache_gb: float = 0.0) -> Plan:
    policy = outlined(TINY)
    assert isinstance(policy, DPVLA)
    return plan_fine_tuning(
        policy,
        Dipole(DipoleConfig()),
        RolloutConfig(group_size=4, batch_size=4, scenes_per_call=4, context_cache_gb=cache_gb),
        tokens,
        LoRAConfig(),
        LoopConfig(precision=precision),  # type: ignore[arg-type]
        PlanOptions(),
        1000,
    )


def test_a_fine_tuning_plan_counts_tokens_once_where_they_are_kept() -> None:
    kept, again = fine_tuning(TokensConfig(directory="x")), fine_tuning(TokensConfig())
    assert kept.flops_per_scene_and_cycle is not None and again.flops_per_scene_and_cycle is not None
    assert again.flops_per_scene_and_cycle > kept.flops_per_scene_and_cycle
    assert again.hours > kept.hours
    assert kept.disk_parts_gb["tokens"] > 0 == again.disk_parts_gb["tokens"]
    assert fine_tuning(TokensConfig(), cache_gb=8.0).flops_per_scene_and_cycle == kept.flops_per_scene_and_cycle
    assert kept.parameters["adapter"] > 0
    assert kept.memory_parts_gb["weights"] < fine_tuning(TokensConfig(), "no").memory_parts_gb["weights"]


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    plan = replace(pretraining(1), memory_gb_per_gpu=94.0, disk_gb=48.0)
    plan.require_fit("a gpu", 100, 50)
    with pytest.raises(ConfigError, match=r"takes 94\.0 GB of a GPU \(weights .*a gpu can give 75\.2"):
        plan.require_fit("a gpu", 75.2, 50)
    with pytest.raises(ConfigError, match=r"takes 48\.0 GB of disk \(checkpoints .*there are 5\.0"):
        plan.require_fit("a gpu", 100, 5)


def test_scenes_of_unknown_splits_are_asked_for() -> None:
    assert scene_count(PlanOptions(), "navtrain") == 103_288
    assert scene_count(PlanOptions(scenes=7), "navtrain") == 7
    with pytest.raises(ConfigError, match="give --scenes N"):
        scene_count(PlanOptions(), "mine")


def test_the_tools_plan_and_write_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, found = tmp_path / "run", tmp_path / "plan.json"
    common = ["--out", str(out), "--split", "mine", "--scenes", "50", "--plan", "--json", str(found)]
    pretrain.main(common)
    first = json.loads(found.read_text())
    assert first["updates"] > 0 and first["flops_per_scene_and_cycle"] is None
    DPVLA.from_config(TINY).save_pretrained(tmp_path / "model")
    rl_finetune.main([*common, "--checkpoint", str(tmp_path / "model")])
    second = json.loads(found.read_text())
    assert second["flops_per_scene_and_cycle"] > 0 and second["parameters"]["adapter"] > 0
    assert "memory of a GPU" in capsys.readouterr().out
    assert not out.exists()


def test_options_of_a_plan_belong_to_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--gpus, --scenes belong to --plan"):
        pretrain.main(["--out", str(tmp_path / "run"), "--gpus", "8", "--scenes", "3"])


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``require_room`` asks of an accelerator, on a GPU of 80 GB."""
    gpu = SimpleNamespace(name="a GPU", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    return SimpleNamespace(device=torch.device("cuda"), num_processes=1, print=print)


def test_a_run_whose_sizes_are_not_known_is_not_refused(
    on_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as one with an encoder of a hub that is no longer needed, or of a plug-in."""
    unknown = replace(TINY, encoder=FlorenceConfig(source="microsoft/Florence-2-base"))
    require_room(lambda options: plan_pretraining(outlined(unknown), ImitationConfig(), LOOP, options, 10), on_gpu,
                 tmp_path)  # fmt: skip
    assert "whether this run fits is not known: the sizes of microsoft/Florence-2-base" in capsys.readouterr().out


def test_what_a_run_has_on_disk_already_is_not_asked_for_again(
    on_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = {"checkpoints": 1e-3, "tokens": 200.0}
    plan = replace(pretraining(), disk_gb=sum(disk.values()), disk_parts_gb=disk)
    monkeypatch.setattr("dpvla.costs.plan.free_disk_gb", lambda path: 5e-4)
    with pytest.raises(ConfigError, match=r"checkpoints 0\.0\), there are"):
        require_room(lambda options: plan, on_gpu, tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_bytes(bytes(300_000))
    (tmp_path / "linked").hardlink_to(tmp_path / "checkpoint" / "weights")  # as an unchanged model is
    with pytest.raises(ConfigError, match=r"checkpoints 0\.0\), there are"):
        require_room(lambda options: plan, on_gpu, tmp_path)
    (tmp_path / "checkpoint" / "more").write_bytes(bytes(300_000))
    require_room(lambda options: plan, on_gpu, tmp_path)
