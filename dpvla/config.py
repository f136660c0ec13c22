"""Configs: frozen dataclasses from mappings and YAML files, and back; ``cli`` reads the command line over them.

Every key and every value is checked: an unknown key is refused with the nearest valid name, a value of another type or
out of its range with the key it stands under.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from dpvla import files
from dpvla.registry import RegistryError, look_up_config

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A config that cannot be used; the message says which key of which file and what to do."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, written beside its type: ``batch_size: Annotated[int, Range(least=1)] = 16``."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf  # exclusive
    below: float = math.inf  # exclusive

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def wanted(self, value: float) -> str:
        """The bounds that ``value`` is not in, in words."""
        return f"at most {MOST}" if value > MOST == self.most else str(self)

    def __str__(self) -> str:
        parts = [("at least", self.least), ("at most", self.most), ("above", self.above), ("below", self.below)]
        return " and ".join(f"{words} {bound:g}" for words, bound in parts if math.isfinite(bound) and bound != MOST)


MOST = 2**31 - 1
"""No count, size or seed is larger."""
Count = Annotated[int, Range(least=1, most=MOST)]
"""One or more."""
Whole = Annotated[int, Range(least=0, most=MOST)]
"""None or more."""
Size = Annotated[int, Range(least=1, most=2**14)]
"""Of a layer or an image: a checkpoint's config may be a stranger's, and must not ask for memory without end."""
Layers = Annotated[int, Range(least=0, most=512)]
"""Of a network."""
Steps = Annotated[int, Range(least=1, most=10_000)]
"""Of a solver."""
MOST_WEIGHTS = 2 * 10**10
"""No network has more numbers."""
Workers = Annotated[int, Range(least=0, most=4096)]
"""Processes or threads."""
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
BelowOne = Annotated[float, Range(least=0, below=1)]
"""From 0 to below 1: decays, strengths."""


@dataclass(frozen=True, eq=False)  # tyro hashes what stands beside a type
class Keys:
    """Marks a dict that goes to another library: the keys that may be given, each with the type of its value.

    ``options: Annotated[dict[str, Any], Keys({"depth": Layers})]``. Whatever else that library takes is refused: it
    could open files, or run what it finds in them.
    """

    types: Mapping[str, Any]
    most: int = 16  # values of a list

    def check(self, values: Mapping[Any, Any], where: str, key: str) -> None:
        """Raise ConfigError at the first key that may not be given, or whose value is of another type."""
        for name, value in values.items():
            if name not in self.types:
                raise ConfigError(f"{where}: {key}.{name!s:.80} is not taken here; what is: {', '.join(self.types)}")
            try:
                if isinstance(value, (list, tuple)) and len(value) > self.most:
                    raise _RefusedError(f"at most {self.most} values")
                _checked(self.types[name], value, where, f"{key}.{name}")
            except _RefusedError as refused:
                raise ConfigError(f"{where}: {key}.{name} must be {refused}, found {_found(value)}") from None


@dataclass(frozen=True)
class OneOf:
    """Marks a group of keys whose ``name`` chooses what the others are: the config of an algorithm, an encoder.

    ``encoder: Annotated[EncoderConfig, OneOf(ENCODERS, "encoder")] = field(default_factory=FlorenceConfig)``; what the
    registry holds has its config class as ``Config``, a subclass of the annotated one. In files and on the command
    line a bare name stands for the group.
    """

    registry: Mapping[str, Any]
    kind: str  # what the registry holds, for errors
    in_full: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict  # older ways to write the group, as today's
    base: type = object  # what is annotated with it, which ``group_of`` sets
    keeps: bool = True  # whether another choice takes over the keys that both have: not where they mean other things

    def config(self, name: Any, where: str, key: str) -> type:
        """The config class that a name chooses."""
        if not isinstance(name, str):
            raise ConfigError(f"{where}: {key}.name must be a text (in quotes), found {_found(name)}")
        try:
            config = look_up_config(self.registry, name, self.kind)
            return checked_config(config, self.base, f"{self.kind} {name!r}")
        except RegistryError as error:
            raise ConfigError(f"{where}: {key}.name: {error}") from None

    def having(self, key: Any) -> list[str]:
        """Names of the choices that have a key; one whose config cannot be used has none."""
        found = []
        for name in self.registry:
            with suppress(ConfigError):
                if any(field.name == key for field, _ in fields_and_types(self.config(name, "", ""))):
                    found.append(name)
        return found


def checked_config(config: Any, base: type, what: str) -> type:
    """``config``, which is ``Config`` of a registered class; RegistryError, led by ``what``, if it is none."""
    if not isinstance(config, type):
        raise RegistryError(f"{what}: its Config is {config!r:.80}: no class")
    name, made_of = config.__qualname__, typing.cast(Any, config)
    if "__dataclass_fields__" not in vars(config):
        raise RegistryError(f"{what}: its Config, {name}, is no dataclass: write @dataclass(frozen=True) above it")
    if not issubclass(config, base):
        raise RegistryError(f"{what}: its Config, {name}, is no subclass of {base.__module__}.{base.__name__}")
    if without := [field.name for field in dataclasses.fields(made_of) if default_of(field) is dataclasses.MISSING]:
        raise RegistryError(f"{what}: its Config, {name}, gives {', '.join(without)} no default")
    try:
        typing.get_type_hints(config, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise RegistryError(f"{what}: a type in its Config, {name}, cannot be read: {error}") from None
    return typing.cast(type, config)


def group_of(hint: Any) -> tuple[type | None, OneOf | None]:
    """The config class that a field's type is, if it is one, and how it is chosen, if it is."""
    choice = None
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        choice = next((dataclasses.replace(mark, base=hint) for mark in marks if isinstance(mark, OneOf)), None)
    return (hint if dataclasses.is_dataclass(hint) else None), choice  # type: ignore[return-value]


def fields_and_types(config_class: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """Every field of a config class with its type, marks included."""
    return _fields_and_types(config_class)


@functools.cache  # types are read from their texts
def _fields_and_types(config_class: Any) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(config_class))


@dataclass(frozen=True)
class FormerSwitch:
    """In ``RENAMED``: a key that was true or false, and is one of several values now."""

    key: str  # of today, dotted
    on: Any  # what true stands for
    off: Any  # what false stands for

    def today(self, value: Any, where: str, key: str) -> Any:
        """What a former ``value``, which stood at ``key``, is now."""
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {key} must be true or false, found {_found(value)}")
        return self.on if value else self.off


def renamed(config_class: type) -> Mapping[str, str | FormerSwitch]:
    """Former names of keys, dotted, and what they are called now: ``RENAMED`` of the class."""
    return getattr(config_class, "RENAMED", {})


def refuse_size(weights: float, key: str) -> None:
    """Raise ValueError, led by ``key``, for a network of more weights than any has, before memory is asked for."""
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{key} makes a network of {weights:.2g} weights, which is more than any has: refused")


def modern(config_class: type, data: Any, where: str, base: Mapping[str, Any] | None = None, prefix: str = "") -> Any:
    """``data`` with keys by their names of today; a chosen group always has its ``name``.

    A class whose keys have changed in more than their names says so in a static method ``in_full``, which takes a
    mapping as it was and gives today's.

    Args:
        base: what ``data`` is laid over: it names the choices that ``data`` leaves open; else their defaults do.
    """
    if not isinstance(data, Mapping):
        return data
    data, base = dict(getattr(config_class, "in_full", dict)(data)), base or {}
    for old, new in renamed(config_class).items():
        value = _take(data, old.split("."))
        if value is dataclasses.MISSING:
            continue
        if isinstance(new, FormerSwitch):
            value = new.today(value, where, prefix + old)
        key = new.key if isinstance(new, FormerSwitch) else new
        if not _put(data, key.split("."), value):
            raise ConfigError(f"{where}: {prefix}{old} and {prefix}{key} are the same; give {prefix}{key} alone")
    for field, hint in fields_and_types(config_class):
        group, choice = group_of(hint)
        if group is None or field.name not in data:
            continue
        value, under = data[field.name], base.get(field.name)
        if choice is not None:
            if isinstance(value, str):
                value = {"name": value}
            if isinstance(value, Mapping):
                value = dict(choice.in_full(value))
                if "name" not in value:
                    value["name"] = under["name"] if under else default_of(field).name
                group = choice.config(value["name"], where, f"{prefix}{field.name}")
        data[field.name] = modern(group, value, where, under, f"{prefix}{field.name}.")
    return data


def _take(data: dict[str, Any], path: Sequence[str]) -> Any:
    """Remove and give what stands at ``path``, and groups that are empty then; MISSING where nothing does."""
    key, *rest = path
    if not rest:
        return data.pop(key, dataclasses.MISSING)
    if not isinstance(data.get(key), Mapping):
        return dataclasses.MISSING
    inside = dict(data[key])
    value = _take(inside, rest)
    if value is not dataclasses.MISSING:
        data[key] = inside
        if not inside:
            del data[key]
    return value


def _put(data: dict[str, Any], path: Sequence[str], value: Any) -> bool:
    """Let ``value`` stand at ``path``; False where something does already."""
    key, *rest = path
    if not rest:
        return data.setdefault(key, value) is value
    inside = data.get(key, {})
    if not isinstance(inside, (str, Mapping)):
        return True  # what stands there is refused by itself, as no group
    data[key] = {"name": inside} if isinstance(inside, str) else dict(inside)
    return _put(data[key], rest, value)


IN_THE_WAY = {
    errno.EISDIR: "a file belongs there: move the folder away",
    errno.ENOTDIR: "a folder belongs there: move the file away",
    errno.EEXIST: "a folder belongs there: move the file away",
}
"""What to do where the system's own words say only what is there."""

LONGEST_LINE = 900
"""Characters of an error, of which some are what cannot be printed written out."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line of bounded length, with the file where the system's own words leave it out.

    Names in it may be a stranger's: what a terminal would obey, such as an escape sequence, is written out.
    """
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, (str, bytes)):
        remedy = IN_THE_WAY.get(error.errno or 0)
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" + (f"; {remedy}" if remedy else "")
    else:
        text = str(error)
    if len(text) > LONGEST_LINE:  # a name may be long; what it is and what to do stand at the ends
        text = f"{text[: LONGEST_LINE * 2 // 3]} … {text[-LONGEST_LINE // 3 :]}"
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) or type(error).__name__


def read_yaml(config_class: type, path: Path | str, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file in today's words, its keys checked against the fields of ``config_class``.

    ``base``: what it is laid over, see ``modern``.
    """
    try:
        data = files.read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except files.FileError as error:
        raise ConfigError(f"config file {error}") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"config file {path} must hold 'key: value' lines, found a {type(data).__name__}")
    data = modern(config_class, data, str(path), base)
    check_keys(config_class, data, str(path))
    return typing.cast("dict[str, Any]", data)


def check_keys(
    config_class: type, data: Mapping[str, Any], where: str, prefix: str = "", of: OneOf | None = None
) -> None:
    """Raise ConfigError at the first key of ``data`` (in ``modern`` words) that ``config_class`` does not have.

    ``of``: how the class was chosen, if it was: the key may be another choice's.
    """
    hints = {field.name: hint for field, hint in fields_and_types(config_class)}
    for key, value in data.items():
        if key not in hints:
            shown = f"{prefix}{key}" if isinstance(key, str) and len(key) < 80 else f"{prefix}{_found(key)}"
            near = difflib.get_close_matches(str(key)[:80], hints, n=1, cutoff=0.0)
            hint = f"; nearest valid name: '{prefix}{near[0]}'" if near else ""
            if of is not None and (others := of.having(key)):
                hint = f" of {of.kind} {data['name']}: it belongs to {' and '.join(others)}"
            raise ConfigError(f"{where}: unknown key '{shown}'{hint}")
        group, choice = group_of(hints[key])
        if group is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: '{prefix}{key}' takes a group of keys, found {_found(value)}")
            if choice is not None:
                group = choice.config(value["name"], where, f"{prefix}{key}")
            check_keys(group, value, where, f"{prefix}{key}.", choice)


def from_dict(config_class: type[Config], data: Mapping[str, Any], where: str) -> Config:
    """Build a config from a mapping that ``to_dict`` made (e.g. a checkpoint's ``run.yaml``); every value is checked.

    Raises ConfigError, with ``where`` and the key, for unknown keys, values of another type or out of range.
    """
    data = modern(config_class, data, where)
    check_keys(config_class, data, where)
    return built(config_class, checked_group(config_class, data, where), where)


def check(config: Any, where: str = "config") -> None:
    """Raise ConfigError at the first field of a config that has another type than it says, or is out of its range."""
    checked_group(type(config), fields_of(config), where)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain YAML/JSON types: tuples become lists, paths strings."""
    return {name: _plain(value) for name, value in fields_of(config).items()}


def fields_of(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def checked_group(config_class: type, data: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """The values of some fields of ``config_class``, each as its type wants it; groups as mappings."""
    hints = {field.name: hint for field, hint in fields_and_types(config_class)}
    checked = {}
    for key, value in data.items():
        try:
            checked[key] = _checked(hints[key], value, where, prefix + key)
        except _RefusedError as refused:
            raise ConfigError(f"{where}: {prefix}{key} must be {refused}, found {_found(value)}") from None
    return checked


class _RefusedError(Exception):
    """A value does not fit; the text says what would."""


def _checked(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    group, choice = group_of(hint)
    if group is not None:
        if not isinstance(value, (Mapping, group)):
            raise _RefusedError("a group of keys")
        if choice is not None:
            group = choice.config(value["name"], where, key) if isinstance(value, Mapping) else type(value)
        return checked_group(group, value if isinstance(value, Mapping) else fields_of(value), where, f"{key}.")
    if origin is Annotated:
        value = _checked(inside[0], value, where, key)
        for bounds in inside[1:]:
            if isinstance(bounds, Range) and value not in bounds:
                raise _RefusedError(bounds.wanted(value))
            if isinstance(bounds, Keys):
                bounds.check(value, where, key)
        return value
    if origin in (Union, types.UnionType):
        return _one_of(inside, value, where, key)
    if origin is Literal:
        if isinstance(value, bool) and (text := {True: "yes", False: "no"}[value]) in inside:
            value = text  # YAML reads a bare no as false
        if value not in inside or isinstance(value, bool):
            raise _RefusedError(f"one of {', '.join(map(str, inside))}")
        return value
    if origin is tuple:
        return _tuple(inside, value, where, key)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise _RefusedError("a group of keys")
        return dict(value)
    return _scalar(hint, value)


def _one_of(hints: Sequence[Any], value: Any, where: str, key: str) -> Any:
    if value is None and type(None) in hints:
        return None
    if value == "" and type(None) in hints:
        raise _RefusedError("a text that is not empty (leave the option out instead)")
    reasons = []
    for hint in hints:
        if hint is not type(None):
            try:
                return _checked(hint, value, where, key)
            except _RefusedError as refused:
                reasons.append(str(refused))
    raise _RefusedError(" or ".join([*reasons, *(["null"] if type(None) in hints else [])]))


def _tuple(inside: Sequence[Any], value: Any, where: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _RefusedError("a list")
    if len(inside) == 2 and inside[1] is Ellipsis:
        hints: list[Any] = [inside[0]] * len(value)
    else:
        hints = list(inside)
        if len(value) != len(hints):
            raise _RefusedError(f"a list of {len(hints)}")
    return tuple(_checked(hint, item, where, key) for hint, item in zip(hints, value))


def _scalar(hint: Any, value: Any) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise _RefusedError("true or false")
    elif hint in (int, float):
        value = _number(hint, value)
    elif hint is str:
        if not isinstance(value, str):
            raise _RefusedError("a text (in quotes)")
        _refuse_odd_text(value)
    elif hint is Path:
        if not isinstance(value, (str, Path)):
            raise _RefusedError("a path")
        _refuse_odd_text(str(value))
        value = Path(value)
    return value


def _refuse_odd_text(text: str) -> None:
    if text.startswith("--"):
        raise _RefusedError("a text that does not look like an option")
    if "\0" in text or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise _RefusedError("a text in UTF-8 without NUL")


def _number(kind: type, value: Any) -> Any:
    if isinstance(value, str) and kind is float and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError("a whole number" if kind is int else "a number")
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**1000):
        raise _RefusedError("a finite number")
    if kind is int and value != int(value):
        raise _RefusedError("a whole number")
    return kind(value)


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d{1,9}")
"""Numbers such as 1e-4, which YAML 1.1 reads as texts."""


def _found(value: Any) -> str:
    """A value that is refused, in at most 80 characters."""
    return files.short(str(value) if isinstance(value, Path) else value, 80)


def built(
    config_class: type[Config], checked: Mapping[str, Any], where: str, base: Any = None, prefix: str = ""
) -> Config:
    """``checked`` over the defaults: those of ``base``, an instance, for a group whose field has one of its own.

    What a class itself refuses (``__post_init__``: how fields go together) begins with the name of a field, so that
    ``where`` and ``prefix`` before it make the full key.
    """
    values = {} if base is None else fields_of(base)
    for field, hint in fields_and_types(config_class):
        if field.name not in checked:
            continue
        value = checked[field.name]
        group, choice = group_of(hint)
        if group is not None:
            given = values.get(field.name, default_of(field))
            if choice is not None:
                group = choice.config(value["name"], where, field.name)
            value = built(group, value, where, given if type(given) is group else None, f"{prefix}{field.name}.")
        values[field.name] = value
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {prefix}{error}") from None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, ``dataclasses.MISSING`` where it has none."""
    return field.default_factory() if callable(field.default_factory) else field.default


def merged(config_class: type, under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``under``, group by group, both in ``modern`` words.

    Where it chooses another name, of the group below only the keys stay that the new choice has as well, or none.
    """
    result = {**under, **over}
    for field, hint in fields_and_types(config_class):
        group, choice = group_of(hint)
        one, two = under.get(field.name), over.get(field.name)
        if group is None or not isinstance(one, Mapping) or not isinstance(two, Mapping):
            continue
        if choice is not None:
            group = choice.config(two["name"], "config", field.name)
            names = {inner.name for inner in dataclasses.fields(group)} if choice.keeps else set()
            same = one.get("name") == two["name"]
            one = {key: value for key, value in one.items() if same or key in names}
        result[field.name] = merged(group, one, two)
    return result
