"""NaN and infinity: never saved, named, and the advice works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dpvla.manifest import renew_manifests
from dpvla.models import DPVLA
from dpvla.tensors import CheckpointError, load_tensors, not_finite, require_same, save_tensors
from dpvla.training.checkpoint import latest_checkpoint
from dpvla.training.imitation import ImitationStage
from dpvla.training.loop import train
from tests.dpvla.training.test_resume import LOOP, imitation

RARELY = replace(LOOP, steps=9, log_every=100, save_every=2, keep_checkpoints=1, ema_decay=0.0)


def poisoned(tmp_path: Path, poison: Callable[[ImitationStage, int], None]) -> ImitationStage:
    """A stage whose forward pass number n (from 1) calls ``poison(stage, n)``."""
    stage = imitation(Accelerator(cpu=True), tmp_path)
    calls = [0]

    def hook(*_: object) -> None:
        calls[0] += 1
        poison(stage, calls[0])

    stage.module.register_forward_hook(hook)
    return stage


def everything_saved_is_finite(out: Path) -> None:
    files = list((out / "checkpoints").rglob("*.safetensors"))
    assert files
    assert not [file for file in files if not_finite(load_file(file))]


def test_a_rate_that_blows_up_between_logged_steps_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    stage = imitation(accelerator, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(stage, replace(RARELY, stop_after_step=2), tmp_path, accelerator)
    stage = imitation(accelerator, tmp_path)
    wild = replace(RARELY, lr=1e30, warmup_steps=0, clip_norm=0.0)
    with pytest.raises(FloatingPointError, match=r"smaller --loop\.lr goes on from .*step_00000002"):
        train(stage, wild, tmp_path, accelerator)
    everything_saved_is_finite(tmp_path)
    stage = imitation(accelerator, tmp_path)
    assert train(stage, replace(RARELY, lr=1e-5), tmp_path, accelerator).name == "step_00000009"  # as advised
    everything_saved_is_finite(tmp_path)


def test_a_weight_that_no_loss_has_met_yet_is_found_before_it_is_saved(tmp_path: Path) -> None:
    def poison(stage: ImitationStage, call: int) -> None:
        if call == 4:
            assert isinstance(stage.policy, DPVLA)
            stage.policy.head.pose_embedding.data[0, 0] = torch.inf

    with pytest.raises(FloatingPointError, match=r"pose_embedding.*at step 4.*step_00000002"):
        train(poisoned(tmp_path, poison), RARELY, tmp_path, Accelerator(cpu=True))
    everything_saved_is_finite(tmp_path)


def test_before_the_first_checkpoint_the_advice_is_to_start_again(tmp_path: Path) -> None:
    def poison(stage: ImitationStage, call: int) -> None:
        assert isinstance(stage.policy, DPVLA)
        stage.policy.head.output.bias.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match=r"nothing was saved: start again with a smaller --loop\.lr"):
        train(poisoned(tmp_path, poison), RARELY, tmp_path, Accelerator(cpu=True))
    assert latest_checkpoint(tmp_path) is None


def test_files_with_nan_are_not_read(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2), "y": torch.tensor([0.0, torch.nan])})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: y holds NaN"):
        load_tensors(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"half")
    for name in ("b", "absent"):
        with pytest.raises(CheckpointError, match=rf"cannot read .*{name}\.safetensors"):
            load_tensors(tmp_path / f"{name}.safetensors")


def test_every_tensor_is_accounted_for() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1, dtype=torch.int64), "d": torch.zeros(1)}
    require_same(own, {name: tensor.half() if name == "a" else tensor for name, tensor in own.items()}, "here")
    found = {"a": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(1), "surplus": torch.zeros(1)}
    with pytest.raises(CheckpointError) as refused:
        require_same(own, found, "here")
    for part in ("1 missing, first b", "1 unexpected, first surplus", "(3,), not (2,)", "of another kind"):
        assert part in str(refused.value)


def test_a_state_that_lacks_a_tensor_does_not_go_on(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    with pytest.raises(KeyboardInterrupt):
        train(imitation(accelerator, tmp_path), replace(RARELY, stop_after_step=2), tmp_path, accelerator)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    path = newest / "trainer_state" / "weights.safetensors"
    tensors = load_file(path)
    del tensors["policy.head.output.bias"]
    save_tensors(path, tensors)
    renew_manifests(newest, ("model",))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors .*1 missing, first policy\.head\.output\.bias"):
        train(imitation(accelerator, tmp_path), RARELY, tmp_path, accelerator)
