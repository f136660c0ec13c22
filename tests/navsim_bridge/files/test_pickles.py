"""Pickles of plain values are read and written; whatever else they name is refused."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from navsim_bridge.files.pickles import UnsafePickleError, dump_plain_pickle, load_plain_pickle


@pytest.mark.parametrize("name", [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\n_reconstruct.__class__",
                                  b"builtins\ngetattr"])  # fmt: skip
def test_names_beside_the_allowed_ones_are_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"c" + name + b"\n.")
    with pytest.raises(UnsafePickleError):
        load_plain_pickle(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_containers_and_numpy_values_are_read_back(tmp_path: Path, protocol: int) -> None:
    content = {"a": [1, 2.5, None, (True, b"x")], "s": {1, 2}, "n": np.float64(1.5), "u": np.array(["x", "yz"]),
               "f": np.arange(6.0).reshape(2, 3), "o": np.array([None, "a"], dtype=object)}  # fmt: skip
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = load_plain_pickle(path)
    assert read["a"] == content["a"]
    assert read["s"] == content["s"]
    assert read["n"] == 1.5
    for key in "ufo":
        np.testing.assert_array_equal(read[key], content[key])


def test_arrays_written_by_numpy_1_are_read(tmp_path: Path) -> None:
    data = pickletools.optimize(pickle.dumps(np.arange(3.0), protocol=4))
    framed = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    old = framed[:2] + framed[11:]  # without the frame, whose length no longer fits
    assert b"numpy.core" in old
    (tmp_path / "x.pkl").write_bytes(old)
    np.testing.assert_array_equal(load_plain_pickle(tmp_path / "x.pkl"), np.arange(3.0))


def test_written_arrays_bear_names_that_numpy_1_has_and_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(dump_plain_pickle([{"a": np.arange(3.0)}, np.float64(1.5), {"b", "c"}]))
    assert b"numpy._core" not in path.read_bytes()
    first, number, names = load_plain_pickle(path)
    np.testing.assert_array_equal(first["a"], np.arange(3.0))
    assert (number, names) == (1.5, {"b", "c"})
