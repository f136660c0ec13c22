"""Every field of every tool's config, given what it cannot be: refused at once, by its full key."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest

from dpvla import cli
from dpvla.config import ConfigError, Keys, Range, default_of, fields_and_types, from_dict, group_of
from dpvla.encoders.config import FlorenceConfig, TimmConfig
from dpvla.models.config import LoRAConfig
from dpvla.models.sampling import AdaptersOnDisk
from dpvla.registry import look_up_config
from dpvla.state_based.agents.registry import AGENTS
from tests.tools.test_options import TOOLS


@dataclasses.dataclass(frozen=True)
class WithEncoders:
    """Both encoders, whose configs tools choose between by name."""

    florence: FlorenceConfig = dataclasses.field(default_factory=FlorenceConfig)
    timm: TimmConfig = dataclasses.field(default_factory=TimmConfig)
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)


def config_classes() -> Iterator[tuple[str, type]]:
    found: list[tuple[str, type]] = []

    def parse(config_class: type, *_: Any, **__: Any) -> None:
        found.append((config_class.__name__, config_class))
        raise _FoundError

    modules = [importlib.import_module(f"tools.{name}") for name in TOOLS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "parse", parse)
        for module in modules:
            if hasattr(module, "parse"):
                patch.setattr(module, "parse", parse)
            with pytest.raises((_FoundError, SystemExit)):
                module.main([])
    yield from found
    yield "WithEncoders", WithEncoders
    yield "AdaptersOnDisk", AdaptersOnDisk
    for name in AGENTS:
        config: Any = look_up_config(AGENTS, name, "agent")
        yield config.__name__, config


class _FoundError(Exception):
    """Nothing further is wanted."""


CLASSES = dict(config_classes())
ALONE = {"omega": 3, "split": "abc"}
"""Lists that one value alone may stand for, such as this one."""


def fields_of(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and type of every field; of a group that a name chooses, those of the default."""
    for field, hint in fields_and_types(config_class):
        group, choice = group_of(hint)
        if group is None:
            yield prefix + field.name, hint
        else:
            yield prefix + field.name, group
            chosen = type(default_of(field)) if choice is not None else group
            yield from fields_of(chosen, f"{prefix}{field.name}.")


def wrong_values(hint: Any, key: str) -> Iterator[Any]:
    """What a field of this type must not take."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    yield from (datetime.date(2021, 1, 1), {1: 2}, b"bytes")
    if dataclasses.is_dataclass(hint):
        yield from (None, 3, ["a"], {"no_such_key": 1}, {3: 1}, {"x" * 10**6: 1})
        return
    ranges = [mark for mark in inside if isinstance(mark, Range)] if origin is Annotated else []
    if origin is Annotated and not any(isinstance(mark, Keys) for mark in inside):
        plain = inside[0]
        while typing.get_origin(plain) is Annotated:
            plain = typing.get_args(plain)[0]
        yield from wrong_values(plain, key)
        for bounds in ranges:
            outside = (bounds.least - 1, bounds.most * 2 + 1, bounds.above, bounds.below)
            yield from (float(value) for value in outside if math.isfinite(value))
    elif origin is typing.Union or (origin is not None and type(None) in inside and origin is not tuple):
        # null and another type: what is wrong for that type is wrong here, but null
        other = next(one for one in inside if one is not type(None))
        yield from (value for value in wrong_values(other, key) if value is not None)
        yield ""
    elif origin is tuple:
        yield from (value for value in (None, "abc", {"a": 1}, [[["nested"]]], 3) if value != ALONE.get(key, ()))
        yield from ([value] for value in wrong_values(inside[0], key) if value is not None)
    elif origin is Literal:
        yield from (None, "no_such_word", 3.5, ["a"], "--restart")
    elif hint is bool:
        yield from (None, 1, 0, "yes", "true", [True])
    elif hint in (int, float):
        yield from (
            None,
            True,
            "many",
            "3",
            "",
            [3],
            {"a": 3},
            math.nan,
            math.inf,
            -math.inf,
            10**400,
            "1:30",
            "010",
            "--x",
        )
        if hint is int:
            yield from (2.5, "1e-4")
    elif hint is str:
        yield from (None, 3, 1.5, True, ["a"], {"a": 1}, "--restart", "a\0b", "\udcff")
    elif origin is Annotated or hint is dict or origin is dict:
        yield from (None, 3, "a", ["a"])


def without_key_named(config_class: type, key: str, value: Any) -> str | None:
    """What is wrong with how ``config_class`` takes ``value`` at ``key``, or None."""
    data: Any = value
    for part in reversed(key.split(".")):
        data = {part: data}
    top = key.partition(".")[0]
    needed = {
        field.name: "x" if hint is str else 1.0
        for field, hint in fields_and_types(config_class)
        if default_of(field) is dataclasses.MISSING and field.name != top
    }
    try:
        from_dict(config_class, needed | data, "run.yaml")
    except ConfigError as error:
        text = str(error)
        shown = f"{key}." if isinstance(value, dict) else key  # of a group: the key inside it
        if not text.startswith("run.yaml: ") or not (key in text or shown in text) or len(text) > 2000:
            return f"{key} = {value!r:.60}: {text:.200}"
        return None
    return f"{key} = {value!r:.60} is taken"


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_refuses_what_it_cannot_be_by_its_full_key(name: str) -> None:
    wrong = []
    tried = 0
    for key, hint in fields_of(CLASSES[name]):
        for value in wrong_values(hint, key):
            tried += 1
            wrong.append(without_key_named(CLASSES[name], key, value))
    assert tried > 10
    assert [text for text in wrong if text] == []


def test_every_whole_number_has_a_largest_value() -> None:
    """A count without bound asks for memory or time without end."""
    free = []
    for config_class in CLASSES.values():
        for key, hint in fields_of(config_class):
            numbers = typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,)
            for number in numbers:
                if number is int or (
                    typing.get_origin(number) is Annotated
                    and typing.get_args(number)[0] is int
                    and not any(math.isfinite(m.most) for m in typing.get_args(number)[1:] if isinstance(m, Range))
                ):
                    free.append(f"{config_class.__name__}.{key}")
    assert free == []
