"""Configs: frozen dataclasses, overridden by a YAML file, overridden by the command line.

``python tools/x.py --config configs/y.yaml --optimizer.lr 3e-4``. Every key is checked; an unknown one is
refused with the nearest valid name. Types, help and parsing come from tyro.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A config that cannot be used; the message says which key of which file and what to do."""


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
            if not {"-h", "--help"} & {*arguments}:
                print(f"no --config given: using {default_config}", file=sys.stderr)
            files = [default_config]
        from_files: list[str] = []
        free: dict[str, Any] = {}
        for file in files:
            data = read_yaml(config_class, file)
            free |= _take_mappings(config_class, data)
            from_files += _as_arguments(data)
        default = from_dict(config_class, free, "config") if free else tyro.MISSING_NONPROP
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    text = (description or config_class.__doc__ or "").strip()
    text = text.replace("\npython ", "\n\npython ")  # an example a line: the help joins the lines of a paragraph
    text += "\n\nOptions may also stand in a YAML file given with --config FILE; the command line wins."
    return tyro.cli(config_class, args=from_files + arguments, description=text, default=default)


def reporting_errors(main: Callable[..., None]) -> Callable[..., None]:
    """A tool's ``main`` whose expected errors (bad input, missing files, interruption) end it with one line."""

    @functools.wraps(main)
    def run(*arguments: Any) -> None:
        try:
            main(*arguments)
        except (ValueError, FileNotFoundError, FloatingPointError, ModuleNotFoundError) as error:
            raise SystemExit(f"error: {error}") from error
        except KeyboardInterrupt as interruption:
            print(str(interruption) or "interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return run


def read_yaml(config_class: type, path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file, its keys checked against the fields of ``config_class``."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config file {path} must hold 'key: value' lines, found a {type(data).__name__}")
    check_keys(config_class, data, str(path))
    return data


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
                raise ConfigError(f"{where}: '{prefix}{key}' takes a group of keys, found {value!r}")
            check_keys(typing.cast(type, hints[key]), value, where, f"{prefix}{key}.")


def from_dict(config_class: type[Config], data: Mapping[str, Any], where: str) -> Config:
    """Build a config from a mapping that ``to_dict`` made (e.g. a checkpoint's ``run.yaml``)."""
    check_keys(config_class, data, where)
    hints = typing.get_type_hints(config_class)
    values = {}
    for key, value in data.items():
        if dataclasses.is_dataclass(hints[key]):
            value = from_dict(typing.cast(type, hints[key]), value, where)
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    try:
        return config_class(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain YAML/JSON types: tuples become lists, paths strings."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """The config as YAML text that ``parse(..., --config)`` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _as_arguments(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in data.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, Mapping):
            yield from _as_arguments(value, f"{name}.")
        elif isinstance(value, bool):
            head, _, tail = name.rpartition(".")
            yield f"--{head}{'.' if head else ''}{'' if value else 'no-'}{tail}"
        elif isinstance(value, (list, tuple)):
            yield from (f"--{name}", *map(str, value))
        else:
            yield from (f"--{name}", str(value))


def _take_mappings(config_class: type, data: dict[str, Any]) -> dict[str, Any]:
    """Remove the values of free-form mapping fields, whose keys no dataclass names; nested as ``data`` is."""
    hints, taken = typing.get_type_hints(config_class), {}
    for key, value in list(data.items()):
        if dataclasses.is_dataclass(hints[key]):
            if inner := _take_mappings(typing.cast(type, hints[key]), value):
                taken[key] = inner
        elif isinstance(value, dict):
            taken[key] = data.pop(key)
    return taken


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
