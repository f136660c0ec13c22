"""Pickles of strangers: what plain ones hold is read as Python reads it, all others end in one ValueError."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpvla.files import FileError, short
from navsim_bridge.files import pickle_reader
from navsim_bridge.files.logs import read_log
from navsim_bridge.files.pickle_reader import UnsafePickleError, unpickle_plain
from navsim_bridge.files.pickles import load_plain_pickle
from navsim_bridge.files.stand_in import StandIn

PATH = Path("x.pkl")
PROTOCOLS = range(6)


class Thing(StandIn):
    """Stands for ``its.module.Thing``."""

    def __init__(self) -> None:
        raise AssertionError("a stand-in is not called")

    def __setstate__(self, state: object) -> None:
        raise AssertionError("nothing of a stand-in is run")


NAMES = {("its.module", "Thing"): Thing}


def same(a: Any, b: Any) -> bool:
    """Whether types, bits and order are equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        a, b = (np.asarray(value).astype(value.dtype.newbyteorder("=")) for value in (a, b))  # numpy swaps some bytes
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return same(a.tolist(), b.tolist()) if a.dtype == object else a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def objects(values: list[Any]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def arrays() -> st.SearchStrategy[NDArray[Any]]:
    kinds = st.one_of(
        npst.boolean_dtypes(), npst.integer_dtypes(), npst.unsigned_integer_dtypes(),
        npst.floating_dtypes(sizes=(16, 32, 64)), npst.unicode_string_dtypes(), npst.byte_string_dtypes(),
    )  # fmt: skip
    letters = st.characters(codec="utf-8")
    whole = kinds.flatmap(
        lambda kind: npst.arrays(
            kind,
            npst.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4),
            elements=npst.from_dtype(kind, alphabet=letters) if kind.kind == "U" else None,
        )
    )
    return st.one_of(whole, whole.map(np.transpose), whole.map(lambda array: array[::2] if array.ndim else array))


def plain_values() -> st.SearchStrategy[Any]:
    scalars = st.one_of(
        st.none(), st.booleans(), st.integers(-(2**2000), 2**2000), st.floats(), st.text(), st.binary(),
        st.floats().map(np.float64), st.floats(width=32).map(np.float32), st.integers(0, 255).map(np.uint8),
        st.text("abc").map(np.str_),
    )  # fmt: skip
    keys = st.one_of(st.text(), st.integers(-(2**60), 2**60), st.binary(), st.floats(allow_nan=False))
    return st.recursive(
        st.one_of(scalars, arrays(), st.lists(scalars, max_size=4).map(objects)),
        lambda parts: st.one_of(
            st.lists(parts, max_size=5), st.tuples(parts), st.tuples(parts, parts), st.tuples(parts, parts, parts),
            st.lists(parts, min_size=4, max_size=5).map(tuple), st.dictionaries(keys, parts, max_size=5),
            st.sets(keys, max_size=5), st.frozensets(keys, max_size=5), parts.map(lambda part: [part, part]),
        ),
        max_leaves=10,
    )  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(plain_values(), st.sampled_from(PROTOCOLS))
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert same(unpickle_plain(data, PATH), pickle.loads(data))
    short_one = pickletools.optimize(data)
    assert same(unpickle_plain(short_one, PATH), pickle.loads(short_one))


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, what: str) -> bytes:
    return text(module) + text(what) + b"\x93"


def piece(value: Any) -> bytes:
    """A value without the beginning and end of a pickle, and without its memo."""
    return pickletools.optimize(pickle.dumps(value, 3))[2:-1]


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def some_pickles() -> list[bytes]:
    frame = {
        "token": "00ab", "timestamp": 10**15, "poses": np.eye(3), "names": np.array(["vehicle"]), "lights": [(1, True)],
        "speed": np.float64(2.5), "set": {1, "a"}, "frozen": frozenset([b"x"]), "flags": np.array([True, False]),
        "objects": np.array([None, "a"], dtype=object), "nothing": None, "turned": np.zeros((2, 3, 4)).T,
        "long": 10**30, "text": "ä" * 300, "bytes": b"b" * 300, "number": np.str_("a"),
    }  # fmt: skip
    things = program(name("its.module", "Thing"), b")\x81}", text("a") + b"K\x01s", b"b")
    return [*(pickle.dumps([frame, frame, list(range(300))], protocol) for protocol in PROTOCOLS), things]


CODES = bytes(ord(opcode.code) for opcode in pickletools.opcodes)
PIECES = (
    name("numpy", "dtype"), name("numpy", "ndarray"), name("numpy._core.multiarray", "_reconstruct"),
    name("numpy.core.multiarray", "scalar"), name("numpy.core.numeric", "_frombuffer"), name("_codecs", "encode"),
    name("builtins", "set"), name("its.module", "Thing"), text("f8"), text("O8"), text("U1"), text("<"), text("C"),
    piece((3, "<", None, None, None, -1, -1, 0)), piece((0,)), piece(("f8", False, True)), b"C\x08" + bytes(8),
    b"R", b"b", b"\x85", b"\x86", b"\x87", b"(", b"t", b"e", b"u", b"\x94", b"h\x00", b"h\x01", b"N", b"]", b"}",
    b"K\x01", b"\x88", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b")", b"\x81", b"\x8f",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A pickle with some bytes changed, left out, repeated or put in; or one of random pieces."""
    if draw(st.integers(0, 3)) == 0:
        return program(*draw(st.lists(st.sampled_from(PIECES), max_size=30)))
    data = bytearray(draw(st.sampled_from(some_pickles())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["change", "instruction", "cut", "leave out", "repeat", "put in"]))
        if how == "change":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "instruction":
            data[at : at + 1] = bytes([draw(st.sampled_from(CODES))])
        elif how == "cut":
            del data[at:]
        elif how == "leave out":
            del data[at : at + draw(st.integers(1, 30))]
        elif how == "repeat":
            data[at:at] = data[max(at - draw(st.integers(1, 60)), 0) : at]
        else:
            data[at:at] = draw(st.sampled_from(PIECES))
    return bytes(data)


@settings(deadline=None, max_examples=400)
@given(damaged())
def test_damaged_files_are_read_or_refused_in_one_short_line(data: bytes) -> None:
    problem = "x.pkl: none"
    try:
        found = unpickle_plain(data, PATH, NAMES)
    except ValueError as error:
        found, problem = None, str(error)
    assert problem.startswith("x.pkl: ")
    assert "\n" not in problem
    assert len(problem) < 600
    assert len(short(found)) <= 201
    for part in found if isinstance(found, list) else [found]:
        if isinstance(part, np.ndarray):
            part.tolist()


REFUSED = {
    "POP", "POP_MARK", "DUP", "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "NEXT_BUFFER", "READONLY_BUFFER",
}  # fmt: skip


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_instructions_that_plain_values_do_not_need_are_refused_by_name(opcode: pickletools.OpcodeInfo) -> None:
    data = program(b"N", opcode.code.encode("latin1"), b"\x01\n" * 8)
    if opcode.name in REFUSED:
        with pytest.raises(UnsafePickleError, match=rf"refused to follow the instruction {opcode.name} \(byte 3\)"):
            unpickle_plain(data, PATH, NAMES)
    else:
        with pytest.raises(ValueError) as raised:  # the rest does not fit
            unpickle_plain(data, PATH, NAMES)
        assert "instruction" not in str(raised.value)


def test_bytes_that_are_no_instruction_are_refused() -> None:
    for code in set(range(256)) - set(CODES):
        with pytest.raises(ValueError, match=r"x\.pkl: not a readable pickle of plain values: byte \d"):
            unpickle_plain(program(b"N", bytes([code])), PATH)


EMPTY_ARRAY = (
    name("numpy._core.multiarray", "_reconstruct") + b"(" + name("numpy", "ndarray") + piece((0,)) + b"C\x01btR"
)
PLAIN_STATE, OBJECT_STATE = (3, "<", None, None, None, -1, -1, 0), (3, "|", None, None, None, -1, -1, 63)


def dtype(kind: str, state: Any = PLAIN_STATE) -> bytes:
    return name("numpy", "dtype") + piece((kind, False, True)) + b"R" + piece(state) + b"b"


def array(kind: bytes, shape: Any = (1,), content: Any = bytes(8)) -> bytes:
    return EMPTY_ARRAY + b"(" + piece(1) + piece(shape) + kind + piece(False) + piece(content) + b"tb"


def fields_that_are_denied() -> bytes:
    """A dtype V8 with a field of objects, whose flags say that it holds no references."""
    inner = dtype("O8", OBJECT_STATE)
    state = b"(" + piece(3) + text("|") + b"N" + piece(("f",)) + b"}" + text("f") + inner + piece(0) + b"\x86s"
    return name("numpy", "dtype") + piece(("V8", False, True)) + b"R" + state + piece(8) + piece(1) + piece(0) + b"tb"


ADDRESS = struct.pack("<Q", id(os.system))


@pytest.mark.parametrize(("parts", "message"), [
    (array(fields_that_are_denied(), content=ADDRESS), "numpy's type 'V8'"),
    (array(dtype("O8", OBJECT_STATE), content=ADDRESS), "objects that is not given as a list"),
    (array(dtype("O8"), content=ADDRESS), "objects that is not given as a list"),
    (array(dtype("f8", (3, "<", None, ("f",), {"f": 1}, 8, 1, 0)), content=ADDRESS), "more than a byte order"),
    (array(dtype("f8", (3, "<", ("O8", (1,)), None, None, -1, -1, 0))), "more than a byte order"),
    (array(dtype("f8", (3, "<", None, None, None, 16, -1, 0))), "more than a byte order"),
    (array(dtype("f8", (4, "<", None, None, None, -1, -1, 0, {}))), "dtype whose state"),
    (array(dtype("f8", None)), "dtype whose state"),
    (array(dtype("f8")[:-1] + b"b" + piece(PLAIN_STATE) + b"b"), "dtype whose state"),
    (array(name("numpy", "dtype") + piece(("f8", False, True)) + b"R"), "without a dtype"),
    (array(piece("f8")), "without a dtype"),
    (array(dtype("M8")), "numpy's type 'M8'"),
    (array(dtype("c16")), "numpy's type 'c16'"),
    (array(dtype("f16")), "numpy's type 'f16'"),
    (array(dtype("U0"), (10**12,), b""), "texts without length"),
    (array(dtype("U999999999")), "numpy's type 'U999999999'"),
    (array(dtype("f8"), (2,)), "not as long as its shape"),
    (array(dtype("f8"), (2**62,)), "not as long as its shape"),
    (array(dtype("f8"), (2**40, 2**40)), "not as long as its shape"),
    (array(dtype("f8"), (2**400, 0), b""), "impossible shape"),
    (array(dtype("f8"), (2**31, 0), b""), "impossible shape"),
    (array(dtype("f8"), (-1,)), "whole numbers from 0"),
    (array(dtype("f8"), (True,)), "whole numbers from 0"),
    (array(dtype("f8"), (1.0,)), "whole numbers from 0"),
    (array(dtype("f8"), [1]), "no tuple"),
    (array(dtype("f8"), (1,) * 33), "no tuple"),
    (array(dtype("f8"), content="x" * 8), "not as long as its shape"),
    (array(dtype("f8"), content=[1.0]), "not as long as its shape"),
    (array(dtype("b1"), (8,), b"\x02" * 8), "neither 0 nor 1"),
    (array(dtype("U2"), content=b"\xff" * 8), "text that is not Unicode"),
    (array(dtype("U2"), content=b"\x00\xd8\0\0" * 2), "text that is not Unicode"),
    (array(dtype("O8", OBJECT_STATE), content=[[1]]), "objects that are not all numbers and texts"),
    (array(dtype("O8", OBJECT_STATE), content=[None, None]), "not given as a list as long"),
    (EMPTY_ARRAY, "without content"),
    (EMPTY_ARRAY + b"\x85", "without content"),
    (EMPTY_ARRAY + b"\x94(" + piece(1) + piece((1,)) + dtype("O8", OBJECT_STATE) + b"\x89]h\x00atb", "not all numbers"),
    (EMPTY_ARRAY + piece((1, (1,))) + b"b", "array whose state"),
    (name("numpy", "ndarray"), "stands for no value"),
    (name("numpy", "ndarray") + b")R", "other values than it needs"),
    (name("numpy", "dtype") + b")R", "other values than it needs"),
    (name("numpy", "dtype") + piece(("f8",)) + b"R", "stands for no value"),
    (name("numpy.core.multiarray", "_reconstruct") + piece((1, 2, 3)) + b"R", "numpy begins it"),
    (name("numpy.core.multiarray", "scalar") + b"(" + dtype("O8", OBJECT_STATE) + piece(ADDRESS) + b"tR", "objects"),
    (name("numpy.core.multiarray", "scalar") + b"(" + dtype("f8") + piece(bytes(9)) + b"tR", "not as long"),
    (name("numpy.core.numeric", "_frombuffer") + b"(" + piece(ADDRESS) + dtype("O8", OBJECT_STATE) + piece((1,))
     + text("C") + b"tR", "objects that is not given as a list"),
    (name("numpy.core.numeric", "_frombuffer") + b"(" + piece(bytes(8)) + dtype("f8") + piece((1,)) + text("A")
     + b"tR", "given as numpy writes it"),
    (name("numpy.core.numeric", "_frombuffer") + b"(" + piece(bytes(8)) + dtype("f8") + piece((1,)) + text("K")
     + piece((5,)) + b"tR", "given as numpy writes it"),
], ids=lambda value: value if isinstance(value, str) else "pickle")  # fmt: skip
def test_arrays_are_made_of_checked_parts_alone(parts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpickle_plain(program(parts), PATH)


def test_a_log_that_gives_bytes_for_addresses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(program(b"]}", text("token"), array(fields_that_are_denied(), content=b"A" * 8), b"sa"))
    with pytest.raises(ValueError, match=r"log\.pkl: not a readable pickle of plain values: byte \d+: .*'V8'"):
        read_log(path)


def nested(times: int, begin: bytes, end: bytes) -> bytes:
    return program(begin * times, b"N", end * times)


DOUBLED = b"(]\x94" + b"".join(b"]\x94h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(30)) + b"t"
MODULUS = 2**61 - 1


@pytest.mark.parametrize(("data", "message"), [
    (nested(100_000, b"]", b"a"), "nested deeper than 60"),
    (nested(100_000, b"(", b"t"), "nested deeper than 1000"),
    (program(b"N", b"\x85" * 100_000), "nested deeper than 60"),
    (program(b"}N", b"\x85" * 100_000, b"Ns"), "a key of a dict, or a member of a set, that is no number or text"),
    (program(DOUBLED), "what it repeats included"),
    (program(b"]\x94h\x00a"), "holds itself"),
    (program(b"}\x94Nh\x00s"), "holds itself"),
    (program(b"]\x94h\x00\x85a"), "holds itself"),
    (program(name("its.module", "Thing"), b")\x81\x94}", text("a"), b"h\x00sb"), "holds itself"),
    (program(b"N", b"r\xff\xff\xff\x7f"), "remembered out of order"),
    (program(b"N", b"p99999999999999999999\n"), "a reference that is no number"),
    (program(b"j\xff\xff\xff\xff"), "cut off or damaged"),
    (program(b"h\x05"), "cut off or damaged"),
    (program(b"g5\n"), "cut off or damaged"),
    (program(b"\x96" + struct.pack("<Q", 2**63)), "cut off or damaged"),
    (program(b"B\xff\xff\xff\xff"), "cut off or damaged"),
    (program(b"\x95" + struct.pack("<Q", 2**63), b"N"), "cut off or damaged"),
    (program(b"X" + struct.pack("<I", 2**30), b"x" * 2**20), "a text of 1073741824 bytes"),
    (program(b"X\x03\0\0\0\xed\xa0\x80"), "text that is not Unicode"),
    (program(b"V\\ud800\n"), "text that is not Unicode"),
    (program(b"\x8b" + struct.pack("<i", 10**7), b"\x7f" * 10**7), "a whole number of 10000000 bytes"),
    (program(b"\x8b" + struct.pack("<i", -1)), "a whole number of -1 bytes"),
    (program(b"L" + b"9" * 10**7 + b"L\n"), "a line that does not end"),
    (program(b"L" + b"9" * 900 + b"L\n"), "a whole number that is none, or longer"),
    (program(b"I1_0\n"), "a whole number that is none"),
    (program(b"F" + b"9" * 200 + b"\n"), "a line that does not end"),
    (program(b"Fnine\n"), "could not convert string to float"),
    (program(b"}K\x01NsK\x01Ns"), "a key twice"),
    (program(b"}(K\x01NG?\xf0\0\0\0\0\0\0Nu"), "a key twice"),
    (program(b"\x8f(K\x01\x88\x90"), "a member twice"),
    (program(b"}]Ns"), "no number or text"),
    (program(b"\x8f(}\x90"), "no number or text"),
    (program(b"}", piece(MODULUS), b"Ns"), "more than 61 bits"),
    (program(b"(", b"".join(piece(MODULUS * i) for i in range(2000)), b"\x91"), "more than 61 bits"),
    (program(b"}(Nu"), "keys and values"),
    (program(b"N(Nu"), "keys and values of what is no dict"),
    (program(b"}(K\x01u"), "keys and values"),
    (program(b"NK\x01a"), "addition to what is no list"),
    (program(b"]K\x01b"), "content of what has none"),
    (program(b"NNR"), "call of what is no known name"),
    (program(b"NN\x81"), "object of no known class"),
    (program(name("numpy", "dtype"), b")\x81"), "object of no known class"),
    (program(name("its.module", "Thing"), b")\x81]b"), "attributes that are no dict of names"),
    (program(name("its.module", "Thing"), b")\x81}K\x01Nsb"), "attributes that are no dict of names"),
    (program(name("its.module", "Thing"), b"]R"), "call of what is no known name"),
    (program(b"KKKN\x93"), "a name that is no text"),
    (program(b"N", b"N"), "more or fewer values than one"),
    (program(b"(N"), "more or fewer values than one"),
    (program(), "more or fewer values than one"),
    (program(b"N") + b"N", "its end, but 1 bytes follow"),
    (b"\x80\x06N.", "protocol 6"),
    (b"", "cut off or damaged"),
    (b"\x80", "cut off or damaged"),
])  # fmt: skip
def test_what_is_no_bounded_value_is_refused_before_it_does_harm(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^x\.pkl: not a readable pickle of plain values: .*({message})"):
        unpickle_plain(data, PATH, NAMES)


def test_content_that_is_referred_to_again_and_again_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MOST_COPIED", 10**6)
    content = b"B" + struct.pack("<I", 8000) + bytes(8000) + b"\x94"
    begin = content + name("numpy.core.numeric", "_frombuffer") + b"\x94" + dtype("f8") + b"\x94"
    array_again = b"h\x01(h\x00h\x02" + piece((1000,)) + text("C") + b"tR"
    set_again = name("builtins", "set") + b"h\x00\x85R"
    numbers = b"".join(piece(i) for i in range(1000))
    attributes = b"".join(text(str(i)) + b"N" for i in range(1000))
    attributes_again = name("its.module", "Thing") + b")\x81h\x00b"
    for first, again, fits in (
        (begin, array_again, 125),
        (b"(" + numbers + b"l\x94", set_again, 15),
        (b"}(" + attributes + b"u\x94", attributes_again, 15),
    ):
        reader = pickle_reader._Reader(program(b"(", first, again * fits, b"t"), PATH, NAMES)
        assert len(reader.read()) > fits
        with pytest.raises(ValueError, match="more than 1000000 bytes of arrays, sets and attributes"):
            unpickle_plain(program(b"(", first, again * (fits + 1), b"t"), PATH, NAMES)


def test_more_instructions_than_a_file_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MOST_STEPS", 1000)
    assert len(unpickle_plain(program(b"(", b"N" * 990, b"t"), PATH)) == 990
    with pytest.raises(ValueError, match="more than 1000 instructions"):
        unpickle_plain(program(b"(", b"N" * 1000, b"t"), PATH)


def test_an_object_keeps_what_it_was_made_of_and_nothing_of_it_runs() -> None:
    made = name("its.module", "Thing") + piece((1, "a")) + b"R"
    state = b"}" + text("x") + b"K\x05s" + text("__class__") + b"Ns" + text("args") + b"Ns"
    found = unpickle_plain(program(made, state, b"b"), PATH, NAMES)
    assert type(found) is Thing
    assert found.args == (1, "a")
    assert vars(found) == {"x": 5, "__class__": None, "args": None}
    slots = unpickle_plain(program(made, b"N}", text("y"), b"K\x06s\x86b"), PATH, NAMES)
    assert vars(slots) == {"y": 6}


@pytest.mark.parametrize("module, what", [
    ("builtins", "eval"), ("builtins", "getattr"), ("builtins", "list"), ("os", "system"), ("numpy", "load"),
    ("numpy.core.multiarray", "_reconstruct.__class__"), ("copyreg", "_reconstructor"), ("its.module", "Other"),
    ("a\nb" + "x" * 200, "c" * 200),
])  # fmt: skip
def test_names_that_are_not_known_are_refused_with_their_place(module: str, what: str) -> None:
    with pytest.raises(UnsafePickleError, match=r"^x\.pkl: refused to load .* \(byte \d+\)\. Only") as raised:
        unpickle_plain(program(name(module, what)), PATH, NAMES)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("make", [
    lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir(),
])  # fmt: skip
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "log.pkl")
    with pytest.raises(FileError, match=r"log\.pkl is a .*, where a file is to be read"):
        load_plain_pickle(tmp_path / "log.pkl")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match=r"log\.pkl has more than 536870912 bytes"):
        load_plain_pickle(path)
