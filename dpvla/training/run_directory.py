"""A run's directory: its config, what made it, and whether the same command goes on or starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from dpvla.config import ConfigError, to_dict
from dpvla.files import write_text
from dpvla.provenance import collect

RUN = "run.yaml"
FREE_KEYS = ("out", "restart", "workers", "imitation.num_workers", "loop.stop_after_step", "loop.keep_checkpoints")
"""Options that do not change what a run computes: a run may go on with other ones."""


@dataclass(frozen=True)
class TrainedOn:
    """Scenes that weights have seen in one stage; kept with them so that every score can say so."""

    stage: str  # imitation or dipole
    split: str  # name of the split
    scenes: int  # how many
    logs: tuple[str, ...]  # their logs


def open_run(out: Path | str, config: Any, seed: int, restart: bool, accelerator: Accelerator) -> Path:
    """Create ``out`` for ``config``, or go on in it when it was made with the same config.

    Raises:
        ConfigError: ``out`` holds a run with another config (names the first key that differs), or no run at all.
    """
    out = Path(out)
    if accelerator.is_main_process:
        if restart and (out / RUN).exists():
            shutil.rmtree(out)
        if (out / RUN).exists():
            theirs = read_run(out)["config"]
            for key, mine, other in _differences(to_dict(config), theirs):
                raise ConfigError(
                    f"{out} holds a run with {key} = {other!r}, this one has {mine!r}; choose another --out, "
                    "or discard that run with --restart"
                )
        elif out.exists() and any(p.name != "tracking" for p in out.iterdir()):
            raise ConfigError(f"{out} is not empty and holds no run; choose another --out")
        else:
            write_run(out, config, seed, ())
    accelerator.wait_for_everyone()
    return out


def write_run(directory: Path, config: Any, seed: int, trained_on: Sequence[TrainedOn]) -> None:
    """``run.yaml``: config, seed, versions, commit, and the scenes the weights have seen."""
    content = {
        "config": to_dict(config),
        "trained_on": [asdict(stage) | {"logs": list(stage.logs)} for stage in trained_on],
        "provenance": collect(seed),
    }
    write_text(directory / RUN, yaml.safe_dump(content, sort_keys=False))


def describe_training(config: Any, seed: int, trained_on: Sequence[TrainedOn]) -> Callable[[Path], None]:
    """A function that puts ``run.yaml`` into a checkpoint directory."""
    return lambda directory: write_run(directory, config, seed, trained_on)


def read_run(directory: Path) -> dict[str, Any]:
    """The mapping in a run's or a checkpoint's ``run.yaml``."""
    path = Path(directory) / RUN
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {directory} is not a run or checkpoint of tools/pretrain.py")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"config", "trained_on"} <= content.keys():
        raise ConfigError(f"{path} is not a run description: expected the keys config and trained_on")
    return content


def read_trained_on(checkpoint: Path) -> list[TrainedOn]:
    """Every stage behind the weights of a checkpoint, oldest first."""
    return [TrainedOn(**stage | {"logs": tuple(stage["logs"])}) for stage in read_run(checkpoint)["trained_on"]]


Difference = tuple[str, Any, Any]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    for key in dict.fromkeys([*ours, *theirs]):
        mine, other = ours.get(key), theirs.get(key)
        if prefix + key in FREE_KEYS or mine == other:
            continue
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            yield from _differences(mine, other, f"{prefix}{key}.")
        else:
            yield prefix + key, mine, other
