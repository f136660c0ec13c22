"""A checkpoint that lacks a file, holds a foreign one, or was damaged is refused with the file's name and a way out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from dpvla import manifest
from dpvla.checkpoint_layout import ADAPTERS, MODEL
from dpvla.manifest import MANIFEST, renew_manifests
from dpvla.models import DPVLA
from dpvla.rl.stage import RolloutStage
from dpvla.tensors import save_tensors
from dpvla.training.checkpoint import latest_checkpoint, read_state
from dpvla.training.imitation import ImitationStage
from dpvla.training.loop import train
from dpvla.training.start import open_start
from dpvla.training.strategies.registry import make_strategy
from dpvla.training.strategies.strategy import Strategy
from tests.dpvla.training.test_resume import LOOP, dipole, imitation

Change = Callable[[dict[str, Tensor]], Any]
CPU = Accelerator(cpu=True)
SOON = replace(LOOP, steps=9, log_every=2, save_every=9, stop_after_step=5)


def stopped(make: Callable[[Accelerator, Path], ImitationStage | RolloutStage], out: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(make(CPU, out), SOON, out, CPU)
    newest = latest_checkpoint(out)
    assert newest is not None
    return newest


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(imitation, tmp_path_factory.mktemp("imitated"))


@pytest.fixture(scope="module")
def rolled_out(tmp_path_factory: pytest.TempPathFactory, imitated: Path) -> Path:
    return stopped(dipole(imitated), tmp_path_factory.mktemp("rolled_out"))


def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint in a run of its own, whose files are no links."""
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parent.parent, run)
    return run / "checkpoints" / checkpoint.name


def resume(checkpoint: Path, start: Path | None = None) -> None:
    make = imitation if start is None else dipole(start)
    run = checkpoint.parent.parent
    train(make(CPU, run), replace(SOON, steps=6, stop_after_step=0), run, CPU)


def every_file(checkpoint: Path) -> list[str]:
    return sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())


def test_every_file_that_is_cut_gone_or_flipped_is_named(tmp_path: Path, rolled_out: Path) -> None:
    checkpoint = copied(rolled_out, tmp_path)
    names = [name for name in every_file(checkpoint) if not name.startswith(MODEL)]
    assert len(names) > 12
    for name in [*names, f"{MODEL}/{MANIFEST}"]:
        refused(checkpoint / name, lambda: read_state(checkpoint))
    for name in ("config.json", "model.safetensors"):
        refused(checkpoint / MODEL / name, lambda: DPVLA.from_pretrained(checkpoint / MODEL))
    read_state(checkpoint)


def refused(path: Path, read: Callable[[], object]) -> None:
    """With a bit flipped, cut off, and gone."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) * 2 // 3] ^= 1
    for damage in (bytes(flipped), whole[:-2], None):
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises((ValueError, FileNotFoundError), match=path.name):
            read()
    path.write_bytes(whole)


def test_a_run_does_not_go_on_from_a_damaged_checkpoint(tmp_path: Path, rolled_out: Path, imitated: Path) -> None:
    checkpoint = copied(rolled_out, tmp_path)
    (checkpoint / "trainer_state/buffer.safetensors").unlink()
    with pytest.raises(ValueError, match=r"buffer\.safetensors is missing.*or remove step_00000005, and the same"):
        resume(checkpoint, imitated)


def test_models_and_adapters_of_another_checkpoint_are_told(tmp_path: Path, rolled_out: Path, imitated: Path) -> None:
    foreign = copied(imitated, tmp_path)
    shutil.copytree(rolled_out / ADAPTERS, foreign / ADAPTERS)
    with pytest.raises(ValueError, match=f"{ADAPTERS}/{MANIFEST} is of another origin"):
        open_start(foreign)
    shutil.rmtree(foreign / ADAPTERS)
    open_start(foreign)
    other = DPVLA.from_pretrained(imitated / MODEL)
    torch.nn.init.normal_(next(other.parameters()))
    other.save_pretrained(foreign / MODEL)
    with pytest.raises(ValueError, match=f"{MODEL}/{MANIFEST} is damaged, or of another origin"):
        open_start(foreign)
    DPVLA.from_pretrained(foreign / MODEL)  # by itself it is whole


def test_a_change_on_purpose_is_taken_once_the_checksums_are_written_anew(tmp_path: Path, imitated: Path) -> None:
    checkpoint = copied(imitated, tmp_path)
    config = checkpoint / MODEL / "config.json"
    config.write_text(config.read_text().replace('"num_steps": 10', '"num_steps": 12'))
    with pytest.raises(ValueError, match=r"config\.json is damaged.*--write-manifest"):
        DPVLA.from_pretrained(checkpoint / MODEL)
    renew_manifests(checkpoint, (MODEL, ADAPTERS))
    assert open_start(checkpoint).load().config.diffusion.num_steps == 12
    resume(checkpoint)


def test_a_model_behind_links_loads_as_hub_caches_have_them(tmp_path: Path, imitated: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in (imitated / MODEL).iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    DPVLA.from_pretrained(tmp_path / "snapshot")


def test_checkpoints_of_earlier_versions_go_on_which_is_said_in_one_line(
    tmp_path: Path,
    rolled_out: Path,
    imitated: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = copied(rolled_out, tmp_path)
    former = checkpoint.parent.parent.parent / "former"
    shutil.copytree(imitated / MODEL, former / MODEL)
    for folder in (checkpoint, former):
        for path in [*folder.rglob(MANIFEST)]:
            path.unlink()
    for path in (
        checkpoint / MODEL / "config.json",
        former / MODEL / "config.json",
        checkpoint / ADAPTERS / "sampling.json",
    ):
        content = json.loads(path.read_text())
        del content["manifest"]
        path.write_text(json.dumps(content))
    (checkpoint / "trainer_state/loop.json").write_text('{"step": 5}')
    monkeypatch.setattr(manifest, "_said", [])
    capsys.readouterr()
    open_start(checkpoint).load()
    train(dipole(former)(CPU, tmp_path / "run"), replace(SOON, steps=6, stop_after_step=0), tmp_path / "run", CPU)
    assert capsys.readouterr().err.count("is of an earlier version, without checksums") == 1
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == "step_00000006"
    assert json.loads((newest / MODEL / MANIFEST).read_text())["files"].keys() == {"config.json", "model.safetensors"}


def changed(path: Path, change: Change, tmp_path: Path) -> Path:
    """A file of other numbers in a folder of the same others."""
    folder = tmp_path / path.parent.name
    folder.mkdir()
    for other in path.parent.iterdir():
        if other.name != path.name:
            (folder / other.name).symlink_to(other)
    tensors = load_file(path)
    change(tensors)
    save_tensors(folder / path.name, {name: tensor.contiguous() for name, tensor in tensors.items()})
    return folder


@pytest.fixture(scope="module")
def strategy(tmp_path_factory: pytest.TempPathFactory) -> Strategy:
    return make_strategy(imitation(CPU, tmp_path_factory.mktemp("strategy")).module, LOOP, CPU)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, imitated: Path) -> RolloutStage:
    return dipole(imitated)(CPU, tmp_path_factory.mktemp("stage"))


def put(name: str, value: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors.update({name: value(tensors[name])})


BIAS = "policy.head.output.bias"


@pytest.mark.parametrize(
    "file, change, reason",
    [
        ("weights", lambda t: t.pop(BIAS), f"1 missing, first {BIAS}"),
        ("weights", put(BIAS, lambda t: t.to(torch.int64)), "of another kind"),
        ("ema", put(BIAS, lambda t: t * torch.nan), "holds NaN"),
        ("ema", put(BIAS, lambda t: t[:-1]), "of another shape"),
        ("ema", lambda t: t.update(extra=torch.zeros(1)), "1 unexpected, first extra"),
        ("optimizer", lambda t: t.clear(), "missing, first "),
        ("optimizer", lambda t: t.pop(f"{BIAS}|exp_avg"), rf"1 missing, first {BIAS}\|exp_avg"),
        ("optimizer", lambda t: [t.pop(f"{BIAS}|{key}") for key in ("exp_avg", "exp_avg_sq", "step")], "3 missing"),
        ("optimizer", put(f"{BIAS}|exp_avg_sq", lambda t: t - 1), "holds negative numbers"),
        ("optimizer", put(f"{BIAS}|exp_avg_sq", lambda t: t / 0), "holds NaN or infinity"),
        ("optimizer", put(f"{BIAS}|step", lambda t: t + 1), "has had 6 updates, the checkpoint 5"),
        ("optimizer", put(f"{BIAS}|step", lambda t: t - 0.5), "has had 4.5 updates"),
        ("optimizer", lambda t: t.update({n: v - 1 for n, v in t.items() if n.endswith("|step")}), "of update 4"),
    ],
)
def test_states_that_cannot_be_are_refused_whatever_their_checksums_say(
    tmp_path: Path, imitated: Path, strategy: Strategy, file: str, change: Change, reason: str
) -> None:
    state = changed(imitated / "trainer_state" / f"{file}.safetensors", change, tmp_path)
    with pytest.raises(ValueError, match=rf"{file}\.safetensors\b.*{reason}"):
        strategy.load(state, 5)


@pytest.mark.parametrize(
    "change, reason",
    [
        (put("cycle", lambda t: t + 7), "is of cycle 8, its checkpoint of cycle 1"),
        (put("cycle", lambda t: t.float()), "not a whole number"),
        (put("indices", lambda t: t.flip(0)), "of other scenes than this cycle"),
        (put("indices", lambda t: t * 0), "not whole numbers that differ"),
        (put("indices", lambda t: t + 100), "of other scenes than this cycle"),
        (put("scores.score", lambda t: t / 0), "holds NaN"),
        (put("scores.score", lambda t: t[:, :3]), "the scores are of"),
        (put("scores.score", lambda t: t[0]), "not .scene, candidate."),
        (put("roll_outs.plans", lambda t: t[..., :2]), r"not \(scene, candidate\)"),
        (lambda t: t.pop("scores.score"), "'score' is missing"),
        (lambda t: t.pop("indices"), "'indices' is missing"),
        (lambda t: t.update(surplus=torch.zeros(1)), "'surplus', which is no part"),
        (lambda t: t.update({n: v[:, :2] for n, v in t.items() if "." in n}), "holds 2 plans of a scene, this run"),
        (lambda t: t.update({n: v[:3] for n, v in t.items() if v.dim()}), "holds 3 scenes, a cycle has 6"),
    ],
)
def test_roll_outs_that_are_not_of_this_cycle_are_refused(
    tmp_path: Path, rolled_out: Path, stage: RolloutStage, change: Change, reason: str
) -> None:
    (tmp_path / rolled_out.name).mkdir()
    changed(rolled_out / "trainer_state/buffer.safetensors", change, tmp_path / rolled_out.name)
    (tmp_path / rolled_out.name / "run.yaml").symlink_to(rolled_out / "run.yaml")
    with pytest.raises(ValueError, match=rf"buffer\.safetensors.*{reason}"):
        stage.restore(tmp_path / rolled_out.name)


@pytest.mark.parametrize(
    "key, value, found",
    [
        ("encoder_architecture", ..., "encoder_architecture: is missing"),
        ("model", None, "model: expected a mapping, found None"),
        ("model", [1], r"model: expected a mapping, found \[1\]"),
        ("precision", 7, "precision: expected one of"),
        ("format_version", [[[[[]]]]], "format_version "),
        ("format_version", True, "format_version True"),
        ("manifest", "yes", "manifest: expected true or false"),
    ],
)
def test_a_config_file_is_checked_key_by_key(
    tmp_path: Path, imitated: Path, key: str, value: object, found: str
) -> None:
    config = copied(imitated, tmp_path) / MODEL / "config.json"
    content = json.loads(config.read_text())
    content.pop(key) if value is ... else content.update({key: value})
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"config\.json: {found}"):
        DPVLA.from_pretrained(config.parent)


def test_adapters_of_whole_numbers_are_refused(tmp_path: Path, rolled_out: Path) -> None:
    checkpoint = copied(rolled_out, tmp_path)
    path = checkpoint / ADAPTERS / "negative/adapter_model.safetensors"
    save_tensors(path, {name: tensor.to(torch.int32) for name, tensor in load_file(path).items()})
    renew_manifests(checkpoint, (MODEL, ADAPTERS))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors does not fit.* of another kind"):
        open_start(checkpoint).load()


def test_the_last_checkpoint_stays_until_the_next_is_whole(
    tmp_path: Path, imitated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copied(imitated, tmp_path)
    run, before = checkpoint.parent.parent, every_file(checkpoint)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        resume(checkpoint)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [checkpoint.name]
    assert every_file(checkpoint) == before
