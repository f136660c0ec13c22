"""The accelerator of a run; what a launcher was asked for and would not happen is refused."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from dpvla.checkpoint_layout import TRACKING
from dpvla.config import ConfigError
from dpvla.precision import autocast_of, set_float32
from dpvla.training.config import LoopConfig
from dpvla.training.strategies.registry import strategy_class

PATIENCE = timedelta(days=2)
"""Processes wait so long for one that makes a cache, packs images or downloads weights for all of them; NCCL would give
up after 10 minutes. One that dies is the launcher's to notice."""


def make_accelerator(config: LoopConfig, out: Path | str) -> Accelerator:
    """An Accelerator on the GPU if there is one, else on the CPU.

    Raises:
        ConfigError: the launcher asked for something that would silently not happen (other precision, accumulation,
            several processes that it does not start, another engine than the strategy's), or a tracker is not there.
    """
    _refuse_what_the_launcher_asked_in_vain(config)
    _refuse_missing_trackers(config.trackers)
    set_float32(config.precision)
    for engine in ("FSDP", "DEEPSPEED"):  # the strategy runs it; accelerate's own would do it a second time
        os.environ.pop(f"ACCELERATE_USE_{engine}", None)
    project = ProjectConfiguration(project_dir=str(out), logging_dir=str(Path(out) / TRACKING))
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=autocast_of(config.precision),
        log_with=list(config.trackers) or None,
        project_config=project,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        **strategy_class(config.strategy).accelerator_options(config),
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"launched as {expected} processes but accelerate runs {accelerator.num_processes}; "
            "on CPUs start with torchrun --nproc-per-node N"
        )
    return accelerator


def _refuse_what_the_launcher_asked_in_vain(config: LoopConfig) -> None:
    environment = os.environ
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision == "no":  # is what the launcher says, too, when nobody asked
        precision = _told_to_the_launcher("mixed_precision") or autocast_of(config.precision)
    if precision != autocast_of(config.precision):
        raise ConfigError(
            f"the launcher asks for mixed precision {precision}, loop.precision is {config.precision}, which decides: "
            "give --loop.precision bf16 for bf16 (nothing else is supported), and the launcher the same or nothing"
        )
    for variable, name in (("MEGATRON_LM", "Megatron-LM"), ("PARALLELISM_CONFIG", "a parallelism config")):
        if _said_yes(f"ACCELERATE_USE_{variable}"):
            raise ConfigError(f"the launcher asks for {name}, which is not supported; launch without it")
    for variable, name, instead in (("FSDP", "FSDP", "fsdp2"), ("DEEPSPEED", "DeepSpeed", "zero2, or zero3")):
        if not _said_yes(f"ACCELERATE_USE_{variable}"):
            continue
        chosen = strategy_class(config.strategy)
        if getattr(chosen, "engine", None) != variable:
            raise ConfigError(
                f"the launcher asks for {name}, loop.strategy is {config.strategy.name}: give --loop.strategy "
                f"{instead}, or launch without {name}"
            )
        chosen.check_launcher(config.strategy, environment)  # type: ignore[attr-defined]
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or _told_to_the_launcher(
        "gradient_accumulation_steps"
    )
    if accumulation not in (None, "", "1", "auto", str(config.accumulate)):
        raise ConfigError(
            f"the launcher asks for gradient_accumulation_steps {accumulation}, loop.accumulate is "
            f"{config.accumulate}, which decides: give --loop.accumulate, and the launcher the same or nothing "
            "(batch_size stays the scenes of an update)"
        )
    # With --cpu and several processes `accelerate launch` starts one, after setting an address for them to meet at.
    meeting = [environment.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    if "WORLD_SIZE" not in environment and "ACCELERATE_MIXED_PRECISION" in environment and None not in meeting:
        asked = _told_to_the_launcher("num_processes")
        if asked != "1" and (asked or meeting == ["127.0.0.1", "29500"]):  # its own address, not a cluster's
            raise ConfigError(
                f"the launcher was asked for {asked or 'several'} processes but starts one: on CPUs start with "
                "torchrun --nproc-per-node N"
            )


def _said_yes(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def _told_to_the_launcher(option: str) -> str | None:
    """What the command line of `accelerate launch`, the parent process, says: it does not hand every option on."""
    try:
        words = psutil.Process().parent().cmdline()  # type: ignore[union-attr]
    except (psutil.Error, AttributeError):
        return None
    if not any("accelerate" in word for word in words):
        return None
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.lstrip("-").replace("-", "_") == option and name.startswith("--"):
            return value or (words[place + 1] if place + 1 < len(words) else None)
    return None


def _refuse_missing_trackers(trackers: Sequence[str]) -> None:
    known = [str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS]
    there = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in trackers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"loop.trackers: unknown tracker '{name}'; nearest valid name: '{near}'")
        if name not in there:
            raise ConfigError(f"loop.trackers: {name} is not installed here: pip install {name}, or leave it out")
