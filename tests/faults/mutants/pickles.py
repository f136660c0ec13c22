"""Pickles of somebody who means harm: they run code, take numbers as pointers, or grow without end.

The payloads touch the file ``OWNED`` in the working directory, which a case finds afterwards.
"""

from __future__ import annotations

import lzma
import pickle
import pickletools
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "touch OWNED"


def piece(value: Any) -> bytes:
    """A pickled value without PROTO, FRAME and STOP."""
    body = pickle.dumps(value, protocol=4)[2:]
    return (body[9:] if body[:1] == b"\x95" else body)[:-1]


def named(module: str, name: str) -> bytes:
    """A global."""
    return b"".join(_text(part) for part in (module, name)) + b"\x93"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def whole(body: bytes) -> bytes:
    """A pickle of a value."""
    return b"\x80\x04" + body + b"."


def _call(module: str, name: str, *arguments: Any) -> bytes:
    return named(module, name) + piece(tuple(arguments)) + b"R"


def _dtype(code: str, *state: Any) -> bytes:
    return named("numpy", "dtype") + piece((code, False, True)) + b"R" + (piece(state) + b"b" if state else b"")


def _array(shape: tuple[int, ...], dtype: bytes, data: bytes, fortran: bool = False, version: int = 1) -> bytes:
    made = (
        named("numpy._core.multiarray", "_reconstruct")
        + b"("
        + named("numpy", "ndarray")
        + piece((0,))
        + piece(b"b")
        + b"tR"
    )
    return made + b"(" + piece(version) + piece(shape) + dtype + piece(fortran) + piece(data) + b"tb"


def _structured(flags: int, inner: bytes) -> bytes:
    """dtype V8 with a field of another kind, whose flags say what they like."""
    return (
        named("numpy", "dtype")
        + piece(("V8", False, True))
        + b"R"
        + b"("
        + piece(3)
        + piece("|")
        + b"N"
        + piece(("f",))
        + b"}"
        + piece("f")
        + inner
        + piece(0)
        + b"\x86s"
        + piece(8)
        + piece(1)
        + piece(flags)
        + b"tb"
    )


def values() -> Iterator[tuple[str, bytes]]:
    """Names and pickled values that no reader should make."""
    # Code.
    for name, (module, function) in {
        "os_system": ("os", "system"),
        "posix_system": ("posix", "system"),
        "nt_system": ("nt", "system"),
        "numpy_runstring": ("numpy.testing._private.utils", "runstring"),
        "dotted": ("os", "path.os.system"),
        "subprocess": ("subprocess", "getoutput"),
        "through_numpy": ("numpy", "f2py.os.system"),
        "through_collections": ("collections", "_sys.modules"),
    }.items():
        yield f"code_{name}", _call(module, function, COMMAND)
    yield "code_eval", _call("builtins", "eval", f"__import__('os').system({COMMAND!r})")
    yield "code_exec", _call("builtins", "exec", "open('OWNED', 'w')")
    yield "code_getattr", _call("builtins", "getattr", 1, "real")
    yield "code_open", _call("builtins", "open", "OWNED", "w")
    yield "code_instance", b"(" + _text(COMMAND) + b"i" + b"os\nsystem\n"
    yield "code_object", b"(" + named("os", "system") + _text(COMMAND) + b"o"
    yield "code_newobj", named("os", "_wrap_close") + piece((1,)) + b"\x81"
    yield "code_newobj_ex", named("os", "_wrap_close") + piece((1,)) + b"}" + b"\x92"
    yield "code_old_global", b"cos\nsystem\n(" + _text(COMMAND) + b"tR"
    yield "persistent_id", b"Pid\n"
    yield "persistent_id_of_stack", piece("id") + b"Q"
    yield "extension", b"\x82\x01"
    yield "out_of_band", b"\x97"
    yield "build_on_dict", b"}" + piece({"__class__": 1}) + b"b"
    yield "build_on_text", piece("a") + piece((None, {"__class__": 1})) + b"b"
    yield "reduce_a_text", piece("a") + piece(()) + b"R"
    yield "load_torch", _call("torch", "load", "x")
    yield "numpy_load", _call("numpy", "load", "x.npy", None, True)
    yield "numpy_memmap", _call("numpy", "memmap", "OWNED", "uint8", "w+", 0, (4,))
    yield "numpy_fromfile", _call("numpy", "fromfile", "/dev/zero")
    # Raw bytes as references, and lengths that are lies.
    address = struct.pack("<Q", 0x4141414141414141)
    objects = _dtype("O8", 3, "|", None, None, None, -1, -1, 63)
    yield "array_of_objects", _array((1,), _dtype("O8"), address)
    yield "array_of_denied_objects", _array((1,), _dtype("O8", 3, "|", None, None, None, -1, -1, 0), address)
    yield "array_of_hidden_objects", _array((1,), _structured(0, objects), address)
    yield "array_of_structures", _array((1,), _structured(0, _dtype("f8")), address)
    yield "array_longer_than_its_bytes", _array((1000,), _dtype("f8", 3, "<", None, None, None, -1, -1, 0), address)
    yield "array_huge", _array((1 << 40,), _dtype("f8"), b"")
    yield "array_of_overflowing_shape", _array((1 << 33, 1 << 33), _dtype("f8"), b"")
    yield "array_of_negative_shape", _array((-1,), _dtype("f8"), address)
    yield "array_of_many_axes", _array((1,) * 64, _dtype("f8"), address)
    yield "array_of_wide_texts", _array((1,), _dtype("U500000000"), address)
    yield "array_of_no_width", _array((1 << 50,), _dtype("V0"), b"")
    yield "array_of_voids", _array((1,), _dtype("V8"), address)
    yield "array_of_longdoubles", _array((1,), _dtype("g"), address * 2)
    yield "array_of_complex", _array((1,), _dtype("c16"), address * 2)
    yield "array_of_dates", _array((1,), _dtype("M8[ns]"), address)
    yield "array_type_unknown", _array((1,), _dtype("?!"), address)
    yield "array_type_dict", named("numpy", "dtype") + b"}" + b"\x85R"
    yield "array_type_size_changed", _array((1,), _dtype("f8", 3, "<", None, None, None, 1 << 20, 1, 0), address)
    yield "array_type_aligned_zero", _array((1,), _dtype("V8", 3, "|", None, None, None, 8, 0, 0), address)
    yield "array_of_list", _array((1,), _dtype("f8"), b"")[:-2] + b"b"
    yield "array_version", _array((1,), _dtype("f8"), address, version=-7)
    yield "scalar_of_objects", named("numpy._core.multiarray", "scalar") + b"(" + _dtype("O8") + piece(address) + b"tR"
    yield "scalar_shorter", named("numpy._core.multiarray", "scalar") + b"(" + _dtype("f8") + piece(b"a") + b"tR"
    yield (
        "frombuffer",
        named("numpy._core.numeric", "_frombuffer")
        + b"("
        + piece(address)
        + _dtype("O8")
        + piece((1,))
        + piece("C")
        + b"tR",
    )
    # Without end.
    yield "deep_list", b"]" * 100_000 + b"a" * 99_999
    yield "deep_tuple", b")" + b"\x85" * 100_000
    yield "deep_dict", b"}" + b"K\x01}" * 50_000 + b"s" * 50_000
    yield "doubling_list", b"]" + (b"q\x00" + b"0](h\x00h\x00e") * 40
    yield "doubling_tuple", b")" + b"2\x86" * 60
    yield "doubling_text_of_tuple", piece("x" * 1000) + b"2\x86" * 40
    yield "list_in_itself", b"]q\x00h\x00a"
    yield "dict_in_itself", b"}q\x00" + piece("a") + b"h\x00s"
    yield "tuple_in_itself", b"]q\x000h\x00\x85q\x010h\x00h\x01a"
    yield "memo_huge", b"N" + b"r" + struct.pack("<I", 0xFFFFFFFF)
    yield "memo_missing", b"h\x07"
    yield "memo_negative", b"Np-1\n"
    yield "stack_empty", b"0"
    yield "mark_missing", b"t"
    yield "long_huge", b"\x8b" + struct.pack("<i", 1 << 30)
    yield "long_negative", b"\x8b" + struct.pack("<i", -5)
    yield "long_text", b"I" + b"9" * 200_000 + b"\n"
    yield "float_text", b"F" + b"9" * 200_000 + b"\n"
    yield "float_nan", b"Fnan\n"
    yield "text_longer_than_file", b"X" + struct.pack("<I", 0xFFFFFFF0)
    yield "bytes_longer_than_file", b"\x8e" + struct.pack("<Q", 1 << 60)
    yield "bytearray_longer_than_file", b"\x96" + struct.pack("<Q", 1 << 60)
    yield "frame_longer_than_file", b"\x95" + struct.pack("<Q", 1 << 60) + b"N"
    yield "text_not_utf8", b"X" + struct.pack("<I", 2) + b"\xff\xfe"
    yield "text_surrogate", b"V\\ud800\n"
    yield "unhashable_key", b"}" + b"]" + b"N" + b"s"
    yield "set", b"\x8f(K\x01K\x02\x90"
    yield "odd_items", b"}(K\x01u"
    yield "append_to_number", b"K\x01Na"
    yield "opcode_unknown", b"\xff"
    yield "unused_rest", b"N." + b"x" * 1000


def _operations(pickled: bytes) -> list[tuple[str, Any, bytes]]:
    """Name, argument and bytes of each operation, without frames and with every memo's number in words of its own."""
    found = list(pickletools.genops(pickled))
    ends = [at for _, _, at in found[1:]] + [len(pickled)]
    operations, memo = [], 0
    for (operation, argument, at), end in zip(found, ends):
        assert at is not None
        text = pickled[at:end]
        if operation.name == "FRAME":
            continue
        if operation.name == "MEMOIZE":
            text = b"r" + struct.pack("<I", memo)
        if operation.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo += 1
        operations.append((operation.name, argument, text))
    return operations


_VALUES = {
    "BINFLOAT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "SHORT_BINBYTES",
    "BINBYTES",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
}


def in_place_of(pickled: bytes, where: float | str, value: bytes) -> bytes:
    """The pickle with an already pickled value instead of one of its plain values.

    Args:
        where: which of them: the text it is, or the share of them that stands before it.
    """
    operations = _operations(pickled)
    if isinstance(where, str):
        at = next(i for i, (_, argument, _) in enumerate(operations) if argument == where)
    else:
        plain_values = [i for i, (name, _, _) in enumerate(operations) if name in _VALUES]
        at = plain_values[int(where * len(plain_values))]
    operations[at] = ("", None, value)
    return b"".join(text for _, _, text in operations)


@lru_cache(maxsize=1)
def _lzma_bomb() -> bytes:
    return lzma.compress(bytes(64 << 20), preset=0)


def compressed(pickled: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """What an LZMA file may be instead."""
    long_bytes = b"\x80\x04\x8e" + struct.pack("<Q", 6 << 30)
    yield "lzma_bomb", lambda: _lzma_bomb() * 100
    yield "lzma_bomb_in_bytes", lambda: lzma.compress(long_bytes) + _lzma_bomb() * 96
    yield "lzma_of_lzma", lambda: lzma.compress(lzma.compress(pickled))
    yield "lzma_cut", lambda: lzma.compress(pickled)[:-20]
    yield "zlib", lambda: zlib.compress(pickled)
    yield "not_compressed", lambda: pickled


def written(content: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    """A change that writes it, made when it is wanted."""

    def write(path: Path) -> None:
        path.unlink()
        path.write_bytes(content() if callable(content) else content)

    return write


def plain(content: Any) -> bytes:
    """A pickle as other programs write them."""
    return pickle.dumps(content, protocol=4)


WRONG_NUMBERS: tuple[tuple[str, Any], ...] = (
    ("none", None),
    ("text", "1.0"),
    ("texts", ["a", "b", "c"]),
    ("nan", float("nan")),
    ("infinite", float("inf")),
    ("mapping", {}),
    ("nan_array", np.full(3, np.nan)),
    ("empty_array", np.zeros(0)),
    ("long_array", np.zeros(1000)),
    ("object_array", np.array([1, None, "a"], dtype=object)),
    ("complex", 1j),
    ("huge", 1e300),
    ("bytes", b"abc"),
    ("text_array", np.array(["1.0", "2.0", "3.0"])),
    ("long_text", "x" * 100_000),
    ("bool", True),
)
"""Values that are no right value of any key that is read."""
