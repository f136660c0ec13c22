"""What a launcher or a config asks for happens, or is refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from dpvla.config import ConfigError, from_dict
from dpvla.training import launch
from dpvla.training.config import LoopConfig
from dpvla.training.launch import make_accelerator
from dpvla.training.strategies.config import FSDP2Config, StrategyConfig, Zero2Config, Zero3Config
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
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps 4, loop.accumulate is 1"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP, loop.strategy is ddp: give --loop.strategy fsdp2"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed, loop.strategy is ddp: give --loop.strategy zero2, or zero3"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM, which is not supported"),
    ],
)
def test_what_is_not_done_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, word: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=word):
        make_accelerator(PLAIN, tmp_path)


@pytest.mark.parametrize(
    ("strategy", "environment", "word"),
    [
        (FSDP2Config(), {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "sets fsdp_version to 1"),
        (
            FSDP2Config(reshard_after_forward=False),
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
            "fsdp_reshard_after_forward to true",
        ),
        (FSDP2Config(), {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed, loop.strategy is fsdp2"),
        (
            Zero3Config(),
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
            "ZeRO stage 2, loop.strategy is zero3",
        ),
        (
            Zero2Config(),
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            "offload to cpu",
        ),
    ],
)
def test_a_launcher_that_contradicts_the_strategy_is_refused(
    monkeypatch: pytest.MonkeyPatch, strategy: StrategyConfig, environment: dict[str, str], word: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=word):
        launch._refuse_what_the_launcher_asked_in_vain(replace(PLAIN, strategy=strategy))


def test_a_strategy_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"loop.strategy zero3 needs DeepSpeed.*pip install 'dpvla\[deepspeed\]'"):
        make_accelerator(replace(PLAIN, strategy=Zero3Config()), tmp_path)


FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_launch_files_are_accelerates_and_agree_with_the_strategy_they_name(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """What `accelerate launch --config_file FILE` hands to its processes is what the command in the file asks for."""
    said = " ".join(line.strip("# \\\n") for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"accelerate launch --config_file configs/accelerate/{path.name}" in said
    chosen = said.split("--loop.strategy ")[1].split()[0] if "--loop.strategy" in said else "ddp"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "tools/pretrain.py"])
    arguments, *_ = _validate_launch_command(arguments)
    environment: dict[str, str] = {}
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    elif arguments.num_processes > 1:
        environment = prepare_multi_gpu_env(arguments)
    assert load_config_from_file(str(path)).num_processes == arguments.num_processes
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    config = from_dict(LoopConfig, {"precision": "bf16", "strategy": chosen}, "test")
    launch._refuse_what_the_launcher_asked_in_vain(config)
    if chosen != "ddp":
        with pytest.raises(ConfigError, match=r"give --loop\.strategy"):
            launch._refuse_what_the_launcher_asked_in_vain(replace(config, strategy=PLAIN.strategy))


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


def test_processes_wait_for_the_one_that_makes_a_cache(tmp_path: Path) -> None:
    """NCCL's own 10 minutes are too few for the metric cache of navtrain."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handler = make_accelerator(PLAIN, tmp_path).init_handler
    assert handler is not None and handler.to_kwargs() == {"timeout": launch.PATIENCE}
    assert launch.PATIENCE.days >= 1
