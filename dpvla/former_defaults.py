"""Keys of a config that files of an earlier version do not have, and what was done then.

A config class names them in ``FORMERLY``, a mapping from a key to the value that it would have had before there was
one. A run of an earlier version so goes on as it began, although a new one has another default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dpvla.config import Config, default_of, fields_and_types


def former_defaults(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, what held before there was one, and today's default, of all that a config's classes name."""
    before: Mapping[str, Any] = getattr(config, "FORMERLY", {})
    for field, _ in fields_and_types(type(config)):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from former_defaults(value, f"{prefix}{field.name}.")
        elif field.name in before:
            yield prefix + field.name, before[field.name], default_of(field)


def as_formerly(config: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` (in ``modern`` words) of a file of any version, with what held then where it lacks a key.

    ``config``: whose classes say so.
    """
    filled = dict(data)
    for key, before, _ in former_defaults(config):
        *groups, last = key.split(".")
        inside = filled
        for group in groups:
            if not isinstance(inside.get(group), Mapping):
                break
            inside[group] = inside = dict(inside[group])
        else:
            inside.setdefault(last, before)
    return filled


def replaced(config: Config, key: str, value: Any) -> Config:
    """A config with another value at a dotted key."""
    name, _, rest = key.partition(".")
    inside: Any = replaced(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inside})  # type: ignore[type-var]
