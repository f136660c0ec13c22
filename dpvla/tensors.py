"""Named tensors in safetensors files: written whole, read with errors that name the file, looked through for NaN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint, or a file of one, that is absent, damaged or of another model; the message names it."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; the order of names is kept. OSError names the file when there is no room for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(own, str(path), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file on the CPU.

    Raises:
        CheckpointError: it is absent or damaged, or holds NaN or infinity (names the first such tensor).
    """
    try:
        tensors = safetensors.torch.load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; the file is damaged or absent, use another copy") from None
    if bad := not_finite(tensors):
        raise CheckpointError(f"{path}: {bad[0]} holds NaN or infinity, and {len(bad) - 1} other tensors do")
    return tensors


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, in the order of ``state_dict``, as the module holds them.

    A sharded module's ``state_dict`` parts again what was gathered; this leaves it as it is.
    """
    state: dict[str, Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        kept = {name: b for name, b in part._buffers.items() if name not in part._non_persistent_buffers_set}
        for name, tensor in {**part._parameters, **kept}.items():
            if tensor is not None:
                state[f"{prefix}.{name}" if prefix else name] = tensor
    return state


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor``, which is on the CPU, on ``device``; a GPU copies it while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; one device sync for all of them."""
    real = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not real:
        return []
    sums = torch.stack([_wide(tensor.detach()).isfinite().all() for tensor in real.values()]).tolist()
    return [name for name, fine in zip(real, sums) if not fine]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 2 else tensor  # torch looks at no 8-bit floats


def require_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: Path | str) -> None:
    """Every tensor is accounted for: same names, same shapes, numbers of the same kind.

    Raises CheckpointError that counts what is missing, unexpected, or of another shape or kind, with the first of each.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    both = sorted(expected.keys() & found.keys())
    shapes = [name for name in both if expected[name].shape != found[name].shape]
    kinds = [name for name in both if _kind(expected[name]) != _kind(found[name])]
    if not (missing or extra or shapes or kinds):
        return
    parts = [
        f"{len(names)} {what}, first {names[0]}{detail(names[0])}"
        for names, what, detail in (
            (missing, "missing", lambda name: ""),
            (extra, "unexpected", lambda name: ""),
            (
                shapes,
                "of another shape",
                lambda name: f" {tuple(found[name].shape)}, not {tuple(expected[name].shape)}",
            ),
            (kinds, "of another kind", lambda name: f" {found[name].dtype}, not {expected[name].dtype}"),
        )
        if names
    ]
    raise CheckpointError(f"{where} does not fit this model: " + "; ".join(parts))


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "real"
    return "bool" if tensor.dtype == torch.bool else "whole"
