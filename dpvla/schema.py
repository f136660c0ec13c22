"""JSON and YAML side files against a schema: a ``TypedDict``, whose types say what every key holds.

Unlike options, values are taken as they are: no text is read as a number. Keys that a schema does not know are let
through, as a later version may have written them.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from dpvla.config import Range
from dpvla.files import FileError, read_json, read_yaml, short

Schema = TypeVar("Schema")
_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def read_as(path: Path | str, schema: type[Schema]) -> Schema:
    """The content of a JSON or (``.yaml``) YAML file, checked.

    Args:
        schema: a ``TypedDict``; keys that may be absent stand in a base with ``total=False``. Types are ``str``,
            ``int``, ``float`` (finite), ``bool``, ``None``, ``Any``, ``list[...]``, ``tuple[...]`` (a list of so many),
            ``dict[str, ...]``, ``Literal``, unions, other ``TypedDict``s, and ``Annotated`` with a ``Range``.

    Raises:
        FileError: naming file and key of the first value that is absent or of another type or range; errors of
            ``read_json`` and ``read_yaml``.
    """
    content = read_yaml(path) if Path(path).suffix in (".yaml", ".yml") else read_json(path)
    return checked(content, schema, str(path))


def checked(content: Any, schema: type[Schema], where: str) -> Schema:
    """``content`` itself, where it is as ``schema`` says; FileError, led by ``where``, where it is not."""
    try:
        _check(content, schema, "")
    except _RefusedError as refused:
        key, reason = refused.args
        raise FileError(f"{where}: {f'{key}: ' if key else ''}{reason}") from None
    return typing.cast(Schema, content)


class _RefusedError(Exception):
    """(dotted key, reason)."""


def _check(value: Any, hint: Any, key: str) -> None:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if typing.is_typeddict(hint):
        _check_keys(value, hint, key)
    elif origin is Annotated:
        _check(value, inner[0], key)
        for bounds in inner[1:]:
            if isinstance(bounds, Range) and value not in bounds:
                raise _RefusedError(key, f"expected a number {bounds.wanted(value)}, found {short(value, 80)}")
    elif origin in (Union, types.UnionType):
        _check_one_of(value, inner, key)
    elif origin is Literal:
        if not any(type(value) is type(one) and value == one for one in inner):
            raise _RefusedError(key, f"expected one of {', '.join(map(repr, inner))}, found {short(value, 80)}")
    elif origin in (list, tuple):
        _check_list(value, inner, key, origin)
    elif origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise _RefusedError(key, f"expected a mapping, found {short(value, 80)}")
        for name, item in value.items():
            if not isinstance(name, str):
                raise _RefusedError(key, f"expected texts as keys, found {short(name, 80)}")
            if inner:
                _check(item, inner[1], f"{key}.{name:.80}" if key else f"{name:.80}")
    elif not _is(value, hint):
        raise _RefusedError(key, f"expected {_NAMES[hint]}, found {short(value, 80)}")


def _is(value: Any, kind: type | None) -> bool:
    if kind is None or kind is type(None):
        return value is None
    if kind is float:
        return type(value) in (int, float) and abs(value) < 2**1000 and math.isfinite(value)
    return type(value) is kind


def _check_keys(value: Any, schema: Any, key: str) -> None:
    if not isinstance(value, Mapping):
        raise _RefusedError(key, f"expected a mapping, found {short(value, 80)}")
    hints = typing.get_type_hints(schema, include_extras=True)
    for name, hint in hints.items():
        full = f"{key}.{name}" if key else name
        if name in value:
            _check(value[name], hint, full)
        elif name in schema.__required_keys__:
            raise _RefusedError(full, "is missing")


def _check_one_of(value: Any, hints: tuple[Any, ...], key: str) -> None:
    reasons = []
    for hint in hints:
        try:
            return _check(value, hint, key)
        except _RefusedError as refused:
            reasons.append(refused)
    deepest = max(reasons, key=lambda refused: len(refused.args[0]))  # of the kind that was meant
    if len(deepest.args[0]) > len(key):
        raise deepest
    expected = " or ".join(_name(hint) for hint in hints)
    raise _RefusedError(key, f"expected {expected}, found {short(value, 80)}")


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (list, tuple):
        return "a list"
    if typing.get_origin(hint) is dict or hint is dict or typing.is_typeddict(hint):
        return "a mapping"
    return _NAMES.get(type(None) if hint is None else hint, "something else")


def _check_list(value: Any, inner: tuple[Any, ...], key: str, origin: Any) -> None:
    if not isinstance(value, list):
        raise _RefusedError(key, f"expected a list, found {short(value, 80)}")
    hints = list(inner)
    if origin is list or (len(inner) == 2 and inner[1] is Ellipsis):
        hints = [inner[0]] * len(value)
    if len(hints) != len(value):
        raise _RefusedError(key, f"expected a list of {len(hints)}, found {len(value)} values")
    for number, (item, hint) in enumerate(zip(value, hints)):
        _check(item, hint, f"{key}[{number}]")
