"""Checkpoints: whole directories that appear by one rename, and the exact state to go on from."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.checkpoint_layout import BEST, CHECKPOINTS, CONFIG_FILE, MODEL, CheckpointLayout
from dpvla.config import Range
from dpvla.files import flush_folder, write_json
from dpvla.manifest import MANIFEST, ManifestError, read_manifest, require_manifest, write_manifest
from dpvla.schema import read_as
from dpvla.tensors import CheckpointError, load_tensors, require_same

_STEP, _WRITING, _REMOVING = "step_{:08d}", ".writing-", ".removing-"
_NAME = re.compile(r"step_\d+")


@contextmanager
def writing(run_dir: Path, step: int, keep: int, accelerator: Accelerator, best: bool = False) -> Iterator[Path]:
    """A temporary directory that all processes fill; then it is renamed to ``checkpoints/step_N``.

    Its manifest is the last file in it. Only when all of it is on disk under its name, it is marked where it is the
    ``best`` one, and older checkpoints go: the last ``keep`` stay, and the one marked. Where filling it fails, nothing
    is left of it, and they all stay.
    """
    final = place(run_dir, step)
    temporary = final.parent / f"{_WRITING}{final.name}"
    if accelerator.is_main_process:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir)
        temporary.mkdir()
    accelerator.wait_for_everyone()
    try:
        yield temporary
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_manifest(temporary, _known(temporary))
            _flush(temporary)
            discard(final)  # of the same step: of another origin, as a run makes each once
            temporary.rename(final)
            flush_folder(final.parent)
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        if best:
            mark_best(run_dir, step)
        prune(run_dir, keep, final)
    accelerator.wait_for_everyone()


def prune(run_dir: Path, keep: int, whole: Path) -> None:
    """Remove all but the last ``keep`` checkpoints; never ``whole``, which is known to be good, nor the best."""
    for old in checkpoints(run_dir)[:-keep]:
        if old not in (whole, marked_best(run_dir)):
            discard(old)


def mark_best(run_dir: Path, step: int) -> None:
    """Have the link ``best`` lead to the checkpoint of ``step``; it changes by one rename.

    Step 0 is none: then a link goes whose checkpoint is gone. Raises CheckpointError where something else has its name.
    """
    link, fresh, target = run_dir / BEST, run_dir / f".{BEST}", place(Path(), step)
    if link.exists() and marked_best(run_dir) is None:
        raise CheckpointError(f"{link} is no link to a checkpoint of its run, which has that name here: move it away")
    fresh.unlink(missing_ok=True)
    if not step:
        if link.is_symlink() and not link.exists():
            link.unlink()
    elif marked_best(run_dir) != run_dir / target:
        fresh.symlink_to(target)
        fresh.rename(link)
        flush_folder(run_dir)


def marked_best(run_dir: Path) -> Path | None:
    """The checkpoint that ``best`` leads to, be it there or not; None where there is no link, or to elsewhere."""
    link = run_dir / BEST
    target = Path(os.readlink(link)) if link.is_symlink() else Path()
    return run_dir / target if target.parent == Path(CHECKPOINTS) and _NAME.fullmatch(target.name) else None


def _known(directory: Path) -> dict[str, str]:
    """Checksums that folders inside list already, as a model does that is linked from the checkpoint before."""
    known = {}
    for path in directory.glob(f"*/{MANIFEST}"):
        for name, entry in read_manifest(path.parent).items():
            known[f"{path.parent.name}/{name}"] = entry["sha256"]
    return known


def _flush(directory: Path) -> None:
    """Have everything below on disk."""
    for path in directory.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_folder(directory)


def discard(path: Path) -> None:
    """Remove a file or a directory; a directory disappears by one rename before anything in it does."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        return path.unlink()
    going = path.parent / f"{_REMOVING}{path.name}"
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def remove_leftovers(run_dir: Path) -> None:
    """What a run left that was killed while it saved or removed a checkpoint; it has one writer."""
    for prefix in (_WRITING, _REMOVING):
        for left in (run_dir / CHECKPOINTS).glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether ``remove_leftovers`` takes it away."""
    return path.name.startswith((_WRITING, _REMOVING))


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
    """A checkpoint directory from itself, from a run directory (its newest), from a run's ``best``, or from a bare
    ``model/`` directory."""
    path = Path(path)
    if path.name == BEST and (best := marked_best(path.parent)) is not None:
        path = best
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


MOMENTS, STEP = ("exp_avg", "exp_avg_sq"), "step"
"""What AdamW keeps of a weight."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Per-parameter optimizer state as flat tensors ``name|key``; ``names`` are in the optimizer's order.

    A parameter that never had a gradient has ``step`` 0 alone.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for index, name in enumerate(names)
        for key, value in state.get(index, {STEP: 0.0}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took out and ``read_moments`` has checked."""
    state: dict[int, dict[str, Any]] = {i: {} for i, name in enumerate(names) if tensors[f"{name}|{STEP}"] > 0}
    for index, values in state.items():
        values |= {key: tensors[f"{names[index]}|{key}"] for key in (*MOMENTS, STEP)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_moments(path: Path, weights: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    """The moments of ``weights`` after update ``step``: all of them, and none that cannot be.

    Raises CheckpointError that names the file, and the first tensor that is absent, of another model, or damaged.
    """
    found = load_tensors(path)
    updates = {name: found.get(f"{name}|{STEP}") for name in weights}
    expected = {}
    for name, weight in weights.items():
        count = updates[name]
        expected[f"{name}|{STEP}"] = torch.zeros(())
        if count is None or count.dim() or count != 0:  # else it was never moved
            expected |= {f"{name}|{key}": weight for key in MOMENTS}
    require_same(expected, found, path)
    for name, count in updates.items():
        assert count is not None
        if not 0 <= float(count) <= step or float(count) % 1:
            raise CheckpointError(f"{path}: {name} has had {float(count):g} updates, the checkpoint {step}")
        if count and (found[f"{name}|{MOMENTS[1]}"] < 0).any():
            raise CheckpointError(f"{path}: {name}|{MOMENTS[1]}, of squares, holds negative numbers")
    if (most := max(float(count) for count in updates.values() if count is not None)) != step:
        raise CheckpointError(f"{path} is of update {most:g}, its checkpoint of update {step}: it is of another one")
    return found


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


class _Step(TypedDict):
    step: Annotated[int, Range(least=0)]  # updates behind it


class Judged(TypedDict):
    """What evaluations have said so far."""

    what: str  # was scored, in words: other scenes make other scores
    start: float | None  # before the first update
    best: float | None  # after one
    best_step: Annotated[int, Range(least=0)]
    last: float | None


class LoopState(_Step, total=False):
    """``loop.json``: the loop's own numbers. Checkpoints of earlier versions have ``step`` alone."""

    rows: Annotated[int, Range(least=0)]  # of metrics.csv
    logged: dict[str, float]  # sums since the last logged row
    counts: dict[str, Annotated[int, Range(least=1)]]  # of what is summed
    manifest: bool  # whether the checkpoint has one
    judged: Judged  # where scores of evaluations are kept


def write_state(path: Path, state: LoopState) -> None:
    """Write ``loop.json``."""
    write_json(path, state)


def read_state(directory: Path) -> LoopState:
    """``loop.json`` of a checkpoint to go on from, of which every file is there and as it was written.

    The model is left to whoever has loaded it, by its own manifest.

    Raises:
        FileError, CheckpointError: a file is missing, damaged, or of another checkpoint; names it.
    """
    path = CheckpointLayout(directory).loop
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {_no_use(directory)}")
    state = read_as(path, LoopState)
    try:
        require_manifest(directory, state.get("manifest", False), but=MODEL)
    except ManifestError as error:
        raise CheckpointError(f"{error}, or {_no_use(directory)}") from None
    if state["step"] != checkpoint_step(directory) or state.get("counts", {}).keys() != state.get("logged", {}).keys():
        raise CheckpointError(f"{path} is of update {state['step']}: {_no_use(directory)}")
    return state


def _no_use(directory: Path) -> str:
    return f"remove {directory.name}, and the same command goes on from the checkpoint before it"


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory by hard links where the file system allows, else by content: frozen weights cost nothing."""

    def link(a: str, b: str) -> None:
        try:
            os.link(os.path.realpath(a), b)  # of what a link leads to, as in a hub cache: not the link itself
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, target, copy_function=link)
