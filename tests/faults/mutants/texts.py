"""JSON and YAML that says something else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str | int, ...]
WRONG: tuple[tuple[str, Any], ...] = (
    ("null", None), ("text", "wrong"), ("number", -3), ("huge", 10**30), ("list", [[]]), ("mapping", {"a": {}}),
    ("true", True), ("float", 0.5), ("nan", float("nan")), ("infinite", float("inf")), ("long", "x" * 200_000),
)  # fmt: skip
"""Values that stand for every type; what a key takes is left out by type."""
DEEP = 100_000


def damaged_documents(read: bytes, is_yaml: bool) -> Iterator[tuple[str, bytes]]:
    """Whole files that are no such documents."""
    opened, closed = b"[", b"]"
    yield "a_list", b"[1, 2, 3]\n"
    yield "null", b"null\n"
    yield "a_text", b'"text"\n'
    yield "an_empty_mapping", b"{}\n"
    yield "deep", opened * DEEP + closed * DEEP
    yield "deep_mapping", b'{"a":' * DEEP + b"1" + b"}" * DEEP
    yield "not_utf8", read.replace(b":", b": \xff\xfe", 1)
    yield "utf16", read.decode().encode("utf-16")
    yield "nul_byte", read[:20] + b"\0" + read[20:]
    yield "huge_number", b'{"format": ' + b"9" * 100_000 + b"}\n"
    if is_yaml:
        yield "python_tag", b"config: !!python/object/apply:os.system ['touch OWNED']\n"
        yield (
            "bomb",
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9)) for n in range(ord("b"), ord("m"))
            ),
        )
        yield "self_reference", b"config: &a [*a]\ntrained_on: *a\n"
        yield "tab", b"config:\n\ta: 1\n"
        yield "two_documents", read + b"\n---\n" + read
    else:
        yield "trailing", read + b"}"


def paths_of(value: Any, depth: int) -> Iterator[Keys]:
    """Keys of every value down to a depth; of a list its first element alone."""
    inside: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, Mapping):
        inside = iter(value.items())
    elif isinstance(value, list) and value:
        inside = iter([(0, value[0])])
    for key, below in inside:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in paths_of(below, depth - 1))


def changed_values(
    content: Any, depth: int, seed: int, each: int, dropped: bool = True
) -> Iterator[tuple[str, Keys, Any]]:
    """Name, keys and new content: each key ``dropped``, and ``each`` of the values that are not of its type."""
    draw = random.Random(seed)
    for keys in paths_of(content, depth):
        name = ".".join(map(str, keys))
        if dropped:
            yield f"no_{name}", keys, _with(content, keys, _DROP)
        old = _at(content, keys)
        fitting = [(word, value) for word, value in WRONG if not _same_kind(old, value)]
        for word, value in draw.sample(fitting, min(each, len(fitting))):
            yield f"{name}_{word}", keys, _with(content, keys, value)
    if isinstance(content, Mapping):
        yield "foreign_key", ("of_somebody_else",), {**content, "of_somebody_else": 1}


_DROP = object()


def _same_kind(old: Any, new: Any) -> bool:
    """Whether a value of this type might be right there."""
    if old is None:
        return True  # nothing tells its type
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, str):
        return isinstance(new, str)
    return isinstance(new, type(old)) and not isinstance(new, (int, float))


def _at(content: Any, keys: Keys) -> Any:
    for key in keys:
        content = content[key]
    return content


def _with(content: Any, keys: Keys, value: Any) -> Any:
    content = copy.deepcopy(content)
    holder = _at(content, keys[:-1])
    if value is _DROP:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    return content


Reseal = Callable[[Path], object]
"""Makes the checksums of a folder right again, as somebody who means harm would."""


def changes(
    pristine: Path,
    depth: int,
    seed: int,
    each: int,
    reseal: Reseal | None = None,
    most: int | None = None,
    dropped: bool = True,
) -> Iterator[tuple[str, tuple[str, ...], Callable[[Path], object]]]:
    """Names, words and changes of a JSON or YAML file, whose pristine version is read for its keys."""
    is_yaml = pristine.suffix != ".json"
    read = pristine.read_bytes()
    content = yaml.safe_load(read) if is_yaml else json.loads(read)

    def writing(new: bytes) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            path.unlink()
            path.write_bytes(new)
            if reseal is not None:
                reseal(path)

        return write

    for name, document in damaged_documents(read, is_yaml):
        yield name, (), writing(document)
    if isinstance(content, Mapping) and content:
        first = next(iter(content))
        twice = (yaml.safe_dump({first: content[first]}) if is_yaml else f'{{"{first}": 1,').encode()
        yield "key_twice", (str(first),), writing(twice + (read if is_yaml else read.lstrip()[1:]))
    found = list(changed_values(content, depth, seed, each, dropped))
    if most is not None and len(found) > most:
        found = random.Random(seed).sample(found, most)
    for name, keys, new in found:
        text = yaml.safe_dump(new, sort_keys=False) if is_yaml else json.dumps(new)
        yield name, tuple(str(key) for key in keys if isinstance(key, str))[-1:], writing(text.encode())
