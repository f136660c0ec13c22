"""npz and npy files that hold something else."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.mutants.pickles import COMMAND

Arrays = dict[str, NDArray[Any]]
Change = Callable[[Path], object]


class _Code:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.system, (COMMAND,)


def changes(pristine: Path, only: tuple[str, ...] | None = None) -> Iterator[tuple[str, tuple[str, ...], Change]]:
    """Names, words and changes of an npz file; ``only``: the arrays that a reader reads."""
    with np.load(pristine) as file:
        arrays = {name: file[name] for name in file.files}
    for name in only or tuple(arrays):
        value = arrays[name]
        yield f"no_{name}", (name,), _written({k: v for k, v in arrays.items() if k != name})
        for word, other in _others(value):
            yield f"{name}_{word}", (name,), _written({**arrays, name: other})
        yield f"{name}_code", (name,), _with_member(arrays, name, _npy_of_objects())
        for word, member in _headers(value):
            yield f"{name}_{word}", (name,), _with_member(arrays, name, member)
    yield "no_arrays", (), _written({})
    yield "not_an_archive", (), lambda path: path.write_bytes(pickle.dumps(_Code()))
    yield "member_not_an_array", (), _with_member(arrays, next(iter(arrays)), b"text")
    yield "member_twice", (), _twice(arrays)
    yield "bomb", (), _bomb(arrays)
    yield "crc", (), _bad_crc


def _others(value: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "shorter", value[:-1]
    yield "empty", value[:0]
    yield "flat", value.reshape(-1)[: len(value)] if value.ndim > 1 else value[:, None]
    yield "wider", np.concatenate([value, value], axis=-1) if value.ndim > 1 else np.concatenate([value, value])
    yield "scalar", value.reshape(-1)[0]
    yield "text", value.astype(str)
    yield "complex", value.astype(complex)
    if np.issubdtype(value.dtype, np.floating):
        for word, number in (("nan", np.nan), ("infinite", np.inf), ("huge", 1e38)):
            once = value.copy()
            once.reshape(-1)[-1] = number
            yield word, once
            yield f"{word}_all", np.full_like(value, number)


def _npy(header: dict[str, Any], body: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
    return file.getvalue() + body


def _headers(value: NDArray[Any]) -> Iterator[tuple[str, bytes]]:
    body = value.tobytes()
    kind = np.lib.format.dtype_to_descr(value.dtype)
    yield "shape_huge", _npy({"descr": kind, "fortran_order": False, "shape": (1 << 40, 8)}, body)
    yield "shape_negative", _npy({"descr": kind, "fortran_order": False, "shape": (-1,)}, body)
    yield "objects", _npy({"descr": "|O", "fortran_order": False, "shape": (1,)}, b"\x41" * 8)
    yield "cut", _npy({"descr": kind, "fortran_order": False, "shape": value.shape}, body[: len(body) // 2])
    yield "header_code", b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch OWNED')".ljust(63) + b"\n"


def _npy_of_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([_Code()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _written(arrays: Arrays) -> Change:
    def write(path: Path) -> None:
        path.unlink()
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    return write


def _with_member(arrays: Arrays, name: str, member: bytes) -> Change:
    def write(path: Path) -> None:
        _written({k: v for k, v in arrays.items() if k != name})(path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"{name}.npy", member)

    return write


def _twice(arrays: Arrays) -> Change:
    def write(path: Path) -> None:
        _written(arrays)(path)
        name = next(iter(arrays))
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(f"{name}.npy", _npy({"descr": "<f8", "fortran_order": False, "shape": (1,)}, bytes(8)))

    return write


def _bomb(arrays: Arrays) -> Change:
    """A member of more than 4 GiB in a few MB."""

    def write(path: Path) -> None:
        name, value = next(iter(arrays.items()))
        _written({k: v for k, v in arrays.items() if k != name})(path)
        width = int(np.prod(value.shape[1:])) * value.itemsize
        shape = ((5 << 30) // width, *value.shape[1:])
        descr = np.lib.format.dtype_to_descr(value.dtype)
        header = _npy({"descr": descr, "fortran_order": False, "shape": shape}, b"")
        with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open(f"{name}.npy", "w", force_zip64=True) as member,
        ):
            member.write(header)
            for _ in range(shape[0] * width // len(_ZEROS) + 1):
                member.write(_ZEROS)

    return write


_ZEROS = bytes(1 << 24)


def _bad_crc(path: Path) -> None:
    """A byte in the middle of a compressed member."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[0]
    content[info.header_offset + 60 + info.compress_size // 2] ^= 0xFF
    path.unlink()
    path.write_bytes(bytes(content))
