"""safetensors files that hold something else."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.faults.mutants.texts import Reseal

Tensors = dict[str, Tensor]
Change = Callable[[Path], object]


def changes(pristine: Path, reseal: Reseal | None = None) -> Iterator[tuple[str, tuple[str, ...], Change]]:
    """Names, words and changes: tensors absent, extra, of another shape or type, not finite; headers that lie."""
    tensors = load_file(pristine)
    floats = [name for name, value in tensors.items() if value.is_floating_point() and value.numel() > 1]
    picked = floats[len(floats) // 2] if floats else next(iter(tensors))
    first = next(iter(tensors))
    value = tensors[picked]
    replaced: list[tuple[str, Tensors]] = [
        ("lacks_one", {name: v for name, v in tensors.items() if name != picked}),
        ("has_one_more", {**tensors, "of.somebody.else": torch.zeros(2)}),
        ("has_none", {}),
        ("renamed", {(f"{name}x" if name == picked else name): v for name, v in tensors.items()}),
        ("flat", {**tensors, picked: value.reshape(1, -1).repeat(2, 1)}),
        ("shorter", {**tensors, first: tensors[first].flatten()[:0]}),
        ("bfloat16", {**tensors, picked: value.to(torch.bfloat16)}),
        ("float64", {**tensors, picked: value.to(torch.float64)}),
        ("whole_numbers", {**tensors, picked: value.to(torch.int64)}),
    ]
    for word, number in (("nan", torch.nan), ("infinite", torch.inf)):
        if floats:
            one = value.clone()
            one.flatten()[-1] = number
            replaced.append((f"{word}_once", {**tensors, picked: one}))
            replaced.append((f"{word}_all", {**tensors, picked: torch.full_like(value, number)}))
    for name, new in replaced:
        yield name, (picked, first), _written({k: v.contiguous() for k, v in new.items()}, reseal)
    for name, header in _headers(pristine):
        yield name, (), _raw(header, reseal)


def _headers(pristine: Path) -> Iterator[tuple[str, bytes]]:
    content = pristine.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = next(key for key in header if key != "__metadata__")

    def packed(new: object, rest: bytes = body) -> bytes:
        text = json.dumps(new).encode()
        return struct.pack("<Q", len(text)) + text + rest

    yield "header_huge", struct.pack("<Q", 1 << 60) + content[8:]
    yield "header_longer", struct.pack("<Q", length + 1000) + content[8:]
    yield "header_deep", struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000 + body
    yield "header_list", packed([])
    yield "offsets_beyond", packed({**header, name: {**header[name], "data_offsets": [0, 1 << 50]}})
    yield "offsets_negative", packed({**header, name: {**header[name], "data_offsets": [-8, 0]}})
    yield "shape_huge", packed({**header, name: {**header[name], "shape": [1 << 31, 1 << 31]}})
    yield "shape_negative", packed({**header, name: {**header[name], "shape": [-1]}})
    yield "type_unknown", packed({**header, name: {**header[name], "dtype": "O64"}})
    yield "type_missing", packed({**header, name: {k: v for k, v in header[name].items() if k != "dtype"}})
    others = [key for key in header if key not in (name, "__metadata__")]
    if others:
        yield (
            "offsets_overlapping",
            packed({**header, name: {**header[name], **{"data_offsets": header[others[0]]["data_offsets"]}}}),
        )


def _written(tensors: Tensors, reseal: Reseal | None) -> Change:
    def write(path: Path) -> None:
        with_header = path.read_bytes()
        (length,) = struct.unpack("<Q", with_header[:8])
        metadata = json.loads(with_header[8 : 8 + length]).get("__metadata__")
        path.unlink()
        save_file(tensors, path, metadata)
        if reseal is not None:
            reseal(path)

    return write


def _raw(content: bytes, reseal: Reseal | None) -> Change:
    def write(path: Path) -> None:
        path.unlink()
        path.write_bytes(content)
        if reseal is not None:
            reseal(path)

    return write
