"""What a pickle of plain values holds, by an interpreter of the few instructions that such files need.

Python's own machine is never run: it calls what a file names, and even where that is harmless, a few hundred bytes
exhaust its memory, or its stack when deeply nested keys are hashed. Here a name in a file is looked up in a table: it
means a function of this project, or an object that only keeps what it is given (`StandIn`). Read are None, numbers,
texts, bytes, lists, tuples, dicts, sets, and numpy's arrays and scalars (`pickled_arrays`), as protocols 0 to 5 of
Python 3 write them.

All is bounded, so that what was read can be compared, converted and shown in bounded time: instructions, depth, texts,
whole numbers, and all values together, each counted as often as it is referred to (of thirty lists that each hold the
one before twice, the last holds a thousand million). Nothing holds itself. No two keys of a dict are equal.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from navsim_bridge.files.pickled_arrays import (
    NUMPY_SCALARS,
    SCALARS,
    Dtype,
    UnbuiltArray,
    array_from_buffer,
    array_from_state,
    scalar,
)
from navsim_bridge.files.stand_in import StandIn

MOST_STEPS = 30_000_000
"""Instructions of one file; a log of 17 minutes takes 2 million. Each makes an object of at most 90 bytes, or more
only where the file gives its content."""
MOST_COPIED = 2**29
"""Bytes of what is made anew from content that may be referred to again: arrays, sets, attributes."""
MOST_MARKS = 1000
"""Lists, tuples and dicts that are begun and not ended."""
MOST_WORDS = 2**26
"""Values of one file, counted as often as they are referred to; texts and arrays count 1 more for every 8 bytes."""
MOST_DEPTH = 60
"""Containers in containers; numpy converts up to 64."""
MOST_TEXT = 2**20
"""Bytes of one text."""
MOST_NUMBER = 255
"""Bytes of a whole number: writing out a long one takes the square of its length."""
MOST_KEY = 2**61 - 2
"""A whole number that is a key: of larger ones, any number can be chosen that a dict takes for the same at first."""

_UINT2, _UINT4, _UINT8 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_INT4, _DOUBLE = struct.Struct("<i"), struct.Struct(">d")
_WHOLE = re.compile(rb"[-+]?[0-9]{1,614}")  # digits of a number of MOST_NUMBER bytes
_INDEX = re.compile(rb"[0-9]{1,9}")
_TEXTS = frozenset({str, bytes, np.str_, np.bytes_})
_NUMBERS = (SCALARS | NUMPY_SCALARS) - _TEXTS


class UnsafePickleError(ValueError):
    """A pickle names a class or function that is not known, or asks for what files of plain values do not need."""


Names = Mapping[tuple[str, str], type[StandIn]]
"""(module, name) -> what stands for its objects."""


def unpickle_plain(data: bytes, path: Path | str, names: Names | None = None) -> Any:
    """The values in the pickle ``data``, which was read from ``path``.

    Args:
        data: one whole pickle.
        path: for error texts.
        names: classes of which the file may hold objects, and what stands for them.

    Raises:
        UnsafePickleError: it names any other class or function, or asks for anything that plain values do not need.
        ValueError: it is not one whole pickle of plain values, or holds more than the bounds of this module.
    """
    try:
        found = _Reader(data, path, names or {}).read()
        _measure(found)
    except UnsafePickleError:
        raise
    except ValueError as error:
        problem = f"not a readable pickle of plain values: {error}; get the file again, or write it with plain values"
        raise ValueError(f"{path}: {problem}") from None
    return found


@dataclass(frozen=True, slots=True)
class _Name:
    """What a name in a file means."""

    call: Callable[..., Any] | None = None  # gives what stands for the result of a call
    fewest: int = 0  # arguments of it
    most: int = 0
    stand_in: type[StandIn] | None = None


class _Reader:
    """One pickle: its instructions take values from ``stack`` and put others there, as in Python's own machine."""

    def __init__(self, data: bytes, path: Path | str, names: Names) -> None:
        self.data, self.path = data, path
        self.names = {**_NAMES, **{name: _Name(stand_in=stand_in) for name, stand_in in names.items()}}
        self.memo: list[Any] = []
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.copied = 0
        self.at = 0  # the instruction's first byte or, while it is carried out, the first that is not read yet

    def read(self) -> Any:
        try:
            return self._run()
        except UnsafePickleError:
            raise
        except (IndexError, struct.error):
            problem = "it is cut off or damaged here"
        except KeyError:
            problem = "a reference to a value that is not there"
        except UnicodeError:
            problem = "a text that is not Unicode"
        except ValueError as error:
            problem = str(error)
        raise ValueError(f"byte {self.at}: {problem}")

    def _run(self) -> Any:
        """All of the time goes here: the instructions that files mostly consist of are carried out in this loop.

        What makes a value is mostly followed by the instruction to remember it, which is then carried out at once.
        """
        data, marks, stack, others = self.data, self.marks, self.stack, _INSTRUCTIONS
        memo, remember, push = self.memo, self.memo.append, self.stack.append
        value: Any
        at = 0
        try:
            for _ in range(MOST_STEPS):
                code = data[at]
                at += 1
                if code == 0x68:  # BINGET
                    push(memo[data[at]])
                    at += 1
                elif code == 0x6A:  # LONG_BINGET
                    push(memo[_UINT4.unpack_from(data, at)[0]])
                    at += 4
                elif code == 0x94:  # MEMOIZE
                    remember(stack[-1])
                elif code == 0x8C:  # SHORT_BINUNICODE
                    start = at + 1
                    at = start + data[at]
                    value = str(data[start:at], "utf-8")
                    push(value)
                    if data[at] == 0x94:
                        remember(value)
                        at += 1
                elif code == 0x4B:  # BININT1
                    push(data[at])
                    at += 1
                elif code == 0x28:  # MARK
                    if len(marks) == MOST_MARKS:
                        raise ValueError(f"values nested deeper than {MOST_MARKS}")
                    marks.append(stack)
                    stack = []
                    push = stack.append
                elif code == 0x86:  # TUPLE2
                    last = stack.pop()
                    stack[-1] = value = (stack[-1], last)
                    if data[at] == 0x94:
                        remember(value)
                        at += 1
                elif code == 0x74:  # TUPLE
                    value = tuple(stack)
                    stack = marks.pop()
                    push = stack.append
                    push(value)
                    if data[at] == 0x94:
                        remember(value)
                        at += 1
                elif code == 0x85:  # TUPLE1
                    stack[-1] = value = (stack[-1],)
                    if data[at] == 0x94:
                        remember(value)
                        at += 1
                elif code == 0x88:  # NEWTRUE
                    push(True)
                elif code == 0x89:  # NEWFALSE
                    push(False)
                elif code == 0x47:  # BINFLOAT
                    push(_DOUBLE.unpack_from(data, at)[0])
                    at += 8
                elif code == 0x43:  # SHORT_BINBYTES
                    start = at + 1
                    at = start + data[at]
                    push(data[start:at])
                elif code == 0x96:  # BYTEARRAY8
                    start = at + 8
                    at = start + _UINT8.unpack_from(data, at)[0]
                    push(data[start:at])
                elif code == 0x2E:  # STOP
                    break
                else:
                    self.at, self.stack = at, stack
                    others[code](self)
                    at, stack = self.at, self.stack
                    push = stack.append
            else:
                raise ValueError(f"more than {MOST_STEPS} instructions")
            if len(stack) != 1 or marks:
                raise ValueError("an end with more or fewer values than one")
            if at < len(data):
                raise ValueError(f"its end, but {len(data) - at} bytes follow")
        finally:
            self.at = at
        return stack[0]

    def take(self, count: int) -> bytes:
        """The next bytes of the file. Where fewer are left, the next instruction fails."""
        start, self.at = self.at, self.at + count
        return self.data[start : self.at]

    def number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def text(self, count: int) -> str:
        if count > MOST_TEXT:
            raise ValueError(f"a text of {count} bytes; at most {MOST_TEXT} are read")
        return str(self.take(count), "utf-8")

    def line(self, most: int = MOST_NUMBER * 4) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + most + 1)
        if end < 0:
            raise ValueError("a line that does not end")
        line = self.take(end - self.at)
        self.at += 1
        return line

    def items(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def index(self) -> int:
        line = self.line()
        if not _INDEX.fullmatch(line):
            raise ValueError("a reference that is no number")
        return int(line)

    def count_copy(self, copy: Any) -> None:
        """Bound what is made of one content, however often the file refers to it."""
        kind = type(copy)
        if kind is np.ndarray or kind in NUMPY_SCALARS:
            self.copied += copy.nbytes
        elif kind is not Dtype:
            self.copied += len(copy) * (1 if kind is bytes else 64)
        if self.copied > MOST_COPIED:
            raise ValueError(f"more than {MOST_COPIED} bytes of arrays, sets and attributes")

    def refused(self, what: str) -> UnsafePickleError:
        return UnsafePickleError(
            f"{self.path}: refused to {what} (byte {self.at - 1}). Only plain containers, numbers, strings and numpy "
            "arrays are read. If you trust the file, rewrite it with plain values where it was made."
        )


# ---------------------------------------------------------------------- instructions


def _refuse(reader: _Reader) -> None:
    code = chr(reader.data[reader.at - 1])
    for known in pickletools.opcodes:
        if known.code == code:
            raise reader.refused(f"follow the instruction {known.name}")
    raise ValueError("it is damaged here")


def _protocol(reader: _Reader) -> None:
    if (version := reader.take(1)[0]) > 5:
        raise ValueError(f"protocol {version}; 0 to 5 are read")


def _frame(reader: _Reader) -> None:
    if reader.at + 8 + reader.number(_UINT8) > len(reader.data):
        raise ValueError("it is cut off or damaged here")


def _int_line(reader: _Reader) -> None:
    line = reader.line()
    reader.stack.append(line == b"01" if line in (b"00", b"01") else _whole(line))


def _whole(line: bytes) -> int:
    if not _WHOLE.fullmatch(line):
        raise ValueError("a whole number that is none, or longer than is read")
    return int(line)


def _long(reader: _Reader, count: int) -> None:
    if not 0 <= count <= MOST_NUMBER:
        raise ValueError(f"a whole number of {count} bytes; at most {MOST_NUMBER} are read")
    reader.stack.append(int.from_bytes(reader.take(count), "little", signed=True))


def _escaped_text(reader: _Reader) -> None:
    text = str(reader.line(6 * MOST_TEXT), "raw-unicode-escape")
    text.encode("utf-8")  # fails for halves of characters
    reader.stack.append(text)


def _append(reader: _Reader) -> None:
    value = reader.stack.pop()
    _extend(reader, [value])


def _extend(reader: _Reader, items: Iterable[Any]) -> None:
    target = reader.stack[-1]
    if type(target) is not list:
        raise ValueError("an addition to what is no list")
    target.extend(items)


def _set_item(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    _fill(reader.stack[-1], [key, value])


def _set_items(reader: _Reader) -> None:
    items = reader.items()
    _fill(reader.stack[-1], items)


def _dict(reader: _Reader) -> None:
    items: dict[Any, Any] = {}
    _fill(items, reader.items())
    reader.stack.append(items)


def _fill(target: Any, items: list[Any]) -> None:
    keys = items[::2]
    if type(target) is not dict or len(items) % 2:
        raise ValueError("keys and values of what is no dict")
    _check_keys(keys)
    before = len(target)
    target.update(zip(keys, items[1::2]))
    if len(target) < before + len(keys):
        raise ValueError("a dict with a key twice")


def _check_keys(keys: Iterable[Any]) -> None:
    """Only such as are fast to find, however they are chosen: Python salts what it makes of texts, not of tuples."""
    kinds = set(map(type, keys))
    if kinds == {str}:
        return
    if not kinds <= SCALARS | NUMPY_SCALARS:
        raise ValueError("a key of a dict, or a member of a set, that is no number or text")
    if int in kinds and any(type(key) is int and abs(key) > MOST_KEY for key in keys):
        raise ValueError("a key of a dict, or a member of a set, that is a number of more than 61 bits")


def _unite(target: Any, items: Collection[Any]) -> set[Any]:
    if type(target) is not set:
        raise ValueError("a member of what is no set")
    _check_keys(items)
    before = len(target)
    target.update(items)
    if len(target) < before + len(items):
        raise ValueError("a set with a member twice")
    return target


def _add_items(reader: _Reader) -> None:
    items = reader.items()
    _unite(reader.stack[-1], items)


def _tuple3(reader: _Reader) -> None:
    last, middle = reader.stack.pop(), reader.stack.pop()
    reader.stack[-1] = (reader.stack[-1], middle, last)


def _tuple1(reader: _Reader) -> None:
    reader.stack[-1] = (reader.stack[-1],)


def _put(reader: _Reader, key: int) -> None:
    value = reader.stack[-1]
    if key == len(reader.memo):
        reader.memo.append(value)
    elif key < len(reader.memo):
        reader.memo[key] = value
    else:
        raise ValueError("a value that is remembered out of order")


def _global(reader: _Reader) -> None:
    module, name = (str(reader.line(), "utf-8") for _ in range(2))
    _push_name(reader, module, name)


def _stack_global(reader: _Reader) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    if type(module) is not str or type(name) is not str:
        raise ValueError("a name that is no text")
    _push_name(reader, module, name)


def _push_name(reader: _Reader, module: str, name: str) -> None:
    meaning = reader.names.get((module, name))
    if meaning is None:
        shown = f"{module:.100}.{name:.100}"
        raise reader.refused(f"load {shown if shown.isprintable() else ascii(shown)}")
    reader.stack.append(meaning)


def _reduce(reader: _Reader) -> None:
    args = reader.stack.pop()
    name = reader.stack[-1]
    if type(name) is not _Name or type(args) is not tuple:
        raise ValueError("a call of what is no known name")
    if name.stand_in is not None:
        reader.stack[-1] = _stand_in(name.stand_in, args)
    elif name is _RECONSTRUCT:
        if len(args) != 3 or args[0] is not _NDARRAY:
            raise ValueError("an array that is not begun as numpy begins it")
        reader.stack[-1] = UnbuiltArray(len(reader.memo))  # where it will be remembered
    elif name.call is not None and name.fewest <= len(args) <= name.most:
        reader.stack[-1] = made = name.call(*args)
        reader.count_copy(made)
    else:
        raise ValueError("a call with other values than it needs")


def _new_object(reader: _Reader) -> None:
    args = reader.stack.pop()
    name = reader.stack[-1]
    if type(name) is not _Name or name.stand_in is None or type(args) is not tuple:
        raise ValueError("an object of no known class")
    reader.stack[-1] = _stand_in(name.stand_in, args)


def _stand_in(kind: type[StandIn], args: tuple[Any, ...]) -> StandIn:
    made = object.__new__(kind)
    StandIn.args.__set__(made, args)  # type: ignore[attr-defined]  # the slot itself, whatever ``kind`` defines
    return made


def _build(reader: _Reader) -> None:
    state = reader.stack.pop()
    target = reader.stack[-1]
    if type(target) is UnbuiltArray:
        array = reader.stack[-1] = array_from_state(state)
        reader.count_copy(array)
        if target.memo_key < len(reader.memo) and reader.memo[target.memo_key] is target:
            reader.memo[target.memo_key] = array
    elif type(target) is Dtype:
        target.build(state)
    elif isinstance(target, StandIn):
        for part in state if type(state) is tuple and len(state) == 2 else (state,):  # attributes and slots
            if part is None:
                continue
            if type(part) is not dict or set(map(type, part)) - {str}:
                raise ValueError("attributes that are no dict of names")
            target.__dict__.update(part)
            reader.count_copy(part)
    else:
        raise ValueError("the content of what has none")


def _constant(value: Any) -> Callable[[_Reader], None]:
    return lambda reader: reader.stack.append(value)


def _push(value: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    def push(reader: _Reader) -> None:
        made = value(reader)  # which may end a list, and with it the stack of its items
        reader.stack.append(made)

    return push


_INSTRUCTIONS: list[Callable[[_Reader], None]] = [_refuse] * 256
"""By code: what is not in the loop of `_Reader`, and the refusal of what files of plain values do not need."""
for _code, _instruction in {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.INT: _int_line,
    pickle.LONG: _push(lambda reader: _whole(reader.line().removesuffix(b"L"))),
    pickle.BININT: _push(lambda reader: reader.number(_INT4)),
    pickle.BININT2: _push(lambda reader: reader.number(_UINT2)),
    pickle.LONG1: lambda reader: _long(reader, reader.take(1)[0]),
    pickle.LONG4: lambda reader: _long(reader, reader.number(_INT4)),
    pickle.FLOAT: _push(lambda reader: float(reader.line(100))),
    pickle.UNICODE: _escaped_text,
    pickle.BINUNICODE: _push(lambda reader: reader.text(reader.number(_UINT4))),
    pickle.BINUNICODE8: _push(lambda reader: reader.text(reader.number(_UINT8))),
    pickle.SHORT_BINBYTES: _push(lambda reader: reader.take(reader.take(1)[0])),
    pickle.BINBYTES: _push(lambda reader: reader.take(reader.number(_UINT4))),
    pickle.BINBYTES8: _push(lambda reader: reader.take(reader.number(_UINT8))),
    pickle.EMPTY_LIST: _push(lambda reader: []),
    pickle.LIST: _push(lambda reader: reader.items()),
    pickle.APPEND: _append,
    pickle.APPENDS: lambda reader: _extend(reader, reader.items()),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.TUPLE1: _tuple1,
    pickle.TUPLE3: _tuple3,
    pickle.EMPTY_DICT: _push(lambda reader: {}),
    pickle.DICT: _dict,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.EMPTY_SET: _push(lambda reader: set()),
    pickle.ADDITEMS: _add_items,
    pickle.FROZENSET: _push(lambda reader: frozenset(_unite(set(), reader.items()))),
    pickle.PUT: lambda reader: _put(reader, reader.index()),
    pickle.BINPUT: lambda reader: _put(reader, reader.take(1)[0]),
    pickle.LONG_BINPUT: lambda reader: _put(reader, reader.number(_UINT4)),
    pickle.GET: _push(lambda reader: reader.memo[reader.index()]),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _new_object,
    pickle.BUILD: _build,
}.items():
    _INSTRUCTIONS[_code[0]] = _instruction


# ---------------------------------------------------------------------- names


def _set(items: Any = ()) -> set[Any]:
    """How protocols before 4 write sets."""
    if type(items) is not list and items != ():
        raise ValueError("a set that is not given as a list")
    return _unite(set(), items)


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(items))


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """How protocols before 3 write bytes."""
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise ValueError("bytes that are not given as Python writes them")
    return text.encode("latin1")


_NDARRAY = _Name()
_RECONSTRUCT = _Name()
_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(Dtype, 1, 3),
    ("_codecs", "encode"): _Name(_bytes, 2, 2),
}
"""What every file may name."""
for _builtins in ("builtins", "__builtin__"):  # the latter in protocols before 3
    _NAMES[_builtins, "set"] = _Name(_set, 0, 1)
    _NAMES[_builtins, "frozenset"] = _Name(_frozenset, 0, 1)
    _NAMES[_builtins, "bytes"] = _Name(_bytes)
for _core in ("numpy.core", "numpy._core"):  # of numpy 1 and numpy 2
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _RECONSTRUCT
    _NAMES[f"{_core}.multiarray", "scalar"] = _Name(scalar, 2, 2)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Name(array_from_buffer, 4, 5)


# ---------------------------------------------------------------------- sizes


def _measure(value: Any) -> None:
    """Raise ValueError where a value holds itself, more than the bounds, or what is no value, such as a name."""
    sizes: dict[int, tuple[int, int] | None] = {}  # by id: words and depth; None while they are counted
    around: list[tuple[Any, Iterator[Any], int, int]] = []  # the containers that hold the present one
    container: Any = None
    parts, words, depth = iter((value,)), 0, 0
    while True:
        for part in parts:
            kind = type(part)
            if kind in _NUMBERS:
                words += 1
            elif kind in _TEXTS:
                words += 1 + (len(part) >> 3)
            elif kind is np.ndarray and part.dtype.kind != "O":
                words += 1 + (part.nbytes >> 3)
            elif id(part) not in sizes:
                around.append((container, parts, words, depth))
                sizes[id(part)] = None
                container, parts, words, depth = part, _parts(part), 1, 0
                break
            elif (size := sizes[id(part)]) is not None:
                words, depth = words + size[0], max(depth, size[1] + 1)
            else:
                raise ValueError("a value that holds itself")
        else:
            if words > MOST_WORDS:
                raise ValueError("more values than are read, what it repeats included")
            if not around:
                return
            sizes[id(container)] = words, depth
            container, parts, outer_words, outer_depth = around.pop()
            words, depth = outer_words + words, max(outer_depth, depth + 1)
        if max(depth, len(around)) > MOST_DEPTH:
            raise ValueError(f"values nested deeper than {MOST_DEPTH}")


def _parts(value: Any) -> Iterator[Any]:
    if type(value) in (list, tuple, set, frozenset):
        return iter(value)
    if type(value) is dict:
        return chain(value, value.values())
    if isinstance(value, StandIn):
        return chain(vars(value).values(), value.args)
    if type(value) is np.ndarray:  # of objects
        return iter(value.ravel())
    raise ValueError("an array without content, or a name that stands for no value")
