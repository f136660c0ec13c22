"""Names that stand for classes: what is ours, and what a user's module adds.

A registry is a plain dict from a name to a class, or to where it is (``"module:Class"``), which is imported when asked
for. A module of yours adds to it, ``ALGORITHMS["mine"] = Mine``, and is named with ``--plugin my_module``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RegistryError(ValueError):
    """A name that stands for nothing, or a plug-in that is not there; the message says which and what there is."""


def look_up(registry: Mapping[str, Any], name: str, kind: str) -> Any:
    """What ``name`` stands for; ``kind`` says in errors what it is, such as ``"encoder"``.

    Raises RegistryError: no such name (the nearest and all others are listed), or nothing where the registry points to.
    """
    if name not in registry:
        near = difflib.get_close_matches(str(name), registry, n=1, cutoff=0.0)
        raise RegistryError(
            f"unknown {kind} {name!r}; nearest valid name: {near[0] if near else 'none'!r} (of {', '.join(registry)}; "
            "one of your own needs --plugin YOUR_MODULE)"
        )
    found = registry[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise RegistryError(f"{kind} {name!r} is said to be {found}, but {module} has no {attribute}") from None


def import_plugin(name: str) -> None:
    """Import a user's module, by its name or as a .py file, so that what it registers is known.

    Modules are looked for in the working directory, too, which stays on ``sys.path`` (worker processes get it).
    Raises RegistryError where there is no such module; what goes wrong inside it keeps its own error.
    """
    folder, module = os.getcwd(), name
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise RegistryError(f"plugin: {name} does not exist; give a module's name or its .py file")
        folder, module = str(path.resolve().parent), path.stem
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name != module and not module.startswith(f"{error.name}."):
            raise
        raise RegistryError(
            f"plugin: there is no module {module!r} in {folder} or among the installed ones; give a module's name or "
            "its .py file"
        ) from None
