"""Checkpoints: whole directories that appear by one rename, and the exact state to go on from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.checkpoint_layout import CHECKPOINTS, CONFIG_FILE, MODEL
from dpvla.tensors import CheckpointError, require_same

_STEP, _WRITING = "step_{:08d}", ".writing-"
_NAME = re.compile(r"step_\d+")


@contextmanager
def writing(run_dir: Path, step: int, keep: int, accelerator: Accelerator) -> Iterator[Path]:
    """A temporary directory that all processes fill; then it is renamed to ``checkpoints/step_N``.

    The last ``keep`` checkpoints stay. Where filling it fails, nothing is left of it.
    """
    final = place(run_dir, step)
    temporary = final.parent / f"{_WRITING}{final.name}"
    if accelerator.is_main_process:
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in final.parent.glob(f"{_WRITING}*"):  # of a run that was killed while it saved: it has one writer
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
    accelerator.wait_for_everyone()
    try:
        yield temporary
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def place(run_dir: Path, step: int) -> Path:
    """Where a run's checkpoint of ``step`` is."""
    return run_dir / CHECKPOINTS / _STEP.format(step)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = checkpoints(run_dir)
    return found[-1] if found else None


def checkpoints(run_dir: Path) -> list[Path]:
    """A run's complete checkpoints by step; copies that a user made beside them under other names are not looked at."""
    found = [path for path in (run_dir / CHECKPOINTS).glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def resolve_checkpoint(path: Path | str) -> Path:
    """A checkpoint directory from itself, from a run directory (its newest), or from a bare ``model/`` directory."""
    path = Path(path)
    if (path / MODEL / CONFIG_FILE).is_file():
        return path
    if path.name == MODEL and (path / CONFIG_FILE).is_file():
        return path.parent
    newest = latest_checkpoint(path)
    if newest is None:
        raise CheckpointError(
            f"no checkpoint at {path}: expected {MODEL}/{CONFIG_FILE} in it, or a run directory with "
            f"{CHECKPOINTS}/step_*"
        )
    return newest


def checkpoint_step(checkpoint: Path) -> int:
    """Number of updates behind a checkpoint."""
    return int(checkpoint.name.removeprefix("step_"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Per-parameter optimizer state as flat tensors ``name|key``; ``names`` are in the optimizer's order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took out."""
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for label, tensor in tensors.items():
        name, key = label.rsplit("|", 1)
        if name not in index:
            raise CheckpointError(f"the checkpoint's optimizer holds '{name}', which this model does not train")
        state.setdefault(index[name], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(
    module: nn.Module,
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    where: Path,
    like: Callable[[Tensor, Tensor], Tensor] = lambda tensor, own: tensor,
) -> None:
    """Copy ``tensors`` into ``expected``, named parameters and buffers of ``module``: all of them and no others.

    ``like`` brings a tensor into the form in which the module holds it.
    """
    require_same(expected, tensors, where)
    own = dict(module.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].data.copy_(like(tensor, own[name].data))


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Small JSON facts beside the tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(meta, indent=2), encoding="utf-8")


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory by hard links where the file system allows, else by content: frozen weights cost nothing."""

    def link(a: str, b: str) -> None:
        try:
            os.link(os.path.realpath(a), b)  # of what a link leads to, as in a hub cache: not the link itself
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, target, copy_function=link)
