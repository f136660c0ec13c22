"""Named tensors in safetensors files: written whole, read with errors that name the file, looked through for NaN.

Writing and reading go tensor by tensor, so that memory holds a model once and not two or three times.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from unittest.mock import patch

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dpvla.files import FileError, open_regular, short, write_atomically

PORTION = 2**26
"""Bytes of a file that reading keeps mapped at a time, or one tensor."""
DTYPES = {
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "BF16": torch.bfloat16,
    "F16": torch.float16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The format's names of types, in the order in which the format's own writer lays their tensors out."""


class CheckpointError(ValueError):
    """A checkpoint, or a file of one, that is absent, damaged or of another model; the message names it."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, atomically. OSError names the file when there is no room for it."""
    write_atomically(path, lambda file: write_tensors(file, tensors))


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor]) -> None:
    """The bytes that ``safetensors.torch.save`` gives, one tensor after the other, from whatever device they are on.

    Tensors that share memory are written once for each name.
    """
    names, order = {dtype: name for name, dtype in DTYPES.items()}, list(DTYPES.values())
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise TypeError(f"{name} holds {tensor.dtype}, which is not written here")
    laid_out = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in laid_out:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}  # type: ignore[dict-item]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in laid_out:
        content = tensor.detach().cpu().contiguous()
        if content.nbytes:  # not by way of numpy, after which the memory of gathered weights could not be freed
            file.write((ctypes.c_char * content.nbytes).from_address(content.data_ptr()))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file on the CPU.

    Raises:
        CheckpointError: it is absent or damaged, or holds NaN or infinity (names the first such tensor).
    """
    with _naming(path):
        tensors = safetensors.torch.load_file(str(path))
    _refuse_not_finite(path, not_finite(tensors))
    return tensors


def described(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, on the meta device: shapes and types, no numbers. Raises CheckpointError."""
    with _naming(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
        return {
            name: torch.empty(part.get_shape(), dtype=DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
            for name, part in slices.items()
        }


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a safetensors file in turn, mapped from it: copy what is to be kept. Raises CheckpointError.

    The file is opened afresh for every ``PORTION``: what was read would count as this process's memory until it is
    closed.
    """
    with _naming(path), safe_open(path, framework="pt") as file:
        names = list(file.keys())
    while names:
        seen = 0
        with _naming(path), safe_open(path, framework="pt") as file:
            while names and seen < PORTION:
                name = names.pop(0)
                tensor = file.get_tensor(name)
                seen += tensor.nbytes
                yield name, tensor
                del tensor


def read_into(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy a safetensors file's numbers into ``tensors``, whatever their type, layout and device.

    Raises:
        CheckpointError: it is absent or damaged, holds NaN or infinity, or not what ``tensors`` are (``require_same``).
    """
    require_same(tensors, described(path), path)
    bad: list[str] = []
    with torch.no_grad():
        for name, tensor in read_tensors(path):
            bad += not_finite({name: tensor})
            tensors[name].copy_(tensor)
            del tensor
    _refuse_not_finite(path, bad)


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules made inside have their parameters on the meta device: no memory, no initialization. Buffers are real.

    ``materialize`` then gives them memory, to be filled from a file.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(self, name, parameter)

    with patch.object(nn.Module, "register_parameter", on_meta):
        yield


def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give parameters on the meta device memory on ``device``, not yet filled; all else moves there.

    What is shared stays shared.
    """
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                data = parameter.detach()
                placed = torch.empty_like(data, device=device) if parameter.is_meta else data.to(device)
                made[id(parameter)] = nn.Parameter(placed, parameter.requires_grad)
            part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        open_regular(path).close()
        yield
    except (SafetensorError, OSError, FileError, RuntimeError) as error:  # torch's, of sizes that it cannot multiply
        if "memory" in str(error):
            raise
        raise CheckpointError(
            f"cannot read {path}: {str(error)[:300]}; the file is damaged or absent, use another copy"
        ) from None


def _refuse_not_finite(path: Path, bad: list[str]) -> None:
    if bad:
        raise CheckpointError(f"{path}: {bad[0]:.200} holds NaN or infinity, and {len(bad) - 1} other tensors do")


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


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, or what float32 would not hold; one device sync for all."""
    real = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not real:
        return []
    # Smallest and largest, which NaN spreads to, cost a tenth of looking at every number, and no memory.
    ends = [torch.stack(torch.aminmax(_wide(tensor.detach()))).float().isfinite().all() for tensor in real.values()]
    return [name for name, fine in zip(real, torch.stack(ends).tolist()) if not fine]


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
        f"{len(names)} {what}, first {names[0]:.200}{detail(names[0])}"
        for names, what, detail in (
            (missing, "missing", lambda name: ""),
            (extra, "unexpected", lambda name: ""),
            (
                shapes,
                "of another shape",
                lambda name: f" {short(tuple(found[name].shape))}, not {tuple(expected[name].shape)}",
            ),
            (kinds, "of another kind", lambda name: f" {found[name].dtype}, not {expected[name].dtype}"),
        )
        if names
    ]
    raise CheckpointError(f"{where} does not fit this model: " + "; ".join(parts))


def shown(value: object) -> str:
    """Type and shape of a tensor, or what is there instead, for errors."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():  # weights are held in several of 32 bits and fewer, and none is in 64 by itself
        return "double" if tensor.dtype == torch.float64 else "real"
    return "bool" if tensor.dtype == torch.bool else "whole"
