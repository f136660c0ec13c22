"""The command line: options over YAML files over defaults, and errors as one line.

``python tools/x.py --config configs/y.yaml --optimizer.lr 3e-4``. Everything is checked before a tool does anything.
Parsing and help come from tyro.
"""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import errno
import functools
import io
import os
import re
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from dpvla.config import (
    Config,
    ConfigError,
    FormerSwitch,
    built,
    checked_group,
    default_of,
    fields_and_types,
    fields_of,
    group_of,
    merged,
    modern,
    one_line,
    read_yaml,
    renamed,
)
from dpvla.files import FileError
from dpvla.files import read_yaml as read_yaml_file
from dpvla.recipes import recipe_file
from dpvla.registry import RegistryError, import_plugin

DEBUG = "--debug"
"""Option of every tool: tracebacks behind what errors say."""
Result = TypeVar("Result")
_debugging: ContextVar[bool] = ContextVar("_debugging", default=False)
_looking_up: ContextVar[bool] = ContextVar("_looking_up", default=False)


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    default_config: Path | str | None = None,
) -> Config:
    """Read the command line (``sys.argv`` by default) into ``config_class``; exits with status 2 on bad input.

    Modules that the option ``plugin`` names, where there is one, are imported first.

    Args:
        default_config: YAML file that is read, and named on the terminal, when no --config is given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        files: list[Path | str] = []
        while (path := _take_option(arguments, "--config")) is not None:
            files.append(recipe_file(path))
        if not files and default_config is not None:
            if not {"-h", "--help"} & {*arguments} and os.environ.get("RANK", "0") == "0":
                print(f"no --config given: using {default_config}", file=sys.stderr)
            files = [default_config]
        arguments = _in_words_of_today(config_class, arguments)
        _import_plugins(config_class, arguments)
        data: dict[str, Any] = {}
        for file in files:
            _import_plugins_of_file(config_class, file)
            given = read_yaml(config_class, file, data)
            data = merged(config_class, data, checked_group(config_class, given, str(file)))
        arguments, names = _chosen(config_class, arguments)
        data = merged(config_class, data, modern(config_class, names, "the command line", data))
        concrete = _concrete(config_class, data)
        arguments = _in_words_of_today(concrete, arguments)  # those of what is chosen
        _refuse_unknown_options(config_class, concrete, arguments)
        _refuse_repeated_lists(concrete, arguments)
        arguments = _separated(concrete, arguments)
        text = (description or config_class.__doc__ or "").strip()
        text = text.replace("\npython ", "\n\npython ")  # an example a line: the help joins the lines of a paragraph
        text += "\n\nOptions may also stand in a YAML file given with --config FILE; the command line wins. "
        text += f"{DEBUG} shows where in the code an error arose."
        registry = ConstructorRegistry()
        registry.struct_rule(_without_own_checks)
        with registry, _box_as_line():
            unchecked = tyro.cli(concrete, args=arguments, description=text, default=_unfinished(concrete, data))
        where = "the command line" if not files else f"the command line and {', '.join(map(str, files))}"
        config = built(config_class, checked_group(config_class, fields_of(unchecked), where), where)
    except (ConfigError, RegistryError) as error:
        if error.__cause__ is not None:  # what a user's own module raised
            traceback.print_exception(error.__cause__)
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    return config


def _in_words_of_today(config_class: type, arguments: Sequence[str]) -> list[str]:
    """Options by their names of today, which is said; the bare name of a chosen group is its ``name``."""
    former: dict[str, str] = {}
    for before, key in _renamed_below(config_class):
        option = _option(before)
        if isinstance(key, FormerSwitch):
            former |= {option: f"{_option(key.key)}={key.on}", _negated(option): f"{_option(key.key)}={key.off}"}
        else:
            former |= {option: _option(key), _negated(option): _negated(_option(key))}
    bare = {_option(path) for path in _choices(config_class)}
    words = []
    for word in arguments:
        option, equals, value = word.partition("=")
        plain = option.replace("_", "-")
        old = next((old for old in former if plain == old or plain.startswith(f"{old}.")), None)
        if old is not None:
            new = former[old] + option[len(old) :]
            if os.environ.get("RANK", "0") == "0":
                print(f"{option} is now {new}", file=sys.stderr)
            word = new + equals + value
        elif plain in bare:
            word = f"{option}.name{equals}{value}"
        words.append(word)
    return words


def _renamed_below(config_class: type, prefix: str = "") -> Iterator[tuple[str, str | FormerSwitch]]:
    for old, new in renamed(config_class).items():
        if isinstance(new, FormerSwitch):
            yield prefix + old, dataclasses.replace(new, key=prefix + new.key)
        else:
            yield prefix + old, prefix + new
    for field, hint in fields_and_types(config_class):
        group, choice = group_of(hint)
        if group is not None and choice is None:
            yield from _renamed_below(group, f"{prefix}{field.name}.")


def _choices(config_class: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the groups that a name chooses."""
    for field, hint in fields_and_types(config_class):
        group, choice = group_of(hint)
        if choice is not None:
            yield prefix + field.name
        elif group is not None:
            yield from _choices(group, f"{prefix}{field.name}.")


def _chosen(config_class: type, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments with names of choices written in full, and these choices as a mapping."""
    words, data = list(arguments), dict[str, Any]()
    for path in _choices(config_class):
        name = None
        while (given := _take_option(words, f"{_option(path)}.name")) is not None:
            name = given  # the last one counts, as for every option
        if name is None:
            continue
        *groups, last = path.split(".")
        nested: dict[str, Any] = {last: name}
        for group in reversed(groups):
            nested = {group: nested}
        inside: Any = modern(config_class, nested, "the command line")
        data = {**data, **inside} if not groups else merged(config_class, data, inside)
        for key in path.split("."):
            inside = inside[key]
        for key, value in inside.items():
            words += [_option(f"{path}.{key}"), str(value)]
    return words, data


def _option(path: str) -> str:
    return "--" + path.replace("_", "-")


def _negated(option: str) -> str:
    """What turns a switch off: ``--loop.no-x`` of ``--loop.x``."""
    groups, dot, key = option.removeprefix("--").rpartition(".")
    return f"--{groups}{dot}no-{key}"


def _refuse_unknown_options(config_class: type, concrete: type, arguments: Sequence[str]) -> None:
    """Raise ConfigError at the first option that there is not, with the nearest, or with the choice that has it."""
    known, free = {"--help", DEBUG}, []
    for path, hint in _options_below(concrete):
        known |= {_option(path)} | ({_negated(_option(path))} if hint is bool else set())
        hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if hint is dict or typing.get_origin(hint) is dict:
            free.append(f"{_option(path)}.")
    for word in arguments:
        option = word.partition("=")[0].replace("_", "-")
        if not word.startswith("--") or word.startswith("--tyro-") or option in known or option.startswith((*free,)):
            continue
        for path in _choices(config_class):
            key = option.removeprefix(f"{_option(path)}.")
            if key != option and (others := _having(config_class, path, key)):
                belongs = " or ".join(f"{_option(path)} {name}" for name in others)
                raise ConfigError(f"the command line: {option} belongs to {belongs}")
        near = difflib.get_close_matches(option, sorted(known), n=1, cutoff=0.0)[0]
        raise ConfigError(f"the command line: unknown option {option}; nearest valid name: {near} (--help lists all)")


def _options_below(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of everything that is no group."""
    for field, hint in fields_and_types(config_class):
        group, _ = group_of(hint)
        if group is not None:
            yield from _options_below(group, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def _having(config_class: type, path: str, key: str) -> list[str]:
    """Names of the choices at ``path`` that have an option ``key``."""
    for name in path.split("."):
        hint = next(hint for field, hint in fields_and_types(config_class) if field.name == name)
        group, choice = group_of(hint)
        assert group is not None
        config_class = group
    assert choice is not None
    options = {name: _options_below(choice.config(name, "", path)) for name in choice.registry}
    return [name for name, inside in options.items() if key in {path.replace("_", "-") for path, _ in inside}]


def _import_plugins(config_class: type, arguments: Sequence[str]) -> None:
    """Modules behind --plugin; those that stand in a YAML file are imported as it is read."""
    if not _has_plugins(config_class):
        return
    taking = False
    for word in arguments:
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            taking = option == "--plugin"
            word = value if equals else ""
        if taking and word:
            import_plugin(word)


def _import_plugins_of_file(config_class: type, path: Path | str) -> None:
    """The same for a YAML file; what is wrong with the file is told when it is read."""
    with suppress(OSError, FileError):
        content = read_yaml_file(path)
        names = content.get("plugin") if isinstance(content, dict) else None
        if not _has_plugins(config_class) or names is None:
            return
        if not isinstance(names, list):
            raise ConfigError(f"{path}: plugin takes a list: plugin: [{names}]")
        for name in names:
            import_plugin(str(name))


def _has_plugins(config_class: type) -> bool:
    return "plugin" in {field.name for field, _ in fields_and_types(config_class)}


def _concrete(config_class: type[Config], data: Mapping[str, Any]) -> type[Config]:
    """``config_class`` with the type of every chosen group as ``data`` or the default has it: what tyro asks for."""
    replaced: list[Any] = []
    for field, hint in fields_and_types(config_class):
        group, choice = group_of(hint)
        if group is None:
            continue
        given, own = data.get(field.name), default_of(field)
        if choice is None:
            wanted: type = _concrete(group, given or {})
        else:
            wanted = type(own) if given is None else choice.config(given["name"], "config", field.name)
        if wanted is not group:
            kept = choice is None or type(own) is wanted
            replaced.append(
                (field.name, wanted, dataclasses.field(default_factory=field.default_factory if kept else wanted))
            )
    if not replaced:
        return config_class
    made = dataclasses.make_dataclass(config_class.__name__, replaced, bases=(config_class,), frozen=True)
    made.__doc__, made.__module__ = config_class.__doc__, config_class.__module__
    return typing.cast("type[Config]", made)


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


@contextmanager
def _box_as_line() -> Iterator[None]:
    """What tyro refuses, which it says in a box of many lines, as ConfigError."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]  # behind the title; rules part them
        rules = [i for i, line in enumerate(lines) if not line.strip("─-")] + [len(lines)]
        reason = lines[: rules[0]] or lines[1 : rules[1]]
        raise ConfigError(f"the command line: {' '.join(reason)} (--help lists all)") from None
    sys.stderr.write(said.getvalue())


def _refuse_repeated_lists(config_class: type, arguments: Sequence[str]) -> None:
    """A list given twice would keep its last values alone, without a word."""
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    for name in _list_options(config_class):
        if given.count(name) > 1:
            raise ConfigError(f"{name} is given twice; give all its values behind one {name}")


def _list_options(config_class: type) -> Iterator[str]:
    return (_option(path) for path, hint in _options_below(config_class) if _values_of_list(hint) is not None)


def _values_of_list(hint: Any) -> Any:
    """The type of a list's values; None for what is no list."""
    of = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((typing.get_args(one)[0] for one in of if typing.get_origin(one) is tuple), None)


def _separated(config_class: type, arguments: Sequence[str]) -> list[str]:
    """The arguments with lists of numbers a word each: ``--omega 0,0.5,1`` is ``--omega 0 0.5 1``.

    Whole numbers may be given as a range: ``--seeds 0..3`` is ``--seeds 0 1 2 3``.
    """
    hints = {_option(path): _values_of_list(hint) for path, hint in _options_below(config_class)}
    lists = {option: hint for option, hint in hints.items() if _is_number(hint)}
    words: list[str] = []
    inside = ""
    for word in arguments:
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = option.replace("_", "-") if option.replace("_", "-") in lists else ""
            if not inside or not equals:
                words.append(word)
                continue
            words, word = [*words, option], value
        parts = word.split(",") if inside else [word]
        ranges = bool(inside) and _plain_type(lists[inside]) is int
        words += [one for part in parts for one in (_in_range(part, inside) if ranges else [part])]
    return words


_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
MOST_IN_RANGE = 1000


def _in_range(word: str, option: str) -> list[str]:
    """``0..3`` as 0, 1, 2, 3; any other word as it is."""
    match = _RANGE.fullmatch(word)
    if match is None:
        return [word]
    first, last = map(int, match.groups())
    if not 0 <= last - first < MOST_IN_RANGE:
        raise ConfigError(f"{option}: a range goes up, to at most {MOST_IN_RANGE} numbers; found {word}")
    return list(map(str, range(first, last + 1)))


def _is_number(hint: Any) -> bool:
    return _plain_type(hint) in (int, float)


def _plain_type(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def reporting_errors(main: Callable[..., Result]) -> Callable[..., Result]:
    """A program's ``main`` whose errors end it with one line; ``--debug`` shows the traceback as well.

    Expected are bad input, missing or unusable files, a full disk, missing packages, too little memory, interruption.
    What is not expected is said to be a fault here. ``--debug`` is taken out of what ``main`` is given, or out of
    ``sys.argv``.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> Result:
        given = list(sys.argv[1:] if argv is None else argv)
        token = _debugging.set(DEBUG in given)
        words = [word for word in given if word != DEBUG]
        if argv is None:
            sys.argv[1:] = words
        try:
            result = main() if argv is None else main(words)
            _say_all()
            return result
        except SystemExit:
            with suppress(OSError):
                _say_all()
            raise
        except KeyboardInterrupt as interruption:
            print(str(interruption) or "interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            if _debugging.get():
                traceback.print_exception(error)
            text = _said(error)
            try:
                _say_all()
            except OSError as closed:
                text = str(closed)
            raise SystemExit(f"error: {text}") from error
        finally:
            _debugging.reset(token)
            _end_quietly()

    return run


@functools.cache
def _end_quietly() -> None:
    """Ctrl-C while the interpreter ends, when all is said and done, would print where in its clean-up that was."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _say_all() -> None:
    """Print what is printed so far. OSError where nobody takes it, as behind ``| head``; then nothing waits any more.

    At the end of a program Python would say that by itself, in lines of its own.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise OSError(f"standard output: {error.strerror}: not everything could be printed") from None


_EXPECTED = (ValueError, OSError, FloatingPointError, ImportError)


def _said(error: Exception) -> str:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_torch_out_of_memory(error)):
        return f"out of memory ({one_line(error)}); take smaller batches"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no further thread can be started; raise this user's limit (ulimit -u), or take fewer --workers"
    if isinstance(error, RuntimeError) and _is_of_another_process(error):
        return (
            f"another process of this run has ended or cannot be reached ({one_line(error):.200}); see what it says; "
            "the same command goes on from the last checkpoint"
        )
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
        return f"standard output, or a file: {error.strerror}: not everything could be written"
    if isinstance(error, _EXPECTED):
        return one_line(error)
    where = "" if _debugging.get() else f"; the same command with {DEBUG} shows where: please report that"
    return f"{type(error).__name__}: {one_line(error)}: this was not foreseen{where}"


def command(
    config_class: type[Config], description: str | None, default_config: Path | str | None = None
) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Makes a tool's ``main`` of what it does with its config: parses the command line, and reports expected errors.

    ``@command(MyConfig, __doc__)`` above ``def main(config: MyConfig) -> None``; then ``main()`` reads ``sys.argv``,
    ``main(["--out", "x"])`` what it is given. The arguments are those of ``parse``.
    """

    def decorate(work: Callable[[Config], None]) -> Callable[..., None]:
        @reporting_errors
        @functools.wraps(work)
        def main(argv: Sequence[str] | None = None) -> None:
            work(parse(config_class, argv, description, default_config))

        return main

    return decorate


def _is_of_another_process(error: RuntimeError) -> bool:
    """What torch's ways to talk to other processes raise: NCCL and the store by type, gloo a plain RuntimeError."""
    names = ("DistBackendError", "DistNetworkError", "DistStoreError")
    return type(error).__name__ in names or "/gloo/" in str(error)


def _is_torch_out_of_memory(error: RuntimeError) -> bool:
    """By name and words: torch need not be loaded, and on CPUs its error is a plain RuntimeError."""
    return type(error).__name__ == "OutOfMemoryError" or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )


def refuse_given(config: Any, names: Iterable[str], belong_to: str) -> None:
    """Raise ConfigError when options that have no effect here have other values than their defaults.

    Args:
        names: the options.
        belong_to: what would give them an effect, such as ``--agent dpvla``.
    """
    defaults = {field.name: default_of(field) for field in dataclasses.fields(config)}
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != defaults[name]]
    if given:
        raise ConfigError(f"{', '.join(given)} belong{'' if given[1:] else 's'} to {belong_to}")


def _unfinished(config_class: type[Config], data: Mapping[str, Any], base: Any = dataclasses.MISSING) -> Config:
    """An instance for tyro to start from: ``data`` over the defaults, and MISSING where neither has a value.

    Its own checks (``__post_init__``) run when the command line has been read.
    """
    config = object.__new__(config_class)
    for field, hint in fields_and_types(config_class):
        group, _ = group_of(hint)
        if base is not dataclasses.MISSING:
            default = getattr(base, field.name)
        else:  # a group need not be made for the defaults of its fields, which it may refuse by themselves
            default = dataclasses.MISSING if group and field.default_factory is group else default_of(field)
        value: Any = data.get(field.name, default)
        if group is not None:
            own = issubclass(group, type(default))  # else the default is of what another name chooses
            value = _unfinished(group, data.get(field.name, {}), default if own else dataclasses.MISSING)
        object.__setattr__(config, field.name, tyro.MISSING if value is dataclasses.MISSING else value)
    return config


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
