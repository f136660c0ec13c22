"""What a launcher or a config asks for happens, or is refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dpvla.config import ConfigError
from dpvla.training import launch
from dpvla.training.config import LoopConfig
from dpvla.training.launch import make_accelerator
from tests.paths import ROOT

PLAIN = LoopConfig(trackers=())


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ACCELERATE_") or name in ("WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("asked", ["bf16", "fp16", "fp8"])
def test_another_precision_of_the_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(ConfigError, match=f"mixed precision {asked}, loop.precision is no.*--loop.precision bf16"):
        make_accelerator(PLAIN, tmp_path)


@pytest.mark.parametrize(("launcher", "config"), [("bf16", "bf16"), ("no", "bf16"), ("no", "no")])
def test_precisions_that_agree_are_taken(monkeypatch: pytest.MonkeyPatch, launcher: str, config: str) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    launch._refuse_what_the_launcher_asked_in_vain(replace(PLAIN, precision=config))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps 4"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
    ],
)
def test_what_is_not_done_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, word: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=word):
        make_accelerator(PLAIN, tmp_path)


def test_the_real_launcher_is_answered_too(tmp_path: Path) -> None:
    """`accelerate launch` hands neither the accumulation nor, on CPUs, the number of processes to the script."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from dpvla.training.config import LoopConfig\n"
        "from dpvla.training.launch import make_accelerator\n"
        "try: make_accelerator(LoopConfig(trackers=(), precision=sys.argv[1]), 'out')\n"
        "except ValueError as error: print('refused:', error)\n"
    )
    told = {
        ("--num_processes", "1", "--gradient_accumulation_steps", "4"): "refused: the launcher asks for gradient_acc",
        ("--num_processes", "2"): "refused: the launcher was asked for 2 processes but starts one",
        ("--num_processes", "1", "--gradient_accumulation_steps=1"): "",
        ("--num_processes", "1", "--mixed_precision", "no"): "refused: the launcher asks for mixed precision no",
    }
    for words, answer in told.items():
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", *words]
        precision = "bf16" if "--mixed_precision" in words else "no"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, str(script), precision], env=environment, cwd=tmp_path, capture_output=True,
                              text=True, timeout=120)  # fmt: skip
        assert done.stdout.startswith(answer) and bool(done.stdout) == bool(answer), (words, done.stdout, done.stderr)


def test_the_meeting_point_of_a_cluster_is_no_sign_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("MASTER_ADDR", "node17"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    launch._refuse_what_the_launcher_asked_in_vain(PLAIN)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what accelerate sets when a config file asks for several
    with pytest.raises(ConfigError, match="several processes but starts one"):
        launch._refuse_what_the_launcher_asked_in_vain(PLAIN)


def test_trackers_that_are_not_there_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'; nearest valid name: 'tensorboard'"):
        make_accelerator(LoopConfig(trackers=("tensorbord",)), tmp_path)
    monkeypatch.setattr(launch, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ConfigError, match="wandb is not installed here: pip install wandb"):
        make_accelerator(LoopConfig(trackers=("wandb",)), tmp_path)
