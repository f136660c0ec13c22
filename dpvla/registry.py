"""Names that stand for classes: what is ours, and what a user's module adds.

A registry is a dict from a name to a class, or to where it is (``"module:Class"``), which is imported when asked for. A
module of yours adds to it, ``ALGORITHMS["mine"] = Mine``, and is named with ``--plugin my_module``. A name that is
taken is refused.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RegistryError(ValueError):
    """A name that stands for nothing of use, or a plug-in that cannot be had; the message says which and what to do."""


class ContractError(ValueError):
    """What a plug-in gave is not what its contract says; the message says what it is and what it should be."""


class Registry(dict[str, Any]):
    """From names to classes, or to where they are. RegistryError for a name that stands for something else already."""

    def __init__(self, contract: type | str | None, configs: Mapping[str, str] | None = None, /, **own: Any) -> None:
        """
        Args:
            contract: the abstract class or protocol that they keep to, or where it is; ``look_up`` sees to it.
            configs: where the ``Config`` of some of them is: it is read without loading the class, as ``--help`` does.
        """
        super().__init__(own)
        self.configs = dict(configs or {})
        self._contract = contract

    @property
    def contract(self) -> type | None:
        """What all keep to; imported when it is first asked for."""
        if isinstance(self._contract, str):
            self._contract = _imported(self._contract, "the contract")
        return self._contract  # type: ignore[return-value]

    def __setitem__(self, name: str, thing: Any) -> None:
        if name in self and _origin(self[name]) != _origin(thing):
            raise RegistryError(
                f"the name {name!r} is taken by {_shown(self[name])}; give {_shown(thing)} another name"
            )
        super().__setitem__(name, thing)


def _origin(thing: Any) -> Any:
    """Where a thing is written: a module that is imported under two names registers the same things twice."""
    if isinstance(thing, str):
        return thing
    module = sys.modules.get(getattr(thing, "__module__", ""))
    return getattr(module, "__file__", id(thing)), getattr(thing, "__qualname__", id(thing))


def _shown(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}" if isinstance(thing, type) else f"{thing!r:.80}"


def look_up(registry: Mapping[str, Any], name: str, kind: str) -> Any:
    """What ``name`` stands for; ``kind`` says in errors what it is, such as ``"encoder"``.

    Raises RegistryError: no such name (the nearest and all others are listed), nothing where the registry points to, or
    something that lacks what the registry's contract asks for.
    """
    if name not in registry:
        near = difflib.get_close_matches(str(name), registry, n=1, cutoff=0.0)
        raise RegistryError(
            f"unknown {kind} {name!r}; nearest valid name: {near[0] if near else 'none'!r} (of {', '.join(registry)}; "
            "one of your own needs --plugin YOUR_MODULE)"
        )
    found = registry[name]
    if isinstance(found, str):
        found = _imported(found, f"{kind} {name!r}")
    if isinstance(registry, Registry) and registry.contract is not None:
        _require(found, registry.contract, f"{kind} {name!r}")
    return found


def look_up_config(registry: Mapping[str, Any], name: str, kind: str) -> Any:
    """``Config`` of what ``name`` stands for, of a name of ours without loading the rest; errors as in ``look_up``.

    None where it has none.
    """
    own: Mapping[str, str] = getattr(registry, "configs", {})
    if name in own:
        return _imported(own[name], f"the config of {kind} {name!r}")
    return getattr(look_up(registry, name, kind), "Config", None)


def _imported(where: str, what: str) -> Any:
    module, _, attribute = where.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if not _is_part(error.name, module):
            raise
        raise RegistryError(f"{what} is said to be {where}, but there is no module {error.name}") from None
    except AttributeError as error:
        if getattr(error, "name", attribute) != attribute:
            raise
        raise RegistryError(
            f"{what} is said to be {where}, but {module} has no {attribute or 'class named: write module:Class'}"
        ) from None


def _is_part(name: str | None, module: str) -> bool:
    """Whether a module that is not there is ``module`` itself or a package that it should lie in."""
    return name is None or name == module or module.startswith(f"{name}.")


def _require(found: Any, contract: type, what: str) -> None:
    page = f"{contract.__module__}.{contract.__name__}"
    if not isinstance(found, type):
        raise RegistryError(f"{what} is {_shown(found)}: no class; register the class itself, as {page} says")
    if not getattr(contract, "_is_protocol", False) and not issubclass(found, contract):
        raise RegistryError(f"{what} is {_shown(found)}: no subclass of {page}")
    abstract: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    lacking = [name for name in _asked(contract) if name in abstract or not hasattr(found, name)]
    if lacking:
        raise RegistryError(f"{what}, {_shown(found)}, lacks {', '.join(lacking)}: {page} says what they are")


def _asked(contract: type) -> Iterator[str]:
    """What a contract leaves to others: abstract methods, class attributes without a value, a protocol's methods."""
    for part in contract.__mro__:
        if part.__module__ in ("builtins", "typing", "abc"):
            continue
        for name, hint in inspect.get_annotations(part).items():
            if str(hint).startswith(("ClassVar", "typing.ClassVar")) and name not in vars(part):
                yield name
        for name, value in vars(part).items():
            of_protocol = getattr(part, "_is_protocol", False) and not name.startswith("_") and _is_method(value)
            if of_protocol or getattr(value, "__isabstractmethod__", False):
                yield name


def _is_method(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod))


def import_plugin(name: str) -> None:
    """Import a user's module, by its name or as a .py file, so that what it registers is known.

    Modules are looked for in the working directory, too, which stays on ``sys.path`` (worker processes get it).

    Raises:
        RegistryError: there is no such module, another one has its name, or it fails, then with the failure as cause.
    """
    folder, module, file = os.getcwd(), name, None
    if name.endswith(".py") or "/" in name:
        file = Path(name).resolve()
        if not file.is_file() or file.suffix != ".py":
            raise RegistryError(f"plugin: {name} does not exist; give a module's name or its .py file")
        folder, module = str(file.parent), file.stem
        if "." in module:
            raise RegistryError(f"plugin: {name} cannot be imported, as there is a dot in its name: rename it")
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except RegistryError as error:
        raise RegistryError(f"plugin {name}: {error}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module):
            raise RegistryError(
                f"plugin: there is no module {module!r} in {folder} or among the installed ones; give a module's name "
                "or its .py file"
            ) from None
        ended = f" ({error})" if str(error) else ""
        raise RegistryError(f"plugin {name} cannot be imported: {type(error).__name__}{ended}") from error
    found = getattr(imported, "__file__", None)
    if file is not None and (found is None or Path(found).resolve() != file):
        raise RegistryError(
            f"plugin: {name} cannot be imported, as there is a module {module!r} already "
            f"({found or 'part of Python'}): rename yours"
        )
