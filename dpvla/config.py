"""Configs: frozen dataclasses, overridden by a YAML file, overridden by the command line.

``python tools/x.py --config configs/y.yaml --optimizer.lr 3e-4``. Every key and every value is checked before a tool
does anything: an unknown key is refused with the nearest valid name, a value of another type or out of its range with
the key it stands under. Parsing and help come from tyro.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

Config = TypeVar("Config")
_looking_up: ContextVar[bool] = ContextVar("_looking_up", default=False)


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

    def __str__(self) -> str:
        parts = [("at least", self.least), ("at most", self.most), ("above", self.above), ("below", self.below)]
        return " and ".join(f"{words} {bound:g}" for words, bound in parts if math.isfinite(bound) and bound != MOST)


MOST = 2**31 - 1
"""No count, size or seed is larger."""
Count = Annotated[int, Range(least=1, most=MOST)]
"""One or more."""
Whole = Annotated[int, Range(least=0, most=MOST)]
"""None or more."""
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
BelowOne = Annotated[float, Range(least=0, below=1)]
"""From 0 to below 1: decays, strengths."""


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    default_config: Path | str | None = None,
) -> Config:
    """Read the command line (``sys.argv`` by default) into ``config_class``; exits with status 2 on bad input.

    Args:
        default_config: YAML file that is read, and named on the terminal, when no --config is given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        files: list[Path | str] = []
        while (path := _take_option(arguments, "--config")) is not None:
            files.append(path)
        if not files and default_config is not None:
            if not {"-h", "--help"} & {*arguments} and os.environ.get("RANK", "0") == "0":
                print(f"no --config given: using {default_config}", file=sys.stderr)
            files = [default_config]
        _refuse_repeated_lists(config_class, arguments)
        data: dict[str, Any] = {}
        for file in files:
            data = _merged(data, _checked_group(config_class, read_yaml(config_class, file), str(file)))
        text = (description or config_class.__doc__ or "").strip()
        text = text.replace("\npython ", "\n\npython ")  # an example a line: the help joins the lines of a paragraph
        text += "\n\nOptions may also stand in a YAML file given with --config FILE; the command line wins."
        default = _unfinished(config_class, data) if data else tyro.MISSING_NONPROP
        registry = ConstructorRegistry()
        registry.struct_rule(_without_own_checks)
        with registry:
            unchecked = tyro.cli(config_class, args=arguments, description=text, default=default)
        where = "the command line" if not files else f"the command line and {', '.join(map(str, files))}"
        config = _built(config_class, _checked_group(config_class, _fields_of(unchecked), where), where)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return config


def _without_own_checks(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro makes a config here: what its ``__post_init__`` refuses would come out in a box of many lines."""
    made_by = info.type
    if not dataclasses.is_dataclass(made_by) or _looking_up.get():
        return None
    token = _looking_up.set(True)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)  # tyro's own
    finally:
        _looking_up.reset(token)
    if not isinstance(spec, StructConstructorSpec):
        return None

    @functools.wraps(made_by, updated=())
    def make(**values: Any) -> Any:
        config = object.__new__(made_by)
        for name, value in values.items():
            object.__setattr__(config, name, value)
        return config

    return dataclasses.replace(spec, instantiate=make)


def _refuse_repeated_lists(config_class: type, arguments: Sequence[str]) -> None:
    """A list given twice would keep its last values alone, without a word."""
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    for name in _list_options(config_class):
        if given.count(name) > 1:
            raise ConfigError(f"{name} is given twice; give all its values behind one {name}")


def _list_options(config_class: type, prefix: str = "--") -> Iterator[str]:
    for key, hint in typing.get_type_hints(config_class).items():
        name = prefix + key.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from _list_options(typing.cast(type, hint), f"{name}.")
        elif typing.get_origin(hint) is tuple:
            yield name


def reporting_errors(main: Callable[..., None]) -> Callable[..., None]:
    """A tool's ``main`` whose expected errors end it with one line.

    Expected are bad input, missing or unusable files, a full disk, missing packages, too little memory, interruption.
    """

    @functools.wraps(main)
    def run(*arguments: Any) -> None:
        try:
            main(*arguments)
        except (ValueError, OSError, FloatingPointError, ImportError) as error:
            raise SystemExit(f"error: {_one_line(error)}") from error
        except KeyboardInterrupt as interruption:
            print(str(interruption) or "interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not _is_torch_out_of_memory(error):
                raise
            raise SystemExit(f"error: out of memory ({_one_line(error)}); take smaller batches") from error

    return run


def _is_torch_out_of_memory(error: RuntimeError) -> bool:
    """By name and words: torch need not be loaded, and on CPUs its error is a plain RuntimeError."""
    return type(error).__name__ == "OutOfMemoryError" or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def read_yaml(config_class: type, path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file, its keys checked against the fields of ``config_class``."""
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys) or {}
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config file {path} must hold 'key: value' lines, found a {type(data).__name__}")
    check_keys(config_class, data, str(path))
    return data


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML would let the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def check_keys(config_class: type, data: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Raise ConfigError at the first key of ``data`` that ``config_class`` does not have."""
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    for key, value in data.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
            raise ConfigError(
                f"{where}: unknown key '{prefix}{key}'; nearest valid name: '{prefix}{near[0]}'"
                if near
                else f"{where}: unknown key '{prefix}{key}'"
            )
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: '{prefix}{key}' takes a group of keys, found {_short(value)}")
            check_keys(typing.cast(type, hints[key]), value, where, f"{prefix}{key}.")


def from_dict(config_class: type[Config], data: Mapping[str, Any], where: str) -> Config:
    """Build a config from a mapping that ``to_dict`` made (e.g. a checkpoint's ``run.yaml``); every value is checked.

    Raises ConfigError, with ``where`` and the key, for unknown keys, values of another type or out of range.
    """
    check_keys(config_class, data, where)
    return _built(config_class, _checked_group(config_class, data, where), where)


def check(config: Any, where: str = "config") -> None:
    """Raise ConfigError at the first field of a config that has another type than it says, or is out of its range."""
    _checked_group(type(config), _fields_of(config), where)


def refuse_given(config: Any, names: Iterable[str], belong_to: str) -> None:
    """Raise ConfigError when options that have no effect here have other values than their defaults.

    Args:
        names: the options.
        belong_to: what would give them an effect, such as ``--agent dpvla``.
    """
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != defaults[name]]
    if given:
        raise ConfigError(f"{', '.join(given)} belong{'' if given[1:] else 's'} to {belong_to}")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain YAML/JSON types: tuples become lists, paths strings."""
    return {name: _plain(value) for name, value in _fields_of(config).items()}


def _fields_of(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _checked_group(config_class: type, data: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """The values of some fields of ``config_class``, each as its type wants it; groups as mappings."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    checked = {}
    for key, value in data.items():
        try:
            checked[key] = _checked(hints[key], value, where, prefix + key)
        except _RefusedError as refused:
            raise ConfigError(f"{where}: {prefix}{key} must be {refused}, found {_short(value)}") from None
    return checked


class _RefusedError(Exception):
    """A value does not fit; the text says what would."""


def _checked(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _checked(inside[0], value, where, key)
        for bounds in inside[1:]:
            if isinstance(bounds, Range) and value not in bounds:
                raise _RefusedError(f"at most {MOST}" if value > MOST == bounds.most else str(bounds))
        return value
    if origin in (Union, types.UnionType):
        return _one_of(inside, value, where, key)
    if origin is Literal:
        if isinstance(value, bool) and (text := {True: "yes", False: "no"}[value]) in inside:
            value = text  # YAML reads a bare no as false
        if value not in inside or isinstance(value, bool):
            raise _RefusedError(f"one of {', '.join(map(str, inside))}")
        return value
    if dataclasses.is_dataclass(hint):
        group = typing.cast(type, hint)
        if isinstance(value, Mapping):
            return _checked_group(group, value, where, f"{key}.")
        if not isinstance(value, group):
            raise _RefusedError("a group of keys")
        return _checked_group(group, _fields_of(value), where, f"{key}.")
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
        if value.startswith("--"):
            raise _RefusedError("a text that does not look like an option")
    elif hint is Path:
        if not isinstance(value, (str, Path)) or str(value).startswith("--"):
            raise _RefusedError("a path")
        value = Path(value)
    return value


def _number(kind: type, value: Any) -> Any:
    if isinstance(value, str):  # YAML reads 1e-4 as a text
        try:
            value = kind(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError("a whole number" if kind is int else "a number")
    if kind is int and value != int(value if math.isfinite(value) else 0.5):
        raise _RefusedError("a whole number")
    if not math.isfinite(value):
        raise _RefusedError("a finite number")
    return kind(value)


def _short(value: Any, most: int = 80) -> str:
    """``repr`` of a value, made without writing out long containers."""
    if isinstance(value, (list, tuple, dict, set)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        value = value[: most + 1]
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None), Path)) else f"a {type(value).__name__}"
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(_short(item, 20) for item in value) + "]"
    return text if len(text) <= most else text[:most] + "…"


def _built(config_class: type[Config], checked: Mapping[str, Any], where: str, base: Any = None) -> Config:
    """``checked`` over the defaults: those of ``base``, an instance, for a group whose field has one of its own."""
    hints = typing.get_type_hints(config_class)
    values = {} if base is None else _fields_of(base)
    own = {f.name: _default(f) for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for key, value in checked.items():
        if dataclasses.is_dataclass(hints[key]):
            given = values.get(key, own[key])
            value = _built(typing.cast(type, hints[key]), value, where, None if given is dataclasses.MISSING else given)
        values[key] = value
    try:
        return config_class(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _unfinished(config_class: type[Config], data: Mapping[str, Any], base: Any = dataclasses.MISSING) -> Config:
    """An instance for tyro to start from: ``data`` over the defaults, and MISSING where neither has a value.

    Its own checks (``__post_init__``) run when the command line has been read.
    """
    hints = typing.get_type_hints(config_class)
    config = object.__new__(config_class)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        default = _default(field) if base is dataclasses.MISSING else getattr(base, field.name)
        value: Any = data.get(field.name, default)
        if dataclasses.is_dataclass(hints[field.name]):
            value = _unfinished(typing.cast(type, hints[field.name]), data.get(field.name, {}), default)
        object.__setattr__(config, field.name, tyro.MISSING if value is dataclasses.MISSING else value)
    return config


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default, ``dataclasses.MISSING`` where it has none."""
    return field.default_factory() if callable(field.default_factory) else field.default


def _merged(default: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    groups = {
        name: _merged(default[name], value)
        for name, value in over.items()
        if isinstance(value, Mapping) and isinstance(default.get(name), Mapping)
    }
    return {**default, **over, **groups}


def _take_option(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name:
            if i + 1 == len(arguments):
                raise ConfigError(f"{name} needs a file name")
            value = arguments[i + 1]
            del arguments[i : i + 2]
            return value
        if argument.startswith(f"{name}="):
            del arguments[i]
            return argument.split("=", 1)[1]
    return None
