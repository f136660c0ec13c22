"""npz files of strangers: plain numbers come out, or one error that names file and array."""

from __future__ import annotations

import io
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from dpvla.files import FileError
from dpvla.state_based.data import npz
from dpvla.state_based.data.npz import Column, check_columns, open_npz, read_column, read_npz

ARRAYS: dict[str, Any] = {
    "observations": np.linspace(-2, 2, 60, dtype=np.float32).reshape(20, 3),
    "physics": np.asfortranarray(np.linspace(0, 1, 40).reshape(20, 2)),
    "large_end_first": np.arange(20, dtype=">i4"),
    "terminals": np.arange(20) % 10 == 9,
    "scalar": np.array(3.5),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.fixture(params=[np.savez, np.savez_compressed])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    request.param(path, **ARRAYS)
    return path


def test_arrays_are_those_that_numpy_reads(written: Path) -> None:
    found = read_npz(written)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")


def _npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


def _header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "content, reason",
    [
        (_npy(_header("(1000000000000,)")), "its header tells of 4000000000128 bytes, there are 128"),
        (_npy(_header("(-4, -1)"), bytes(16)), "no plain numbers"),
        (_npy(_header("(4,)", "'|O'"), bytes(32)), "no plain numbers"),
        (_npy(_header("(4,)", "'<U4'"), bytes(64)), "no plain numbers"),
        (_npy(_header("(2,)", "[('a', '<f4'), ('b', '|O')]"), bytes(24)), "no plain numbers"),
        (_npy(_header("(4,)", "'<f16'"), bytes(64)), "no plain numbers"),
        (_npy(_header("(4,)"), bytes(12)), "its header tells of 144 bytes, there are 140"),
        (_npy(_header("(3,)"), bytes(16)), "its header tells of 140 bytes, there are 144"),
        (_npy("os.system('true')"), "no plain numbers"),
        (_npy("(" * 110), "no plain numbers"),
        (_npy(_header("(" + "9" * 70 + ",)")), "no plain numbers"),
        (_npy(_header("(4,)"), bytes(16), b"\x03\x00"), "it is no array"),
        (b"not an array", "it is no array"),
        (b"", "it is no array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "no plain numbers"),
    ],
)
def test_what_is_no_plain_array_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("observations.npy", content)
    with pytest.raises(FileError, match=rf"a\.npz is not a readable npz file \(observations: .*{reason}.*\)"):
        read_npz(tmp_path / "a.npz")


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("observations.npy", archive.read("observations.npy"))


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(npz.MOST_ARRAYS + 1):
            archive.writestr(f"{number}.npy", b"")


def _bomb(path: Path) -> None:
    """Zeros in a thousandth of the room, and the header says so."""
    rows = 2**25
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as stream:
        stream.write(buffer.getvalue())
        for _ in range(4 * rows // 2**24):
            stream.write(bytes(2**24))


def _other_packing(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", b"")


@pytest.mark.parametrize(
    "damage, reason",
    [
        (_twice, r"not a readable npz file \(observations: it stands there twice\)"),
        (_flipped, "not a readable npz file"),
        (_fifo, "is a FIFO, where a file is to be read"),
        (_folder, "is a folder, where a file is to be read"),
        (_endless, "is a device, where a file is to be read"),
        (_many, r"not a readable npz file \(it holds 1001 arrays\)"),
        (_bomb, r"not a readable npz file \(\d+ bytes that unpack to 134217856\)"),
        (_other_packing, "it is packed as numpy packs nothing"),
    ],
)
def test_damaged_and_hostile_files_are_named(written: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(written)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=f"^{written}.*{reason}"):
        read_npz(written)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "[KiB]"


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0), byte=st.integers(0, 255), cut=st.none() | st.integers(0), packed=st.booleans())
def test_whatever_byte_is_another_the_arrays_are_right_or_an_error_names_the_file(
    place: int, byte: int, cut: int | None, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **ARRAYS)
    content = bytearray(buffer.getvalue())
    content[place % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    path.write_bytes(content if cut is None else content[: cut % len(content)])
    try:
        found = read_npz(path)
    except FileError as error:
        text = str(error)
    else:
        for name in found.keys() & ARRAYS.keys():
            np.testing.assert_array_equal(found[name], ARRAYS[name])
        return
    assert text.startswith(str(path)) and len(text) < 500 + len(str(path)) and "\n" not in text


COLUMNS = {"observations": Column((3,), 5.0), "terminals": Column((), 1.0, kinds="biuf", flags=True)}


def _checked(path: Path) -> None:
    with open_npz(path) as file:
        check_columns(file, COLUMNS)
        for name, column in COLUMNS.items():
            read_column(file, name, column)


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("observations", lambda a: a[:, :2], r"observations rows have shape \(2,\), this environment gives \(3,\)"),
        ("observations", lambda a: a.astype(np.int32), "observations is of type int32"),
        ("observations", lambda a: np.where(a == a[7, 1], np.nan, a), r"observations\[7, 1\] is nan; .* ±5"),
        ("observations", lambda a: np.where(a > 1.9, -np.inf, a), r"observations\[19, 1\] is -inf, and 1 more"),
        ("observations", lambda a: a * 1e38, r"observations\[0, 0\] is -2e\+38, and 5\d more are wrong"),
        ("terminals", lambda a: a[:19], "terminals has 19 rows, where 20 belong"),
        ("terminals", lambda a: a * 0.5, r"terminals\[9\] is 0\.5, .* expected 0 or 1"),
        ("terminals", lambda a: a.reshape(20, 1), r"terminals rows have shape \(1,\)"),
        ("terminals", lambda a: np.array(1.0), r"terminals rows have shape \(\)"),
    ],
)
def test_columns_that_cannot_be_right_are_named(
    name: str, change: Callable[[Any], Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **ARRAYS | {name: change(ARRAYS[name])})
    with pytest.raises(FileError, match=rf"^{path}: {reason}"):
        _checked(path)
